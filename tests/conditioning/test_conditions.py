"""Each condition: the facts it takes of the data, what a person can give, what is sampled when nobody gives any."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.conditioning import Embedding, Label, LowResolution, Tokens
from sfumato.conditioning.base import given_tensors
from sfumato.data import Column, Dataset
from sfumato.errors import InputError
from sfumato.random import Draws
from tests.conditioning.test_network import CONDITIONS, data

LABEL = Label(names=("cat", "dog", "emu"), frequencies=(0.5, 0.25, 0.25))


@pytest.mark.parametrize("name", CONDITIONS)
def test_facts_of_the_data_survive_json(name: str) -> None:
    condition = CONDITIONS[name].describe(data())
    stored = json.loads(json.dumps(asdict(condition)))
    again = type(condition)(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
    assert again == condition and again.describe(data()) == condition


def test_a_label_knows_the_names_and_frequencies() -> None:
    dataset = Dataset(np.zeros((4, 1, 2), np.uint8), {"label": Column(np.array([0, 2, 2, 1]))})
    label = Label().describe(dataset)
    assert label.names == ("0", "1", "2") and label.frequencies == (0.25, 0.25, 0.5)
    assert Label(names=("a", "b", "c", "d")).describe(dataset).frequencies[3] == 0.0
    with pytest.raises(InputError, match="no name among 2"):
        Label(names=("a", "b")).describe(dataset)
    with pytest.raises(InputError, match="did you mean 'label'"):
        Label(column="labels").describe(dataset)
    for values in (np.array([0.5, 1.0, 1.0, 1.0]), np.array([-1, 0, 0, 0]), np.zeros((4, 2), np.int64)):
        with pytest.raises(InputError, match="holds no classes"):
            Label().describe(Dataset(np.zeros((4, 1, 2), np.uint8), {"label": Column(values)}))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("dog", [1, 1]),
        (2, [2, 2]),
        (-1, [-1, -1]),
        (["emu", "cat"], [2, 0]),
        (["emu", -1], [2, -1]),
        (torch.tensor([0, 1]), [0, 1]),
        (np.array([2, 1]), [2, 1]),
    ],
    ids=str,
)
def test_labels_as_people_give_them(given: Any, expected: list[int]) -> None:
    assert LABEL.given(given, 2)["value"].tolist() == expected


@pytest.mark.parametrize("names", [("1", "2", "3", "10"), ("10", "1", "3", "2"), ("007", "2", "1", "10")])
def test_a_number_means_the_class_of_that_name(names: tuple[str, ...]) -> None:
    label = Label(names=names, frequencies=(0.25,) * 4)
    for name in names:
        index = names.index(name)
        for given in (name, int(name), [name], [int(name)], np.int64(int(name))):
            assert label.given(given, 1)["value"].tolist() == [index], given
    assert label.given(torch.tensor([0, 3]), 2)["value"].tolist() == [0, 3]  # the numbers of the data
    assert label.given(-1, 2)["value"].tolist() == label.given("-1", 2)["value"].tolist() == [-1, -1]
    for unknown in ("0", 0, 4, "eleven"):
        with pytest.raises(InputError, match="no class"):
            label.given(unknown, 1)


def test_a_number_counts_where_the_names_are_words() -> None:
    label = Label(names=("cat", "dog", "2"), frequencies=(0.5, 0.25, 0.25))
    assert [label.given(given, 1)["value"].item() for given in ("dog", "1", 1, "2", 2, "cat", 0)] == [
        1,
        1,
        1,
        2,
        2,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("doge", "no class 'doge'"),
        (3, "from 0 to 2"),
        ([0, 1, 2], "3 classes .* 2 images"),
        (0.5, "whole numbers"),
        (True, "whole numbers"),
    ],
    ids=str,
)
def test_labels_that_are_none(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        LABEL.given(given, 2)
    with pytest.raises(InputError, match="without labels"):
        Label().given(0, 2)


def test_classes_that_nobody_names_follow_the_data_or_take_turns() -> None:
    def default(label: Label, first: int, count: int, seed: int = 0) -> list[int]:
        parts = label.default(seed, first, count)
        assert parts is not None
        return parts["value"].tolist()

    whole = default(LABEL, 0, 400)
    assert np.bincount(whole).tolist() == pytest.approx([200, 100, 100], abs=2)
    assert default(LABEL, 100, 50) == whole[100:150] and default(LABEL, 0, 400, seed=1) != whole
    for turns in (Label(draw="uniform", names=LABEL.names), Label(names=LABEL.names)):
        assert default(turns, 2, 4) == [2, 0, 1, 2]
    assert Label().default(0, 0, 4) is None and Embedding().default(0, 0, 4) is None


def test_an_embedding_is_standardized() -> None:
    values = np.array([[1.0, 5.0], [3.0, 5.0]])
    dataset = Dataset(np.zeros((2, 1, 2), np.uint8), {"embedding": Column(values)})
    embedding = Embedding().describe(dataset)
    assert embedding.mean == (2.0, 5.0) and embedding.std == (1.0, 1.0)
    assert embedding.given([1.0, 2.0], 3)["value"].tolist() == [[1.0, 2.0]] * 3
    number = Embedding(mean=(0.0,), std=(1.0,))
    assert number.given(0.5, 2)["value"].tolist() == [[0.5], [0.5]]
    assert number.given([0.5, 1.5], 2)["value"].tolist() == [[0.5], [1.5]]
    with pytest.raises(InputError, match=r"expected \(2\) for all samples, or \(3, 2\)"):
        embedding.given(torch.zeros(3, 3), 3)
    with pytest.raises(InputError, match="no embeddings"):
        Embedding(column="words").describe(data())


def test_tokens_are_given_with_or_without_a_mask() -> None:
    tokens = Tokens(column="words", features=5)
    parts = tokens.given((torch.zeros(4, 5), torch.tensor([1, 1, 0, 0])), 2)
    assert parts["value"].shape == (2, 4, 5) and parts["mask"].tolist() == [[True, True, False, False]] * 2
    assert tokens.given(torch.zeros(2, 7, 5), 2)["mask"].all()
    with pytest.raises(InputError, match=r"\(any, 5\)"):
        tokens.given(torch.zeros(4, 6), 2)
    with pytest.raises(InputError, match=r"mask"):
        tokens.given((torch.zeros(4, 5), torch.ones(3)), 2)
    with pytest.raises(InputError, match=r"\(N, length, features\)"):
        Tokens(column="size").describe(data())


def test_padding_is_not_seen() -> None:
    encoder = Tokens(features=5).build_encoder((1, 8, 8), 6, 7)
    value, mask = torch.randn(2, 4, 5), torch.tensor([[True, True, False, False], [True] * 4])
    changed = value.clone()
    changed[0, 2:] += 1.0
    one, other = encoder(value=value, mask=mask), encoder(value=changed, mask=mask)
    assert torch.allclose(one["vector"], other["vector"]) and torch.equal(one["mask"], mask)
    assert one["tokens"].shape == (2, 4, 7)


@pytest.mark.parametrize("down", ["bicubic", "area"])
def test_a_low_resolution_keeps_what_is_coarse_and_loses_what_is_fine(down: Any) -> None:
    low = LowResolution(factor=4, down=down)
    coarse = torch.linspace(-1.0, 1.0, 32).expand(1, 1, 32, 32)
    fine = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 1, 32, 32)
    small = low.training(coarse, {}, Draws(0, 0, 1, 1))["value"]
    assert small.shape == (1, 1, 8, 8)
    assert torch.allclose(small[..., 2:6], coarse.unflatten(3, (8, 4)).mean(4)[:, :, ::4][..., 2:6], atol=1e-3)
    # anti-aliased: what the small picture can't hold is gone, not folded down
    assert float(low.training(fine, {}, Draws(0, 0, 1, 1))["value"].abs().max()) < 0.1
    encoder = low.build_encoder((1, 32, 32), 4, 4)
    large = encoder(torch.zeros(len(small), 1, 32, 32), value=small)["channels"]
    # within the error of the kernel on a ramp whose small picture has steps of a quarter
    assert float((large - coarse)[..., 8:-8].abs().max()) < 0.015


def test_noise_of_a_low_resolution_keeps_the_variance_and_says_its_level() -> None:
    low = LowResolution(factor=1, noise=0.8)
    x0 = torch.randn(4000, 1, 4, 4).sign()
    parts = low.training(x0, {}, Draws(0, 0, 4000, 64))
    level = parts["level"]
    assert float(level.min()) >= 0.0 and float(level.max()) <= 0.8
    assert float(level.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(parts["value"].var()) == pytest.approx(1.0, abs=0.02)
    s = level[:, None, None, None]
    added = (parts["value"] - (1.0 - s.square()).sqrt() * x0) / s
    assert float(added.std()) == pytest.approx(1.0, abs=0.02)


def test_low_resolutions_as_people_give_them() -> None:
    from PIL import Image

    low = LowResolution()
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
    expected = torch.from_numpy(np.moveaxis(pixels, -1, 0) / 127.5 - 1.0).float()
    for given in (Image.fromarray(pixels), np.moveaxis(pixels, -1, 0), expected):
        assert torch.allclose(low.given(given, 2)["value"], expected.expand(2, -1, -1, -1), atol=1e-6)
    with pytest.raises(InputError, match=r"\(any, any, any\)"):
        low.given(torch.zeros(3, 3), 2)
    with pytest.raises(InputError, match="sides 4 divides"):
        low.training(torch.zeros(1, 1, 6, 8), {}, Draws(0, 0, 1, 1))
    with pytest.raises(InputError, match=r"images \(C, H, W\)"):
        low.build_encoder((2, 8), 4, 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Label(drop=1.0), r"lies in \[0, 1\)"),
        (lambda: LowResolution(drop=-0.1), r"lies in \[0, 1\)"),
        (lambda: LowResolution(factor=0), "factor >= 1"),
        (lambda: LowResolution(noise=0.1, level=0.2), "level <= noise"),
        (lambda: Embedding(extra_tokens=-1), "extra_tokens >= 0"),
    ],
)
def test_options_out_of_range(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_what_a_person_gives_by_name() -> None:
    conditions = {"label": LABEL, "size": Embedding(mean=(0.0,), std=(1.0,))}
    found = given_tensors(conditions, {"size": 2.0}, 3, first=4)
    whole = LABEL.default(0, 0, 7)
    assert whole is not None and torch.equal(found["label"], whole["value"][4:])
    assert found["size"].tolist() == [[2.0]] * 3
    nothing = given_tensors(conditions, {"label": None, "size": None}, 2)
    assert nothing["label"].tolist() == [-1, -1] and bool(nothing["size"].isnan().all())
    raw = torch.zeros(2, 4, 5)
    assert given_tensors({}, {"tokens": raw}, 2, raw=("tokens",))["tokens"] is raw
    with pytest.raises(InputError, match="a row for each of 3 samples"):
        given_tensors({}, {"tokens": raw}, 3, raw=("tokens",))
    with pytest.raises(InputError, match="did you mean 'label'"):
        given_tensors(conditions, {"labels": 1}, 3)
