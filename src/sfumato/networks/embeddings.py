"""Embeddings of the noise level."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato import random

TimeFeatures = Literal["sinusoidal", "fourier", "learned"]


class Sinusoidal(nn.Module):
    r"""Sinusoidal features, :math:`\cos(\omega_i t), \sin(\omega_i t)` with :math:`\omega_i = s P^{-i / n}`.

    Frequencies fall geometrically from ``s`` to almost ``s / P`` (Vaswani et al. 2017, sec. 3.5, with ``P`` = 10,000).

    Args:
        width: number of features, even.
        period: the ratio ``P`` of the largest frequency to the smallest.
        scale: the largest frequency ``s``.
    """

    frequencies: Float[Tensor, "half"]

    def __init__(self, width: int, period: float = 10_000.0, scale: float = 1.0) -> None:
        super().__init__()
        half = width // 2
        steps = torch.arange(half, dtype=torch.float32) / half
        self.register_buffer("frequencies", scale * torch.exp(-math.log(period) * steps), persistent=False)

    def forward(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        angle = time[:, None] * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class RandomFourier(nn.Module):
    r"""Random Fourier features: :math:`\cos(\omega_i t), \sin(\omega_i t)`, :math:`\omega_i \sim \mathcal N(0, s^2)`.

    Products of the features of two times, over half their number, approach :math:`\exp(-s^2 (t - t')^2 / 2)`
    (Rahimi and Recht 2007; for noise levels, Y. Song et al. 2021). The frequencies are the same in every network.

    Args:
        width: number of features, even.
        scale: the standard deviation ``s`` of the frequencies.
    """

    frequencies: Float[Tensor, "half"]

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        drawn = random.normal(0, "random Fourier features", 0, 1, (width // 2,))[0]
        self.register_buffer("frequencies", scale * drawn, persistent=False)

    def forward(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        angle = time[:, None] * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Learned(nn.Module):
    r"""Learned features of time, :math:`\cos(\omega_i t + \phi_i)` (Time2Vec, Kazemi et al. 2019).

    They start as the sinusoidal ones.

    Args:
        width: number of features, even.
        scale: the largest frequency at the start.
    """

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        frequencies = Sinusoidal(width, scale=scale).frequencies
        self.frequencies = nn.Parameter(frequencies.repeat(2))
        # sin(a) = cos(a - pi / 2)
        self.phases = nn.Parameter(torch.tensor([0.0, -0.5 * math.pi]).repeat_interleave(width // 2))

    def forward(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        return torch.cos(time[:, None] * self.frequencies + self.phases)


_FEATURES: dict[TimeFeatures, type[Sinusoidal | RandomFourier | Learned]] = {
    "sinusoidal": Sinusoidal,
    "fourier": RandomFourier,
    "learned": Learned,
}


class TimeEmbedding(nn.Module):
    """Features of time and two linear layers with SiLU between (Ho et al. 2020, app. B)."""

    def __init__(self, features: int, width: int, scale: float = 1.0, kind: TimeFeatures = "sinusoidal") -> None:
        super().__init__()
        self.features = _FEATURES[kind](features, scale=scale)
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)

    def forward(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        return self.second(functional.silu(self.first(self.features(time))))
