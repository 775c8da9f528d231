"""Embeddings of the noise level."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato import random
from sfumato.errors import InputError


class _Waves(nn.Module):
    """The cosines and sines of the products of time and frequencies."""

    frequencies: Float[Tensor, "half"]

    def forward(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        angle = time[:, None] * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Sinusoidal(_Waves):
    r"""Sinusoidal features, :math:`\cos(\omega_i t), \sin(\omega_i t)` with :math:`\omega_i = s P^{-i / n}`.

    Frequencies fall geometrically from the ``scale`` ``s`` to almost ``s / P``, with the ``period`` ``P``
    (Vaswani et al. 2017, sec. 3.5, with ``P`` = 10,000); ``width``, the number of features, is even.
    """

    def __init__(self, width: int, period: float = 10_000.0, scale: float = 1.0) -> None:
        super().__init__()
        steps = torch.arange(width // 2, dtype=torch.float32) / (width // 2)
        self.register_buffer("frequencies", scale * torch.exp(-math.log(period) * steps), persistent=False)


class RandomFourier(_Waves):
    r"""Random Fourier features: :math:`\cos(\omega_i t), \sin(\omega_i t)`, :math:`\omega_i \sim \mathcal N(0, s^2)`.

    Products of the features of two times, over half their number, approach :math:`\exp(-s^2 (t - t')^2 / 2)`
    (Rahimi and Recht 2007; for noise levels, Y. Song et al. 2021). The frequencies are the same in every new network;
    they are stored with the weights, since imported networks have others. ``scale`` is ``s``.
    """

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        normal = random.normal(0, "random Fourier features", 0, 1, (width // 2,))[0]
        self.register_buffer("frequencies", scale * normal)


class Learned(nn.Module):
    r"""Learned features, :math:`\cos(\omega_i t + \phi_i)` (Time2Vec, Kazemi et al. 2019), that start as sinusoidal."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(Sinusoidal(width, scale=scale).frequencies.repeat(2))
        # sin(a) = cos(a - pi / 2)
        self.phases = nn.Parameter(torch.tensor([0.0, -0.5 * math.pi]).repeat_interleave(width // 2))

    def forward(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        return torch.cos(time[:, None] * self.frequencies + self.phases)


class TimeEmbedding(nn.Module):
    """Features of time, then two linear layers with SiLU between them (Ho et al. 2020, app. B).

    ``scale`` is the largest frequency of sinusoidal and learned features, and the standard deviation of random ones.
    ``vector_in`` says what :meth:`activated` adds a vector to.
    """

    def __init__(
        self,
        features: int,
        width: int,
        scale: float = 1.0,
        kind: Literal["sinusoidal", "fourier", "learned"] = "sinusoidal",
        period: float = 10_000.0,
        vector_in: Literal["embedding", "features"] = "embedding",
    ) -> None:
        super().__init__()
        if features < 2 or features % 2 or width < 1 or scale <= 0.0 or period <= 1.0:
            raise InputError(
                "A time embedding needs an even number of time features from 2 on, a width from 1 on, a scale above 0 "
                f"and a period above 1; got {features}, {width}, {scale:g} and {period:g}."
            )
        if kind == "sinusoidal":
            self.features = Sinusoidal(features, period, scale)
        else:
            self.features = (RandomFourier if kind == "fourier" else Learned)(features, scale)
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)
        self.vector_in = vector_in
        self.vector_width = width if vector_in == "embedding" else features

    def forward(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        return self.second(functional.silu(self.first(self.features(time))))

    def activated(self, time: Float[Tensor, "batch"], vector: Tensor | None) -> Float[Tensor, "batch width"]:
        """SiLU of the embedding, where every block starts; the ``vector`` of a condition is added to it."""
        if vector is None:
            return functional.silu(self(time))
        # not len(time), which would fix the size of a batch in a graph
        if vector.shape != (time.shape[0], self.vector_width):
            expected = f"expected ({time.shape[0]}, {self.vector_width})"
            raise InputError(f"The vectors have shape {tuple(vector.shape)}; {expected}.")
        if self.vector_in == "embedding":
            return functional.silu(self(time) + vector)
        return functional.silu(self.second(functional.silu(self.first(self.features(time) + vector))))
