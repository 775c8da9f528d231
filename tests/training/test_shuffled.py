"""The held-out loss with the conditions of other images: whether the conditions are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.conditioning import Conditioned, Label, LowResolution, Text
from sfumato.data import Batch, Column, Dataset, Loader
from sfumato.diffusion import parameterization
from sfumato.diffusion.denoiser import Denoiser, embed_thousand
from sfumato.diffusion.schedule import ContinuousCosine
from sfumato.networks.unet import UNet
from sfumato.random import Draws
from sfumato.training.losses import Denoising
from tests.networks.weights import randomized

VALUES = torch.tensor([-0.8, -0.1, 0.3, 0.9])
COUNT = 24


def data(**columns: Column) -> Dataset:
    """Images of one value each, which the class or the caption tells."""
    classes = np.arange(COUNT) % len(VALUES)
    images = np.broadcast_to(VALUES.numpy()[classes][:, None, None, None], (COUNT, 1, 4, 4)).copy()
    words = np.array(["black", "dark grey", "light grey", "white"])[classes]
    return Dataset(images, {"label": Column(classes), "caption": Column(words), **columns})


class Told(nn.Module):
    """Says what its vector says first, whatever it sees."""

    width = 2

    def forward(self, x: Tensor, time: Tensor, vector: Tensor) -> Tensor:
        return vector[:, :1, None, None].expand_as(x)


def loss_of(network: nn.Module, conditions: dict[str, Any], shape: tuple[int, ...] = (1, 4, 4)) -> Denoising:
    inner = Conditioned(network, conditions, shape)
    return Denoising(Denoiser(inner, ContinuousCosine(), parameterization.x0, embed_thousand)).eval()


def reported(loss: Denoising, batch: Batch) -> dict[str, float]:
    return loss.report(batch, Draws(0, 0, len(batch.x0), len(batch.x0)))


def test_the_loss_of_exchanged_conditions_is_that_of_their_images() -> None:
    loss = loss_of(Told(), {"label": Label(drop=0.0, names=tuple("abcd"))})
    with torch.no_grad():
        loss.model.network.encoders["label"].table.weight[1:, 0] = VALUES
    batch = Loader(data(), 0).batch(0, COUNT)
    values = reported(loss, batch)
    # right conditions tell the image; wrong ones that of the sample before
    apart = (batch.x0 - batch.x0.roll(1, 0)).square().mean()
    assert values["heldout_loss"] == pytest.approx(0.0, abs=1e-10)
    assert values["heldout_loss shuffled"] == pytest.approx(float(apart), rel=1e-5) and apart > 0.1
    levels = [name for name in values if name.startswith("heldout_loss shuffled at log-SNR")]
    assert len(levels) == 8 and all(values[name] == pytest.approx(float(apart), rel=1e-5) for name in levels)


def test_a_text_that_is_not_used_has_no_gap() -> None:
    told = Text(width=8, heads=2, layers=1).describe(data())
    network = UNet(1, 1, channels=(8,), blocks=1, attention=(0,), groups=4, embedding=16, tokens=8)
    loss, batch = loss_of(network, {"text": told}), Loader(data(), 0).batch(0, COUNT)
    fresh = reported(loss, batch)  # whose output is zero
    for name in [name for name in fresh if "shuffled" not in name]:
        assert fresh[name.replace("heldout_loss", "heldout_loss shuffled")] == fresh[name]
    randomized(loss.model, 0.3)
    used = reported(loss, batch)
    assert abs(used["heldout_loss shuffled"] / used["heldout_loss"] - 1.0) > 1e-4


def test_what_is_exchanged_is_given_by_the_data_and_no_image() -> None:
    batch = Loader(data(low=Column(np.zeros((COUNT, 1, 2, 2), np.float32))), 0).batch(0, COUNT)

    def exchanged(count: int = COUNT, **conditions: Any) -> set[str]:
        loss = loss_of(Taking(), conditions)
        cond = {name: rows[:count] for name, rows in batch.cond.items()}
        other = loss.exchanged(Batch(batch.x0[:count], cond, 0))
        if other is None:
            return set()
        assert torch.equal(other.x0, batch.x0[:count])
        return {name for name, rows in other.cond.items() if not torch.equal(rows, cond[name])}

    label = Label(names=tuple("abcd"))
    assert exchanged() == exchanged(low=LowResolution(factor=2, channels=1)) == set()
    assert exchanged(low=LowResolution(column="low", channels=1)) == set()
    assert exchanged(low=LowResolution(column="low", channels=1), label=label) == {"label"}
    assert exchanged(label=label, text=Text(width=8, heads=2).describe(data())) == {"label", "caption"}
    assert exchanged(1, label=label) == set()


class Taking(Told):
    """Takes all that conditions give."""

    tokens, concatenated = 8, 1

    def forward(self, x: Tensor, time: Tensor, vector: Tensor, tokens: Tensor, channels: Tensor) -> Tensor:  # type: ignore[override]
        return x
