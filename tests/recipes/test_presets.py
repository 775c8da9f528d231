"""Published models as recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.interop.published import network_of

from sfumato import recipes
from sfumato.config import Config, merge, parse
from sfumato.errors import InputError
from sfumato.recipes.published import PRESETS, TRAINED
from sfumato.runs.train import train


def test_every_published_model_is_a_recipe() -> None:
    assert TRAINED.keys() == PRESETS.keys() and PRESETS.keys() <= recipes.RECIPES.keys()
    for name, published in PRESETS.items():
        values = recipes.named(name, "path/to/folder")
        assert values["model"] == published.model and values["sampling"] == published.sampling
        assert ("label" in values["conditions"]) == (published.classes > 0)
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
    code = "import sys; from sfumato.recipes.published import TRAINED; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


# no family without a quick one
LARGE = ("adm-256-unconditional", "adm-512", "edm-imagenet64", "iddpm-64-conditional", "DiT-L/2", "DiT-XL/2")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in PRESETS]
)
@pytest.mark.parametrize("shape", [(1, 64, 64), (4, 128, 64)])
def test_their_networks_take_other_sizes_and_channels(name: str, shape: tuple[int, ...]) -> None:
    model = recipes.preset(name)["model"]
    outputs = shape[0] * (1 + model.get("learned_variance", False))
    with torch.device("meta"):
        network = network_of(model, shape, 3).to("meta")
        assert network(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, outputs, *shape[1:])


def test_a_size_that_does_not_fit(unchecked: None) -> None:
    with torch.device("meta"), pytest.raises(InputError, match="8x8 is not divisible by the down-sampling of 64"):
        network_of(recipes.preset("adm-512")["model"], (1, 8, 8), 0)


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


def test_a_wrong_name() -> None:
    with pytest.raises(InputError, match="did you mean 'adm-256'"):
        recipes.preset("adm-25")
    with pytest.raises(InputError, match="no recipe 'ncsnp-64'; did you mean 'ncsnpp-64'"):
        recipes.named("ncsnp-64", None)


@pytest.mark.parametrize("name", ["ddpm-cifar10", "iddpm-64", "adm-64", "ncsnpp-cifar10", "edm-imagenet64"])
def test_they_train(name: str, tmp_path: Path) -> None:
    """A narrower network, of the same kind, on grey pictures of another size, with every other setting of the paper."""
    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(12) % 2)
    over = {
        "data": {"source": str(tmp_path / "x.npz")},
        "model": {"network": {"channels": (8, 8), "first": None, "attention": (1,), "blocks": 1, "embedding": 16}},
        "training": {"steps": 2, "batch_size": 4, "sample_count": 0, "precision": "fp32", "channels_last": False},
        "evaluation": {"samples": 0},
        "sampling": {"steps": 2},
    }
    network = {"time_features": 8, "head_channels": None, "heads": 2}
    config = parse(Config, merge(merge(recipes.preset(name), over), {"model": {"network": network}}))
    model = train(config, run=tmp_path / "run")
    assert ("label" in model.conditions) == (PRESETS[name].classes > 0)
    assert model.sample(2).isfinite().all()
