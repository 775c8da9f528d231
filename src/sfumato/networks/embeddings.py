"""Embeddings of the noise level."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


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


class TimeEmbedding(nn.Module):
    """Sinusoidal features and two linear layers with SiLU between (Ho et al. 2020, app. B)."""

    def __init__(self, features: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.features = Sinusoidal(features, scale=scale)
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)

    def forward(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        return self.second(functional.silu(self.first(self.features(time))))
