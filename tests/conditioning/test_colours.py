"""Colours that change places in training: what is done, what it conditions, and that samples have their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.conditioning import Colours
from sfumato.conditioning.base import altered, training_tensors
from sfumato.config.signature import signature
from sfumato.data import Column, Dataset
from sfumato.errors import InputError
from sfumato.random import Draws
from sfumato.runs.train import train
from tests.training.tiny import tiny


def test_channels_change_places_and_the_network_is_told_how() -> None:
    """The told matrix, and the identity, make the altered image of the original; all six orders come equally often."""
    conditions, x0, draws = {"hue": Colours(fraction=0.75)}, torch.rand(12_000, 3, 2, 2), Draws(3, 0, 12_000, 64)
    changed, told = altered(conditions, x0, draws), training_tensors(conditions, x0, {}, draws)["hue"]
    matrix = told.unflatten(1, (3, 3)) + torch.eye(3)
    torch.testing.assert_close(torch.einsum("bij,bjhw->bihw", matrix, x0), changed)
    counts = torch.unique(matrix.flatten(1), dim=0, return_counts=True)[1].sort().values
    # a quarter is left, and a sixth of the others
    expected = 12_000 * torch.tensor([0.125] * 5 + [0.375])
    assert ((counts - expected).abs() < 4 * expected.sqrt()).all()
    # a sample's order does not depend on those beside it
    part = Draws(3, 100, 7, 64)
    assert torch.equal(altered(conditions, x0[100:107], part), changed[100:107])


def test_images_as_they_are_have_zeros() -> None:
    colours, x0 = Colours(), torch.rand(5, 3, 2, 2)
    assert (
        not colours.evaluation(x0, {}, Draws(0, 0, 5, 5))["value"].any() and not colours.default(0, 0, 2)["value"].any()
    )
    encoder = colours.build_encoder((3, 8, 8), 8, 8)
    assert not encoder(colours.missing(2)["value"])["vector"].any()
    assert encoder(colours.given([[0.0] * 8 + [1.0]], 1)["value"])["vector"].any()
    assert torch.equal(Colours(fraction=0.0).alter(x0, Draws(0, 0, 5, 5)), x0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 8), (3,), (3, 8)], ids=str)
def test_images_without_three_channels_keep_theirs(shape: tuple[int, ...]) -> None:
    data = Dataset(np.zeros((4, *shape), np.float32))
    known = Colours().describe(data)
    assert known.fraction == 0.0
    x0, draws = torch.rand(4, *shape), Draws(0, 0, 4, 4)
    assert torch.equal(known.alter(x0, draws), x0) and not known.training(x0, {}, draws)["value"].any()
    assert Colours().describe(Dataset(np.zeros((4, 3, 8, 8), np.uint8))) == Colours()


def test_a_run_learns_with_them_and_is_sampled_without(tmp_path: Path) -> None:
    data = Dataset(np.random.default_rng(0).integers(0, 255, (1000, 3, 8, 8), dtype=np.uint8))
    options: dict[str, Any] = {"conditions": {"label": None, "colours": {"kind": "colours", "fraction": 1.0}}}
    model = train(tiny(**options, training={"steps": 2}), data=data, run=tmp_path / "run")
    assert model.conditions["colours"].summary.startswith("other colours of 100%")
    encoder: Any = model.denoiser.network.encoders["colours"]  # pyright: ignore[reportIndexIssue]
    assert encoder.linear.weight.any()
    plain = model.sample(2, seed=1)
    torch.testing.assert_close(model.sample(2, seed=1, colours=[0.0] * 9), plain)


def test_what_they_can_not_be() -> None:
    small = Dataset(np.zeros((4, 3, 8, 8), np.uint8), {"small": Column(np.zeros((4, 3, 2, 2), np.uint8))})
    with pytest.raises(InputError, match="not those of their column 'small'"):
        Colours().describe(small)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"drop": 0.1}, "never dropped"),
        ({"column": "x"}, "no column"),
        ({"fraction": 1.5}, r"lies in \[0, 1\]; got 1.5"),
    ]
    for options, words in wrong:
        with pytest.raises(InputError, match=words):
            Colours(**options)
    with pytest.raises(InputError, match=r"expected \(9\) for all samples"):
        Colours().given([1.0, 2.0], 3)


def test_what_a_base_class_says_is_the_help_of_its_flag() -> None:
    assert signature("sfumato.conditioning.colours:Colours.given").summary.startswith("The nine numbers")
    with pytest.raises(InputError, match=r"no function or class 'Colours.nothing'"):
        signature("sfumato.conditioning.colours:Colours.nothing")
