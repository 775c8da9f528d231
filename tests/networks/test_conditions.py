"""The slots of conditions, from a configuration: labels as tokens, tokens with their mask, and channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.conditioning.encoders import Conditioned
from sfumato.config import Config, DiTConfig, UNetConfig
from sfumato.config.conditions import Slots
from sfumato.errors import InputError
from sfumato.models.model import Model
from sfumato.models.storage import Facts
from tests.networks.weights import randomized
from tests.training.tiny import tiny

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"kind": "unet", "channels": (8, 16), "blocks": 1, "attention": (1,), "groups": 4},
    "dit": {"kind": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2, "time_features": 8},
    "dit in context": {"kind": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2, "conditioning": "context"},
}


def config_of(name: str, **options: Any) -> UNetConfig | DiTConfig:
    values = {**SMALL[name], **options}
    return UNetConfig(**values) if values["kind"] == "unet" else DiTConfig(**values)


@pytest.mark.parametrize("name", SMALL)
def test_labels_are_tokens(name: str) -> None:
    network = randomized(config_of(name, tokens=5, labels_in="tokens").build((1, 8, 8), 3))
    assert isinstance(network, Conditioned)
    x, time, labels = torch.randn(3, 1, 8, 8), torch.zeros(3), torch.tensor([0, 2, -1])
    out = network(x, time, label=labels)
    table = network.encoders["label"].table.weight  # type: ignore[union-attr]
    expected = network.network(x, time, tokens=table[labels + 1][:, None])
    assert torch.allclose(out, expected, atol=1e-6)
    # the vector of time is left alone, and a missing label is the one for none
    assert torch.allclose(out[2:], network(x[2:], time[2:]), atol=1e-6)
    assert not torch.allclose(out[:1], network(x[:1], time[:1], label=torch.tensor([1])), atol=1e-3)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("classes", [0, 3])
def test_slots_are_filled_as_they_are(name: str, classes: int) -> None:
    whole = randomized(config_of(name, tokens=5, concatenated=2).build((1, 8, 8), classes))
    assert isinstance(whole, Conditioned)
    network = whole.network
    x, time = torch.randn(2, 1, 8, 8), torch.zeros(2)
    slots = {"tokens": torch.randn(2, 4, 5), "mask": torch.rand(2, 4) < 0.6, "channels": torch.randn(2, 2, 8, 8)}
    vector = whole.encoders["label"](torch.tensor([-1, -1])) if classes else None
    expected = network(x, time, vector=vector, **slots)
    assert torch.allclose(whole(x, time, **slots), expected, atol=1e-6)
    for without in (("tokens", "mask"), ("channels",)):
        rest = {name: given for name, given in slots.items() if name not in without}
        assert not torch.allclose(whole(x, time, **rest), expected, atol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_the_token_of_a_label_comes_before_those_that_are_given(name: str) -> None:
    whole = randomized(config_of(name, tokens=5, labels_in="tokens").build((1, 8, 8), 3))
    assert isinstance(whole, Conditioned)
    x, time, labels = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([1, 2])
    tokens, mask = torch.randn(2, 4, 5), torch.tensor([[True, False, True, False], [False] * 4])
    label = whole.encoders["label"](labels)
    seen = torch.cat([torch.ones(2, 1, dtype=torch.bool), mask], dim=1)
    expected = whole.network(x, time, tokens=torch.cat([label, tokens], dim=1), mask=seen)
    assert torch.allclose(whole(x, time, label=labels, tokens=tokens, mask=mask), expected, atol=1e-6)
    # all masked: the label alone
    assert torch.allclose(expected[1], whole(x, time, label=labels)[1], atol=1e-6)


def test_a_model_is_sampled_with_conditions_in_any_batch() -> None:
    config = Config.model_validate(
        {"model": {"network": {**SMALL["unet"], "tokens": 5, "concatenated": 2}}, "sampling": {"steps": 3}}
    )
    model = Model(config, Facts(shape=(1, 8, 8), std=0.5, train=2, heldout=0))
    randomized(model.denoiser)
    cond = {"tokens": torch.randn(5, 4, 5), "mask": torch.rand(5, 4) < 0.6, "channels": torch.randn(5, 2, 8, 8)}
    whole = model.sample(5, cond=cond)
    assert torch.allclose(model.sample(5, cond=cond, batch_size=2), whole, atol=1e-5)
    assert not torch.allclose(model.sample(5), whole, atol=1e-3)
    *_, last = model.frames(5, cond=cond)
    assert torch.allclose(last.x.clamp(-1, 1), whole, atol=1e-5)
    for bad in (torch.randn(4, 4, 5), torch.tensor(1.0)):
        with pytest.raises(InputError, match="with a row for each of 5 images"):
            model.sample(5, cond={"tokens": bad})
    for name, words in (
        ("token", "did you mean 'tokens'"),
        ("level", "no condition 'level'"),
        ("label", "no condition"),
    ):
        with pytest.raises(InputError, match=words):
            model.sample(5, cond={name: torch.zeros(5)})


def test_guidance_by_label_keeps_the_other_conditions() -> None:
    config = Config.model_validate(
        {
            "model": {"network": {**SMALL["unet"], "tokens": 5, "concatenated": 2}},
            "objective": {"label_dropout": 0.1},
            "sampling": {"steps": 3, "guidance": {"scale": 2.0}, "precision": "fp32", "classes": "uniform"},
        }
    )
    model = Model(config, Facts(shape=(1, 8, 8), classes=("a", "b"), std=0.5, train=2, heldout=0))
    randomized(model.denoiser)
    cond = {"tokens": torch.randn(2, 4, 5), "mask": torch.rand(2, 4) < 0.6, "channels": torch.randn(2, 2, 8, 8)}
    denoise, levels, _ = model.sampler()
    level, x, labels = next(iter(levels)), torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    found = denoise(x, level, label=labels, **cond).eps
    with_label, without = (model.denoiser(x, level, label=given, **cond).eps for given in (labels, labels * 0 - 1))
    assert torch.allclose(found, without + 2.0 * (with_label - without), atol=1e-4)
    assert model.sample(2, labels=1, cond=cond).shape == (2, 1, 8, 8)
    # without a label the classes take turns, of a model that knows no frequencies too
    assert torch.equal(model.sample(2, cond=cond), model.sample(2, labels=labels, cond=cond))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("labels_in", ["vector", "tokens"])
@pytest.mark.parametrize("classes", [0, 3])
def test_tokens_that_do_not_fit_are_refused(name: str, labels_in: str, classes: int, unchecked: None) -> None:
    network = config_of(name, tokens=5, labels_in=labels_in).build((1, 8, 8), classes)
    x, time, tokens = torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, 4, 5)
    for given, words in (
        ({"tokens": tokens, "mask": torch.ones(2, 4)}, "True for the tokens that are seen"),
        ({"tokens": tokens, "mask": torch.ones(2, 5, dtype=torch.bool)}, "The mask has shape"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "none were given"),
        ({"tokens": torch.zeros(2, 4, 6)}, "tokens have shape"),
        ({"tokens": torch.zeros(2, 5)}, "tokens have shape"),
    ):
        with pytest.raises(InputError, match=words):
            network(x, time, **given)
    assert network(x, time, tokens=tokens.double()).dtype == torch.float32


def test_labels_in_tokens_are_trained_and_come_back(tmp_path: Path) -> None:
    network = {**SMALL["unet"], "tokens": 5, "labels_in": "tokens"}
    config = tiny(data={"labels": True}, model={"network": network}, training={"steps": 12})
    trained = sfumato.train(config, run=tmp_path / "run")
    loaded = sfumato.load(tmp_path / "run")
    one = loaded.sample(2, labels=1)
    assert torch.equal(one, trained.sample(2, labels=1)) and not torch.equal(one, loaded.sample(2, labels=2))


@pytest.mark.parametrize(
    ("network", "labels", "words"),
    [
        ({"tokens": 5}, True, "network.tokens is a slot for a condition that images and labels do not fill"),
        ({"concatenated": 2}, False, "network.concatenated is a slot for a condition"),
        ({"tokens": 5, "labels_in": "tokens"}, False, "the data are without labels; set data.labels"),
        ({"labels_in": "tokens"}, True, "say how many features one has, model.network.tokens"),
    ],
)
def test_a_slot_that_nothing_fills_is_refused(
    network: dict[str, Any], labels: bool, words: str, tmp_path: Path
) -> None:
    config = tiny(data={"labels": labels}, model={"network": {**SMALL["unet"], **network}})
    assert isinstance(config.model.network, Slots)
    with pytest.raises(InputError, match=words):
        sfumato.train(config, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_condition_without_a_slot_is_refused() -> None:
    network = config_of("unet", tokens=5).build((1, 8, 8), 3)
    with pytest.raises(InputError, match="did you mean 'tokens'"):
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1), token=torch.zeros(1, 2, 5))
