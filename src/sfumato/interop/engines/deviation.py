"""The calls of a network while a model samples: for calibration, and for the deviation of another network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.config import SamplingConfig
from sfumato.models.model import Model

_MOST_STEPS = 25
"""Steps of a trajectory that is recorded: those of a sampling in a thousand say no more."""

_CALIBRATION_SEED, _DEVIATION_SEED = 2**20 + 1, 2**20 + 2
"""Other seeds than people choose, and than each other."""


@dataclass(frozen=True)
class Call:
    """One call of a network: ``network(x, time, **cond)``."""

    x: Tensor
    time: Tensor
    cond: dict[str, Tensor]


@dataclass(frozen=True)
class Deviation:
    """How far a network is from another along a trajectory of the latter, and how far the images are.

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


def _sample(model: Model, count: int, seed: int, sampling: SamplingConfig | None) -> Tensor:
    """Images in a few steps in fp32: a bf16 copy of the network would call no hooks."""
    sampling = sampling or model.config.sampling.untuned()
    plain = {"steps": min(sampling.steps, _MOST_STEPS), "precision": "fp32", "compile": False}
    return model.sample(count, seed=seed, sampling=sampling.model_copy(update=plain), batch_size=count)


def record(model: Model, count: int, seed: int, sampling: SamplingConfig | None = None) -> tuple[list[Call], Tensor]:
    """The calls of the network of a model while it samples ``count`` images, and the images."""
    calls: list[Call] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], cond: dict[str, Any]) -> None:
        x, time = inputs
        # steps may write over their inputs
        calls.append(Call(x.detach().clone(), time.clone(), {name: c.clone() for name, c in cond.items()}))

    hook = model.denoiser.network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        return calls, _sample(model, count, seed, sampling)
    finally:
        hook.remove()


def calibration(model: Model, count: int = 8, sampling: SamplingConfig | None = None) -> list[Call]:
    """The calls that ranges are taken from: those of real trajectories, from noise to images."""
    return record(model, count, _CALIBRATION_SEED, sampling)[0]


def deviation(model: Model, other: Model, count: int = 8, sampling: SamplingConfig | None = None) -> Deviation:
    """How far the network of ``other`` is from that of ``model``, on trajectories that no calibration used."""
    sampling = sampling or model.config.sampling.untuned()
    calls, images = record(model, count, _DEVIATION_SEED, sampling)
    ours, theirs = model.denoiser.network, other.denoiser.network
    with torch.no_grad():
        expected = torch.cat([ours(call.x, call.time, **call.cond).double() for call in calls])
        outputs = torch.cat([theirs(call.x, call.time, **call.cond).double() for call in calls])
    error, unit = outputs - expected, expected.square().mean().sqrt()
    change = (_sample(other, count, _DEVIATION_SEED, sampling) - images).double()
    return Deviation(
        rms=float(error.square().mean().sqrt() / unit),
        largest=float(error.abs().max() / unit),
        images_rms=float(change.square().mean().sqrt()),
        images_largest=float(change.abs().max()),
    )
