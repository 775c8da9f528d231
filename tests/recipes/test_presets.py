"""Published models as recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cli.command import run
from tests.interop.published import network_of

import sfumato
from sfumato import recipes
from sfumato.conditioning import LowResolution
from sfumato.config import Config, merge, parse
from sfumato.errors import InputError
from sfumato.models.calibrate import tune
from sfumato.recipes.openai import CLASSIFIERS
from sfumato.recipes.published import PRESETS, TRAINED
from sfumato.runs.train import train


def test_every_published_model_is_a_recipe() -> None:
    assert TRAINED.keys() == {*PRESETS, *CLASSIFIERS} and PRESETS.keys() <= recipes.RECIPES.keys()
    for name, published in PRESETS.items():
        values = recipes.named(name, "path/to/folder")
        assert values["model"] == published.model and values["sampling"] == published.sampling
        assert ("label" in values["conditions"]) == (published.classes > 0)
        assert values["conditions"].keys() - {"label"} == published.others.keys()
        config = parse(Config, values)
        assert config.data.source == "path/to/folder"
        # what is written down can be read again
        assert parse(Config, config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", ["digits", "small", "cifar", "images", "ddpm", "vectors"])
def test_every_recipe_is_a_configuration(name: str) -> None:
    config = parse(Config, recipes.named(name, None))
    assert parse(Config, config.model_dump(mode="json")) == config
    # whoever changes what a recipe returns changes no other
    recipes.RECIPES[name]()["model"]["network"]["kind"] = "none"
    assert parse(Config, recipes.named(name, None)) == config


def test_presets_need_no_torch() -> None:
    code = "import sys; from sfumato.cli.info import info; info(['--presets']); assert 'torch' not in sys.modules"
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert len(done.stdout.splitlines()) == 1 + len(TRAINED)


# no family without a quick one
LARGE = (
    *("adm-256-unconditional", "adm-512", "adm-64-256", "adm-128-512", "edm-imagenet64", "iddpm-64-conditional"),
    *("DiT-L/2", "DiT-XL/2", "sr3-16-128", "sr3-64-256", "sr3-64-512"),
    *("imagen-64", "imagen-256-1024", "unclip-decoder", "unclip-64-256"),
)
OF_IMAGES = [name for name, published in PRESETS.items() if len(published.shape) == 3]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in OF_IMAGES]
)
@pytest.mark.parametrize("shape", [(1, 128, 128), (4, 256, 128)])
def test_their_networks_take_other_sizes_and_channels(name: str, shape: tuple[int, ...]) -> None:
    published = PRESETS[name]
    outputs = shape[0] * (1 + published.model.get("learned_variance", False))
    with torch.device("meta"):
        network = network_of(published, shape).to("meta")
        assert network(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, outputs, *shape[1:])


def test_all_but_the_prior_are_of_images() -> None:
    """The prior is of vectors, and takes other lengths."""
    assert PRESETS.keys() - OF_IMAGES == {"unclip-prior"}
    with torch.device("meta"):
        network = network_of(PRESETS["unclip-prior"], (12,)).to("meta")
        assert network(torch.zeros(1, 12), torch.zeros(1)).shape == (1, 12)
    assert recipes.preset("unclip-prior")["data"] == {"flip": False, "layout": "NC"}


def test_a_size_that_does_not_fit(unchecked: None) -> None:
    with torch.device("meta"), pytest.raises(InputError, match="8x8 is not divisible by the down-sampling of 64"):
        network_of(PRESETS["adm-512"], (1, 8, 8))


def test_averages_are_those_of_the_papers() -> None:
    """A constant decay of 0.9999; or a half-life in pictures, at most a twentieth of those so far."""
    for values in (recipes.preset("ddpm-cifar10"), recipes.ddpm()):
        decay = parse(Config, values).ema.build()
        assert decay(20_000) == decay(800_000) == 0.9999
    config = parse(Config, recipes.preset("ddpmpp-cifar10"))
    batch, decay = config.training.batch_size, config.ema.build()
    assert config.training.steps * batch == pytest.approx(200e6, rel=1e-5)
    assert config.optimizer.warmup * batch == pytest.approx(10e6, rel=1e-4)
    for step in (500, 5_000, 10_000, 100_000):
        half_life = min(500_000.0, 0.05 * step * batch)
        assert 1.0 - decay(step) == pytest.approx(1.0 - 0.5 ** (batch / half_life), rel=0.02)


def test_a_recipe_fits_its_task() -> None:
    assert recipes.named("adm-64-classifier", "folder", task="classify")["data"] == {"source": "folder", "flip": True}
    assert "low_resolution" in recipes.named("sr3-16-128", "folder", task="upscale")["conditions"]
    for name, task in (("adm-64", "classify"), ("digits", "upscale"), ("adm-64-classifier", "upscale")):
        with pytest.raises(InputError, match=f"{name} is not of the task {task}"):
            recipes.named(name, "folder", task=task)


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_classifiers_are_recipes_with_the_settings_of_their_authors(name: str) -> None:
    """The flags of guided-diffusion's README: their network counts as many parameters on the device meta."""
    config = parse(Config, recipes.named(name, "folder", task="classify"))
    assert config.classifies and parse(Config, config.model_dump(mode="json")) == config
    assert config.model.schedule.kind == "linear" and config.model.embedding == "index"
    assert config.objective.times.kind == "uniform" and config.optimizer.decay == "linear"
    # no average of the weights
    assert config.ema.build()(10**6) == 0.0
    with torch.device("meta"):
        network = config.model.build_network(CLASSIFIERS[name].shape, classes=1000)
    assert sum(p.numel() for p in network.parameters()) == TRAINED[name].parameters


