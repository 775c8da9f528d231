"""Conditions of models: sampled in any batch, guided by, trained and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import sfumato
from sfumato.config import Config, parse
from sfumato.errors import InputError
from sfumato.models.data import examples
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.networks.unet import UNet
from tests.networks.weights import randomized
from tests.training.tiny import LABELLED, tiny

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"kind": "unet", "channels": (8, 16), "blocks": 1, "attention": (1,), "groups": 4},
    "dit": {"kind": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2, "time_features": 8},
    "dit in context": {"kind": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2, "conditioning": "context"},
}


def with_slots() -> UNet:
    """A network of the caller's with slots of its own, for tensors that no condition of the model makes."""
    return UNet(1, 1, channels=(8, 16), blocks=1, attention=(1,), groups=4, tokens=5, concatenated=2)


def info(conditions: dict[str, Any] | None = None) -> Info:
    return parse(Info, {"shape": (1, 8, 8), "std": 0.5, "train": 2, "conditions": conditions or {}})


def test_a_model_is_sampled_with_conditions_in_any_batch() -> None:
    model = Model.build(parse(Config, {"sampling": {"steps": 3}}), info(), network=with_slots())
    randomized(model.denoiser)
    cond = {"tokens": torch.randn(5, 4, 5), "mask": torch.rand(5, 4) < 0.6, "channels": torch.randn(5, 2, 8, 8)}
    whole = model.sample(5, **cond)
    assert torch.allclose(model.sample(5, **cond, batch_size=2), whole, atol=1e-5)
    assert not torch.allclose(model.sample(5), whole, atol=1e-3)
    *_, last = model.frames(5, **cond)
    assert torch.allclose(last.x.clamp(-1, 1), whole, atol=1e-5)
    for bad in (torch.randn(4, 4, 5), torch.tensor(1.0)):
        with pytest.raises(InputError, match="a row for each of 5"):
            model.sample(5, tokens=bad)
    for name, words in (
        ("token", "did you mean 'tokens'"),
        ("level", "no condition or option 'level'"),
        ("label", "no condition"),
    ):
        with pytest.raises(InputError, match=words):
            model.sample(5, **{name: torch.zeros(5)})


def test_guidance_by_label_keeps_the_other_conditions() -> None:
    config = parse(Config, {"sampling": {"steps": 3, "guidance": {"scale": 2.0}, "precision": "fp32"}})
    classes = {"label": {"kind": "label", "drop": 0.1, "draw": "uniform", "names": ("a", "b")}}
    model = Model.build(config, info(classes), network=with_slots())
    randomized(model.denoiser)
    cond = {"tokens": torch.randn(2, 4, 5), "mask": torch.rand(2, 4) < 0.6, "channels": torch.randn(2, 2, 8, 8)}
    denoise, levels, _ = model.sampler()
    level, x, labels = list(levels)[1], torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    found = denoise(x, level, label=labels, **cond).x0
    with_label, without = (model.denoiser(x, level, label=given, **cond).x0 for given in (labels, labels * 0 - 1))
    assert not torch.allclose(with_label, without, atol=1e-3)
    assert torch.allclose(found, without + 2.0 * (with_label - without), atol=1e-4)
    assert model.sample(2, label=1, **cond).shape == (2, 1, 8, 8)
    # without a label the classes take turns, of a model that knows no frequencies too
    assert torch.equal(model.sample(2, **cond), model.sample(2, label=labels, **cond))


def test_what_was_never_dropped_must_be_there() -> None:
    """Of a model without a learned null, in sampling and in likelihoods; the slots of its network stay optional."""
    classes = {"label": {"kind": "label", "drop": 0.0, "draw": "uniform", "names": ("a", "b")}}
    model = Model.build(parse(Config, {"sampling": {"steps": 2}}), info(classes), network=with_slots())
    randomized(model.denoiser)
    for none in (-1, "-1", None, [0, -1]):
        with pytest.raises(InputError, match=r"'label' was never dropped in training .*conditions\.label\.drop 0\.1"):
            model.sample(2, label=none)
    assert model.sample(2).shape == model.sample(2, label="b").shape == (2, 1, 8, 8)
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(InputError, match="'label' was never dropped"):
        sfumato.bits_per_dim(model, images, bins=3, flow=False, steps=2)
    found = sfumato.bits_per_dim(model, images, bins=3, flow=False, steps=2, label=1).bound
    assert found is not None and bool(found.total.isfinite().all())


