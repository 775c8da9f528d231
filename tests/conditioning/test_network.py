"""Networks with conditions: which inputs they fill, what stands for a missing one, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.conditioning import Condition, Conditioned, Embedding, Label, LowResolution, Tokens
from sfumato.conditioning.base import given_tensors, null_of, nulling, training_tensors
from sfumato.conditioning.network import filled
from sfumato.data import Column, Dataset, Loader
from sfumato.diffusion.denoiser import Denoiser, embed_thousand
from sfumato.diffusion.parameterization import v
from sfumato.diffusion.schedule import ContinuousCosine
from sfumato.errors import InputError, SfumatoWarning
from sfumato.networks.dit import DiT
from sfumato.networks.unet import UNet
from sfumato.random import Draws
from sfumato.sampling.guidance import ClassifierFree
from sfumato.training.losses import Denoising
from tests.networks.weights import randomized

SHAPE = (1, 8, 8)
NAMES = ("a", "b", "c")


def network(kind: str, **options: Any) -> nn.Module:
    if kind in ("unet", "joined"):
        options["cross"] = "joined" if kind == "joined" else "separate"
        return UNet(1, 1, (8, 16), blocks=1, attention=(1,), groups=4, **options)
    style = "context" if kind == "dit in context" else "cross"
    options = {"patch": 2, "width": 8, "depth": 1, "heads": 2, "time_features": 8, "conditioning": style, **options}
    return DiT(1, 1, (8, 8), **options)


KINDS = ("unet", "joined", "dit", "dit in context")


def data(count: int = 24) -> Dataset:
    generator = np.random.default_rng(0)
    columns = {
        "label": Column(np.arange(count) % 3, NAMES),
        "embedding": Column(generator.normal(3.0, 2.0, (count, 6)).astype(np.float32)),
        "size": Column(generator.normal(size=count)),
        "words": Column(generator.normal(size=(count, 4, 5)).astype(np.float32)),
        "seen": Column(np.arange(4) < generator.integers(1, 5, count)[:, None]),
        "small": Column(generator.integers(0, 256, (count, 1, 2, 2), dtype=np.uint8)),
    }
    return Dataset(generator.uniform(-1.0, 1.0, (count, *SHAPE)).astype(np.float32), columns, "described")


CONDITIONS: dict[str, Condition] = {
    "label": Label(drop=0.3),
    "class": Label(drop=0.3, slot="tokens"),
    "image": Embedding(drop=0.3, extra_tokens=2),
    "size": Embedding(drop=0.3, column="size"),
    "text": Tokens(drop=0.3, column="words", mask_column="seen"),
    "plain": Tokens(drop=0.3, column="words", pooling="mean"),
    "bare": Tokens(drop=0.3, column="words", pooling="none"),
    "low": LowResolution(drop=0.3, noise=0.5, level=0.2),
    "area": LowResolution(drop=0.3, factor=2, down="area", up="bilinear"),
    "small": LowResolution(drop=0.3, column="small"),
}


def described(*names: str) -> dict[str, Condition]:
    return {f"its_{name}": CONDITIONS[name].describe(data()) for name in names}


def conditioned(conditions: dict[str, Condition], kind: str = "unet", std: float = 0.3) -> Conditioned:
    needed = filled(conditions, SHAPE)
    inner = network(kind, tokens=needed.tokens, concatenated=needed.channels)
    whole = randomized(Conditioned(inner, conditions, SHAPE), std)
    assert isinstance(whole, Conditioned)
    return whole


def tensors_of(conditions: dict[str, Condition], start: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    batch = Loader(data(), 0).batch(start, count)
    return batch.x0, training_tensors(conditions, batch.x0, batch.cond, Draws(0, start, count, 16))


@pytest.mark.parametrize("name", CONDITIONS)
def test_training_takes_the_same_numbers_however_it_is_cut(name: str) -> None:
    conditions = described(name)
    _, whole = tensors_of(conditions, 8, 32)
    parts = [tensors_of(conditions, start, count)[1] for start, count in ((8, 5), (13, 1), (14, 26))]
    for key, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([part[key] for part in parts]).view_as(tensor)) or torch.allclose(
            tensor.float(), torch.cat([part[key] for part in parts]).float(), atol=1e-6, equal_nan=True
        )
        # about three in ten, all tensors of a condition together
        assert 2 <= int(_null_rows(tensor).sum()) <= 20
        assert torch.equal(_null_rows(tensor), _null_rows(whole[f"its_{name}"])) or tensor.dtype == torch.bool


def _null_rows(tensor: Tensor) -> Tensor:
    return (tensor.isnan() if tensor.is_floating_point() else tensor == null_of(tensor))[:, None].flatten(1).all(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_reaches_the_output_and_its_null_is_learned(name: str, kind: str) -> None:
    conditions = described(name)
    model = conditioned(conditions, kind)
    x, time = torch.randn(6, *SHAPE), torch.full((6,), 0.3)
    _, given = tensors_of({key: _never_dropped(c) for key, c in conditions.items()}, 0, 6)
    out = model(x, time, **given)
    shuffled = {key: tensor.roll(1, 0) for key, tensor in given.items()}
    assert float((model(x, time, **shuffled) - out).detach().abs().flatten(1).amax(1).min()) > 1e-4
    # dropped or missing is one and the same, and not the condition
    null = {key: null_of(tensor) for key, tensor in given.items()}
    without = model(x, time, **null)
    assert torch.allclose(without, model(x, time), atol=1e-5) and without.isfinite().all()
    assert float((without - out).detach().abs().flatten(1).amax(1).min()) > 1e-4
    rows = torch.tensor([True, False, True, False, False, True])
    mixed = model(x, time, **{key: null_of(tensor, rows) for key, tensor in given.items()})
    assert torch.allclose(mixed, torch.where(rows[:, None, None, None], without, out), atol=1e-5)
    # the stand-in for none has a gradient, and nothing else of the encoder is nan
    model.train()
    model(x, time, **null).square().mean().backward()
    encoder = model.encoders[f"its_{name}"]
    gradients = {key: p.grad for key, p in encoder.named_parameters() if p.grad is not None}
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    stand_ins = [g for key, g in gradients.items() if "null" in key]
    stand_ins += [gradients["table.weight"][:1]] if "table.weight" in gradients else []
    assert stand_ins and all(float(g.abs().max()) > 0.0 for g in stand_ins)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_that_was_never_dropped_has_no_null(name: str) -> None:
    """Neither None nor a null row is given to a model that has learned no stand-in; nothing given is doubtful."""
    key, kept = f"its_{name}", described(name)
    never = {key: _never_dropped(condition) for key, condition in kept.items()}
    x0, rows = Loader(data(), 0).batch(0, 3).x0, data().rows(range(3))
    parts = never[key].training(x0, rows, Draws(0, 0, 3, 3))
    one = torch.tensor([False, True, False])
    value, missing = parts["value"], null_of(parts["value"], one)
    if name in ("plain", "bare"):
        # where the data have no masks, a sample of which no token is seen is null
        value, missing = (value, parts["mask"]), (value, null_of(parts["mask"], one))
    for given in (None, missing):
        with pytest.raises(InputError, match=rf"'{key}' was never dropped .*--conditions\.{key}\.drop 0\.1"):
            given_tensors(never, {key: given}, 3)
        assert given_tensors(kept, {key: given}, 3)[key].shape[0] == 3
    assert given_tensors(never, {key: value}, 3)[key].shape[0] == 3
    if never[key].default(0, 0, 3) is None:
        with pytest.warns(SfumatoWarning, match=f"'{key}' was never dropped"):
            assert given_tensors(never, {}, 3) == {}
    else:
        assert given_tensors(never, {}, 3)[key].shape == (3,)


def test_empty_tokens_are_no_null_where_data_may_have_them() -> None:
    never = {key: _never_dropped(condition) for key, condition in described("text").items()}
    empty = torch.zeros(2, 4, 5), torch.zeros(2, 4)
    assert not given_tensors(never, {"its_text": empty}, 2)["its_text_mask"].any()


def _never_dropped(condition: Condition) -> Condition:
    other = copy.copy(condition)
    object.__setattr__(other, "drop", 0.0)
    return other


@pytest.mark.parametrize("kind", KINDS)
def test_many_conditions_together(kind: str) -> None:
    conditions = described("label", "class", "image", "text", "bare", "low", "small")
    model = conditioned(conditions, kind, 0.1)
    needed = filled(conditions, SHAPE)
    assert (needed.vector, needed.tokens, needed.channels) == (True, 128, 2)
    x0, given = tensors_of(conditions, 0, 8)
    assert set(given) == set(model.keys)
    out = model(x0, torch.zeros(8), **given)
    for name in conditions:
        keys = [key for key, owner in model.keys.items() if owner == name]
        changed = {**given, **{key: null_of(given[key]) for key in keys}}
        differs = (model(x0, torch.zeros(8), **changed) - out).abs().flatten(1).amax(1) > 1e-5
        assert torch.equal(differs, ~_null_rows(given[name])), name


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_tokens(kind: str) -> None:
    model = conditioned({"label": Label(slot="tokens", names=NAMES)}, kind)
    x, time, labels = torch.randn(3, 1, 8, 8), torch.zeros(3), torch.tensor([0, 2, -1])
    table = model.encoders["label"].table.weight
    expected = model.network(x, time, tokens=table[labels + 1][:, None])
    assert torch.allclose(model(x, time, label=labels), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conditions", [{}, {"label": Label(names=NAMES)}], ids=["alone", "with labels"])
def test_slots_are_filled_as_they_are(kind: str, conditions: dict[str, Condition]) -> None:
    whole = randomized(Conditioned(network(kind, tokens=5, concatenated=2), conditions, SHAPE))
    assert isinstance(whole, Conditioned) and set(whole.names) >= {"vector", "tokens", "mask", "channels"}
    x, time = torch.randn(2, 1, 8, 8), torch.zeros(2)
    slots = {"tokens": torch.randn(2, 4, 5), "mask": torch.rand(2, 4) < 0.6, "channels": torch.randn(2, 2, 8, 8)}
    vector = whole.encoders["label"](torch.tensor([-1, -1]))["vector"] if conditions else None
    expected = whole.network(x, time, vector=vector, **slots)
    assert torch.allclose(whole(x, time, **slots), expected, atol=1e-6)
    raw = torch.randn(2, whole.slots.vector or 0)
    more = raw if vector is None else vector + raw
    assert torch.allclose(whole(x, time, vector=raw, **slots), whole.network(x, time, vector=more, **slots), atol=1e-6)
    for without in (("tokens", "mask"), ("channels",)):
        rest = {name: given for name, given in slots.items() if name not in without}
        assert not torch.allclose(whole(x, time, **rest), expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_of_a_label_comes_before_those_that_are_given(kind: str) -> None:
    conditions = {"label": Label(slot="tokens", names=NAMES)}
    whole = randomized(Conditioned(network(kind, tokens=5), conditions, SHAPE))
    x, time, labels = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([1, 2])
    tokens, mask = torch.randn(2, 4, 5), torch.tensor([[True, False, True, False], [False] * 4])
    label = whole.encoders["label"](labels)["tokens"]  # type: ignore[index]
    seen = torch.cat([torch.ones(2, 1, dtype=torch.bool), mask], dim=1)
    expected = whole.network(x, time, tokens=torch.cat([label, tokens], dim=1), mask=seen)  # type: ignore[operator]
    assert torch.allclose(whole(x, time, label=labels, tokens=tokens, mask=mask), expected, atol=1e-6)
    # all masked: the label alone
    assert torch.allclose(expected[1], whole(x, time, label=labels)[1], atol=1e-6)


def test_the_level_of_a_low_resolution_reaches_the_output() -> None:
    model = conditioned(described("low"))
    x, picture = torch.randn(3, 1, 8, 8), torch.rand(1, 2, 2) * 2.0 - 1.0
    given = given_tensors(model.conditions, {"its_low": picture}, 3, seed=4)
    assert given["its_low"].shape == (3, 1, 2, 2) and given["its_low_level"].tolist() == pytest.approx([0.2] * 3)
    # its noise is that of the numbers of the samples, in any batch
    later = given_tensors(model.conditions, {"its_low": picture}, 2, seed=4, first=1)
    assert torch.equal(later["its_low"], given["its_low"][1:])
    other = {**given, "its_low_level": given["its_low_level"] + 0.2}
    assert not torch.allclose(model(x, torch.zeros(3), **given), model(x, torch.zeros(3), **other), atol=1e-3)


def test_guidance_goes_away_from_the_null_of_what_was_dropped() -> None:
    conditions = {**described("label", "text"), "its_low": LowResolution(drop=0.0)}
    model = conditioned(conditions)
    denoiser = Denoiser(model, ContinuousCosine(), v, embed_thousand)
    x, level = torch.randn(4, *SHAPE), ContinuousCosine()(0.5)
    values = {"its_label": ["a", "b", "c", -1], "its_text": torch.randn(4, 5), "its_low": torch.rand(1, 2, 2)}
    cond = given_tensors(conditions, values, 4)
    kept = {"its_low": cond["its_low"]}
    given, null = denoiser(x, level, **cond).eps, denoiser(x, level, **kept).eps
    for chosen, expected in (
        (nulling(conditions), null),
        (nulling(conditions, ["its_text"]), denoiser(x, level, its_label=cond["its_label"], **kept).eps),
    ):
        guided = ClassifierFree(denoiser, 3.0, null=chosen)(x, level, **cond).eps
        assert torch.allclose(guided, expected + 3.0 * (given - expected), atol=1e-4)
    with pytest.raises(InputError, match="its_low never was"):
        nulling(conditions, ["its_low"])
    with pytest.raises(InputError, match="did you mean 'its_text'"):
        nulling(conditions, ["its_tex"])


def test_conditions_are_learned() -> None:
    """A network that could not see its condition would be left with the variance of what it says."""
    generator = np.random.default_rng(0)
    label = np.arange(512) % 2
    images = np.where(label == 1, 0.7, -0.7)[:, None, None, None] + 0.05 * generator.normal(size=(512, 1, 4, 4))
    dataset = Dataset(images.astype(np.float32), {"label": Column(label)})
    conditions: dict[str, Condition] = {"label": Label(drop=0.2).describe(dataset)}
    torch.manual_seed(0)
    model = Conditioned(UNet(1, 1, (16,), blocks=1, groups=4, attention=()), conditions, (1, 4, 4))
    loss = Denoising(Denoiser(model, ContinuousCosine(), v, embed_thousand))
    assert loss.conditions == conditions
    optimizer = torch.optim.Adam(loss.parameters(), 4e-3)
    loader = Loader(dataset, 0)
    for step in range(120):
        optimizer.zero_grad()
        loss(loader.batch(64 * step, 64), Draws(0, 64 * step, 64, 64)).mean().backward()
        optimizer.step()
    # at much noise, only the label says which of the two it is
    level, x = ContinuousCosine()(0.95), torch.randn(64, 1, 4, 4)
    with torch.no_grad():
        means = [float(loss.model(x, level, label=torch.full((64,), k)).x0.mean()) for k in (0, 1, -1)]
    assert means[0] < -0.4 and means[1] > 0.4 and abs(means[2]) < 0.35


class Plain(nn.Module):
    """A network of somebody else that takes a vector."""

    width = 6

    def forward(self, x: Tensor, time: Tensor, vector: Tensor | None = None) -> Tensor:
        return x if vector is None else x + vector.sum(1)[:, None, None, None]


def test_networks_of_others_say_what_they_take() -> None:
    model = Conditioned(Plain(), described("label"), SHAPE)
    out = model(torch.zeros(2, *SHAPE), torch.zeros(2), its_label=torch.tensor([0, 1]))
    assert not torch.allclose(out[0], out[1])
    assert model.names == ("its_label", "vector")
    with pytest.raises(InputError, match="fill 'channels', which this Plain does not take"):
        Conditioned(Plain(), described("low"), SHAPE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slot", ["vector", "tokens"])
@pytest.mark.parametrize("labels", [False, True])
def test_tokens_that_do_not_fit_are_refused(kind: str, slot: Any, labels: bool, unchecked: None) -> None:
    conditions = {"label": Label(slot=slot, names=NAMES)} if labels else {}
    model = Conditioned(network(kind, tokens=5), conditions, SHAPE)
    x, time, tokens = torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, 4, 5)
    for given, words in (
        ({"tokens": tokens, "mask": torch.ones(2, 4)}, "True for the tokens that are seen"),
        ({"tokens": tokens, "mask": torch.ones(2, 5, dtype=torch.bool)}, "of shape"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "none were given"),
        ({"tokens": torch.zeros(2, 4, 6)}, "tokens have shape"),
        ({"tokens": torch.zeros(2, 5)}, "tokens have shape"),
        ({"token": tokens}, "did you mean 'tokens'"),
    ):
        with pytest.raises(InputError, match=words):
            model(x, time, **given)
    assert model(x, time, tokens=tokens.double()).dtype == torch.float32


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"clip": Label(names=NAMES)}, "can't be called 'clip'"),
        ({"two words": Label(names=NAMES)}, "can't be called"),
        ({"low": LowResolution(noise=0.1), "low_level": Label(names=NAMES)}, "tensor 'low_level'"),
        ({"low": LowResolution(), "other": LowResolution(), "third": LowResolution()}, "fill 3 channels"),
        ({"portrait": Embedding()}, "not described"),
        ({"text": Tokens()}, "not described"),
    ],
)
def test_conditions_that_do_not_go_together(conditions: dict[str, Condition], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Conditioned(network("unet", tokens=5, concatenated=2), conditions, SHAPE)


def test_part_of_a_condition_is_refused() -> None:
    model = conditioned(described("low"))
    with pytest.raises(InputError, match="given without its_low_level"):
        model(torch.zeros(1, *SHAPE), torch.zeros(1), its_low=torch.zeros(1, 1, 2, 2))
