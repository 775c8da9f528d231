"""What a network meets while a model samples: the inputs to calibrate with, and the deviation of one from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.config import SamplingConfig
from sfumato.models.model import Model

MOST_STEPS = 25
"""Steps of a trajectory that is only looked at: of a sampling in a thousand, these tell the same."""

_CALIBRATION_SEED, _DEVIATION_SEED = 2**20 + 1, 2**20 + 2
"""Other images than those that people ask for, and than each other."""


@dataclass(frozen=True)
class Call:
    """One call of a network: ``network(x, time, **cond)``."""

    x: Tensor
    time: Tensor
    cond: dict[str, Tensor]


@dataclass(frozen=True)
class Deviation:
    """How far a network is from another along a trajectory of the latter, and what becomes of the images.

    Attributes:
        rms: the root mean square of the difference of their outputs, in units of that of the output.
        largest: the largest difference, in the same units.
        images_rms: the root mean square of the difference of the images, of values from -1 to 1.
        images_largest: the largest.
    """

    rms: float
    largest: float
    images_rms: float
    images_largest: float

    def __str__(self) -> str:
        return (
            f"output {self.rms:.2g} RMS, {self.largest:.2g} at most, in units of its own RMS; "
            f"images {self.images_rms:.2g} RMS, {self.images_largest:.2g} at most, of values from -1 to 1"
        )


def _short(sampling: SamplingConfig) -> SamplingConfig:
    """A few steps, of the network itself: what is measured against is fp32, and a copy of it would not be heard."""
    plain = {"steps": min(sampling.steps, MOST_STEPS), "precision": "fp32", "compile": False}
    return sampling.model_copy(update=plain)


def record(model: Model, count: int, seed: int, sampling: SamplingConfig) -> tuple[list[Call], Tensor]:
    """The calls of the network of a model while it draws ``count`` images, and the images."""
    calls: list[Call] = []

    def keep(module: nn.Module, given: tuple[Any, ...], cond: dict[str, Any]) -> None:
        x, time = given
        # steps may write over what they gave
        calls.append(Call(x.detach().clone(), time.clone(), {name: c.clone() for name, c in cond.items()}))

    hook = model.denoiser.network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        images = model.sample(count, seed=seed, sampling=_short(sampling), batch_size=count)
    finally:
        hook.remove()
    return calls, images


def calibration(model: Model, count: int = 8, sampling: SamplingConfig | None = None) -> list[Call]:
    """The inputs that ranges are taken from: those of real trajectories, from noise to images."""
    return record(model, count, _CALIBRATION_SEED, sampling or model.config.sampling.untuned())[0]


def deviation(model: Model, other: Model, count: int = 8, sampling: SamplingConfig | None = None) -> Deviation:
    """How far the network of ``other`` is from that of ``model``, on trajectories that none was calibrated with."""
    sampling = sampling or model.config.sampling.untuned()
    calls, images = record(model, count, _DEVIATION_SEED, sampling)
    ours, theirs = model.denoiser.network, other.denoiser.network
    errors: list[Tensor] = []
    size: list[Tensor] = []
    with torch.no_grad():
        for call in calls:
            expected = ours(call.x, call.time, **call.cond).double()
            errors.append(theirs(call.x, call.time, **call.cond).double() - expected)
            size.append(expected)
    error, unit = torch.cat(errors), torch.cat(size).square().mean().sqrt()
    drawn = other.sample(count, seed=_DEVIATION_SEED, sampling=_short(sampling), batch_size=count)
    change = (drawn - images).double()
    return Deviation(
        rms=float(error.square().mean().sqrt() / unit),
        largest=float(error.abs().max() / unit),
        images_rms=float(change.square().mean().sqrt()),
        images_largest=float(change.abs().max()),
    )