@pytest.mark.parametrize("network", [SMALL["unet"], SMALL["dit in context"]], ids=["unet", "dit"])
def test_labels_in_tokens_are_trained_and_come_back(tmp_path: Path, network: dict[str, Any]) -> None:
    conditions = {"label": {**LABELLED["label"], "slot": "tokens"}}
    config = tiny(conditions=conditions, model={"network": network}, training={"steps": 12})
    trained = sfumato.train(config, run=tmp_path / "run")
    loaded = sfumato.load(tmp_path / "run")
    one = loaded.sample(2, label=1)
    assert torch.equal(one, trained.sample(2, label=1)) and not torch.equal(one, loaded.sample(2, label=2))


@pytest.mark.parametrize("setting", ["tokens", "concatenated"])
def test_slots_follow_from_the_conditions_and_are_no_setting(setting: str) -> None:
    with pytest.raises(InputError, match=f"no setting 'model.network.{setting}'"):
        tiny(model={"network": {**SMALL["unet"], setting: 5}})


def test_a_condition_without_its_column_is_refused(tmp_path: Path) -> None:
    data = torch.randn(20, 1, 8, 8).clamp(-1, 1)
    with pytest.raises(InputError, match="no column 'label'"):
        sfumato.train(tiny(conditions=LABELLED), data=data, heldout=data, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:The run can't make its network")
def test_a_condition_that_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    conditions = {"label": {**LABELLED["label"], "slot": "tokens"}}
    with pytest.raises(InputError, match="fill 'tokens', which this UNet does not take"):
        sfumato.train(tiny(conditions=conditions), network=UNet(1, 1, channels=(8, 8), groups=4), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_samples_of_previews_evaluation_and_tuning_are_like_the_data(tmp_path: Path) -> None:
    """Conditions that nobody gives and that have no default come from held-out images, without a warning."""
    images = torch.rand(40, 1, 8, 8) * 2 - 1
    conditions = {
        "low": {"kind": "low_resolution", "factor": 2, "noise": 0.5, "level": 0.1, "drop": 0.0},
        "embedding": {"kind": "embedding", "drop": 0.0},
    }
    settings = tiny(
        conditions=conditions,
        training={"steps": 2, "sample_count": 3, "sample_every": 2},
        data={"holdout": 4},
        evaluation={"samples": 6},
    )
    data = {"image": images, "embedding": images.flatten(1)[:, :2]}
    model = sfumato.train(settings, data=data, run=tmp_path / "run")
    assert (tmp_path / "run/evaluation.json").exists()
    sfumato.tune(model, steps=3, noises=16, coefficients=False)
    parts, truth = examples(model, model.data[1], 6, seed=3)
    assert truth is not None and parts["low"]["level"].tolist() == pytest.approx([0.1] * 6)
    low = functional.interpolate(truth, (4, 4), mode="bicubic", antialias=True)
    noise = (parts["low"]["value"] - 0.99**0.5 * low) / 0.1
    assert 0.7 < float(noise.std()) < 1.3
    # the same whatever the part of the samples
    some, _ = examples(model, model.data[1], 2, seed=3, first=4)
    torch.testing.assert_close(some["low"]["value"], parts["low"]["value"][4:])
    assert examples(model, model.data[1], 2, given=("low",))[0].keys() == {"embedding"}
    with pytest.raises(InputError, match="parts of the condition 'low' are value and level"):
        model.sample(6, low={"value": low}, embedding=parts["embedding"])
