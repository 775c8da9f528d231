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
    (Rahimi and Recht 2007; for noise levels, Y. Song et al. 2021). The frequencies are the same in every fresh network;
    they are stored with the weights, since those of others were drawn otherwise.

    Args:
        width: number of features, even.
        scale: the standard deviation ``s`` of the frequencies.
    """

    frequencies: Float[Tensor, "half"]

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        drawn = random.normal(0, "random Fourier features", 0, 1, (width // 2,))[0]
        self.register_buffer("frequencies", scale * drawn)

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


class TimeEmbedding(nn.Module):
    """Features of time and two linear layers with SiLU between (Ho et al. 2020, app. B).

    Args:
        features: number of features of time.
        width: width of the embedding.
        scale: the largest frequency of sinusoidal features, the standard deviation of random ones.
        kind: ``"sinusoidal"``, random ``"fourier"`` or ``"learned"`` features.
        period: the ratio of the largest frequency of sinusoidal features to the smallest.
    """

    def __init__(
        self,
        features: int,
        width: int,
        scale: float = 1.0,
        kind: TimeFeatures = "sinusoidal",
        period: float = 10_000.0,
    ) -> None:
        super().__init__()
        if kind == "sinusoidal":
            self.features = Sinusoidal(features, period, scale)
        else:
            self.features = (RandomFourier if kind == "fourier" else Learned)(features, scale)
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)

    def forward(
        self, time: Float[Tensor, "batch"], vector: Float[Tensor, "batch features"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """The embedding; ``vector`` is added to the features."""
        features = self.features(time)
        if vector is not None:
            features = features + vector
        return self.second(functional.silu(self.first(features)))