def test_a_wrong_name() -> None:
    with pytest.raises(InputError, match="did you mean 'adm-256'"):
        recipes.preset("adm-25")
    with pytest.raises(InputError, match="no recipe 'ncsnp-64'; did you mean 'ncsnpp-64'"):
        recipes.named("ncsnp-64", None)


@pytest.mark.parametrize(
    "name",
    [
        *("ddpm-cifar10", "iddpm-64", "adm-64", "ncsnpp-cifar10", "edm-imagenet64", "sr3-16-128", "adm-64-256"),
        *("imagen-64", "imagen-64-256", "imagen-256-1024", "unclip-decoder", "unclip-64-256", "unclip-256-1024"),
    ],
)
def test_they_train(name: str, tmp_path: Path) -> None:
    """A narrower network, of the same kind, on grey pictures of another size, with every other setting of the paper."""
    crop = {"random_crop": 8} if PRESETS[name].crop else {}
    side = 16 if crop else 8
    images = np.random.default_rng(0).integers(0, 255, (12, side, side), dtype=np.uint8)
    tokens = np.random.default_rng(1).normal(size=(12, 5, 6)).astype(np.float32)
    mask = np.arange(5) < np.arange(12)[:, None]
    columns: dict[str, Any] = {"labels": np.arange(12) % 2, "tokens": tokens, "mask": mask}
    columns["image_embedding"] = tokens[:, 0]
    np.savez(tmp_path / "x.npz", images=images, **columns)
    attention = (1,) if PRESETS[name].model["network"].get("attention") else ()
    over = {
        "data": {"source": str(tmp_path / "x.npz"), **crop},
        "model": {"network": {"channels": (8, 8), "first": None, "attention": attention, "blocks": 1, "embedding": 16}},
        "training": {"steps": 2, "batch_size": 4, "sample_count": 0, "precision": "fp32", "channels_last": False},
        "evaluation": {"samples": 0},
        "sampling": {"steps": 2},
    }
    network = {"time_features": 8, "head_channels": None, "heads": 2}
    config = parse(Config, merge(merge(recipes.preset(name), over), {"model": {"network": network}}))
    model = train(config, run=tmp_path / "run")
    assert model.conditions.keys() == PRESETS[name].conditions.keys()
    values = {"low_resolution": np.zeros((1, 1, 1), np.float32), "text": tokens[:2], "image_embedding": tokens[:2, 0]}
    given: dict[str, Any] = {condition: value for condition, value in values.items() if condition in model.conditions}
    assert model.sample(2, **given).isfinite().all()


