"""Denoisers for tests, made of the public oracles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, GaussianOracle

MEAN, STD = 0.4, 0.6


def gaussian(mean: float = MEAN, std: float = STD, shape: tuple[int, ...] = (1,)) -> GaussianOracle:
    """Data N(mean, std^2 I)."""
    centre = torch.full(shape, mean, dtype=torch.float64)
    return GaussianOracle(centre, Covariances.isotropic(torch.tensor([std * std], dtype=torch.float64), centre.numel()))


class Counted:
    """A denoiser that keeps the greatest sigma of each call."""

    def __init__(self, denoiser: Denoise) -> None:
        self.denoiser = denoiser
        self.calls: list[float] = []

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        self.calls.append(float(torch.as_tensor(level.sigma).max()))
        return self.denoiser(x, level, **cond)


def spread(level: Level, std: float = STD) -> float:
    """The standard deviation of diffused data of :func:`gaussian`."""
    return math.hypot(float(level.alpha) * std, float(level.sigma))