def test_the_published_prior_trains(tmp_path: Path) -> None:
    """A narrower one on vectors, with tokens and embeddings of captions; its analytic variance comes after that."""
    generator = np.random.default_rng(0)
    embeddings, captions = generator.normal(size=(2, 24, 12)).astype(np.float32)
    tokens = generator.normal(size=(24, 5, 6)).astype(np.float32)
    mask = np.arange(5) < np.arange(24)[:, None]
    np.savez(tmp_path / "x.npz", images=embeddings, caption_embedding=captions, tokens=tokens, mask=mask)
    over = {
        "data": {"source": str(tmp_path / "x.npz")},
        "model": {"network": {"width": 16, "depth": 2, "heads": 2}},
        "training": {"steps": 2, "batch_size": 4, "sample_count": 0, "precision": "fp32"},
        "evaluation": {"samples": 0},
        "sampling": {"steps": 4},
    }
    config = parse(Config, merge(recipes.preset("unclip-prior"), over))
    # its loss is the error of the embedding, not of the noise
    assert config.model.parameterization.kind == "x0" and config.objective.weight.kind == "output"
    assert config.optimizer.method.betas == (0.9, 0.96) and config.optimizer.method.weight_decay == 0.06
    model = train(config, run=tmp_path / "run")
    assert model.info.shape == (12,) and model.conditions.keys() == PRESETS["unclip-prior"].conditions.keys()
    given: dict[str, Any] = {"text": tokens[:2], "caption_embedding": captions[:2]}
    plain = model.sample(2, **given)
    assert plain.shape == (2, 12) and plain.isfinite().all()
    tune(model, images=20, levels=8)
    analytic = model.sample(2, solver={"kind": "ancestral", "variance": "analytic"}, **given)
    assert analytic.isfinite().all() and not torch.equal(plain, analytic)


def test_a_published_classifier_trains_and_guides(tmp_path: Path) -> None:
    """From the command line, narrower and on grey pictures of another size; it guides a model of the same schedule."""
    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(12) % 2)
    network = "--model.network.channels 8 8 --model.network.attention 1 --model.network.blocks 1"
    network += " --model.network.embedding 16 --model.network.time-features 8 --model.network.heads 2"
    network += " --model.network.head-channels None"
    short = "--training.steps 2 --training.batch-size 4 --training.precision fp32 --evaluation.samples 0 --quiet"
    classifier, model = tmp_path / "classifier", tmp_path / "model"
    asked = ["--recipe", "adm-64-classifier", "--run", str(classifier), *network.split(), *short.split()]
    assert run("train", str(tmp_path / "x.npz"), "--task", "classify", *asked) == 0
    known = sfumato.load(classifier)
    assert known.info.classes == ("0", "1") and known.config.training.steps == 2
    assert known.config.optimizer.method.weight_decay == 0.2 and known.config.data.flip
    asked = ["--recipe", "ddpm-cifar10", "--run", str(model), *network.split(), *short.split()]
    assert run("train", str(tmp_path / "x.npz"), *asked, "--training.sample-count", "0") == 0
    solver = {"kind": "ancestral", "variance": "small"}
    options: dict[str, Any] = {"steps": 3, "solver": solver, "progress": False}
    plain = sfumato.load(model).sample(2, **options)
    guided = sfumato.load(model).sample(2, guidance={"classifier": classifier, "scale": 2.0}, label="1", **options)
    assert guided.isfinite().all() and not torch.equal(plain, guided)


def test_up_samplers_scale_as_their_papers_do() -> None:
    """Anti-aliased bicubic interpolation both ways; or the mean of squares, and bilinear interpolation.

    Those of DALL-E 2, on crops of a quarter of the side, do as ADM's; the paper does not say.
    """
    for name, expected in (
        ("sr3-16-128", LowResolution(factor=8)),
        ("sr3-64-256", LowResolution(factor=4)),
        ("sr3-64-512", LowResolution(factor=8)),
        ("sr3-256-1024", LowResolution(factor=4)),
        ("adm-64-256", LowResolution(factor=4, down="area", up="bilinear")),
        ("adm-128-512", LowResolution(factor=4, down="area", up="bilinear")),
        ("unclip-64-256", LowResolution(factor=4, down="area", up="bilinear", blur=0.6)),
        ("unclip-256-1024", LowResolution(factor=4, down="area", up="bilinear")),
    ):
        assert parse(Config, recipes.preset(name)).conditions["low_resolution"].build() == expected
    assert [recipes.preset(name)["data"].get("random_crop") for name in ("unclip-64-256", "adm-64-256")] == [64, None]
    schedule = parse(Config, recipes.preset("sr3-16-128")).model.schedule.build()
    betas = torch.linspace(1e-6, 0.01, 2000, dtype=torch.float64)
    assert float(schedule(1.0).alpha) == pytest.approx(float((1.0 - betas).prod().sqrt()), rel=1e-9)
