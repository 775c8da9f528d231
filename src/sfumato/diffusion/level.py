"""Noise levels, the coordinate that the whole package uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# one number of a noise level: a Python float for the whole batch, or a tensor (B,) with one value per sample
Scalar = float | Float[Tensor, "*batch"]
# a batch of data, or of anything with the same shape
Data = Float[Tensor, "batch *shape"]


def broadcast(value: Scalar, x: Tensor) -> float | Tensor:
    """``value`` ready for arithmetic with data ``x``: shape ``(B, 1, ..., 1)``, dtype and device of ``x``."""
    if isinstance(value, float | int) or value.ndim == 0:
        return value
    value = value.to(x.dtype).to(x.device, non_blocking=True)
    # already of the shape of x: one number per dimension, such as a learned variance
    return value if value.ndim == x.ndim > 1 else value.reshape(-1, *[1] * (x.ndim - 1))


def sqrt(value: Scalar) -> Scalar:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def any_zero(value: Scalar) -> bool:
    return bool((value == 0.0).any()) if isinstance(value, Tensor) else value == 0.0


def float64(value: Scalar) -> Float64[Tensor, "*batch"]:
    return torch.as_tensor(value, dtype=torch.float64)


def as_given(value: Scalar, given: Scalar) -> Scalar:
    """``value`` as a tensor where ``given`` is one, else as a Python float."""
    return value if isinstance(given, Tensor) else float(value)


@dataclass(frozen=True, slots=True)
class Level:
    r"""A noise level: :math:`x = \alpha\, x_0 + \sigma\, \epsilon` with :math:`\epsilon \sim \mathcal N(0, I)`.

    The three numbers are Python floats, or float64 tensors of the same shape: ``(B,)`` for one level per sample,
    ``(N + 1,)`` for a grid, which can be iterated over, indexed (``levels[-1]``) and sliced (``levels[2:]``).

    Attributes:
        t: time in [0, 1]; 0 is the data, 1 is the noise.
        alpha: the scale of the data, :math:`\sqrt{\bar\alpha}` in the notation of DDPM.
        sigma: the standard deviation of the noise, :math:`\sqrt{1 - \bar\alpha}` in DDPM; 0 at ``t = 0``.
    """

    t: Scalar
    alpha: Scalar
    sigma: Scalar

    @property
    def log_snr(self) -> Scalar:
        r"""The log signal-to-noise ratio, :math:`\lambda = \log(\alpha^2 / \sigma^2)` (Kingma et al. 2021, eq. 2)."""
        if isinstance(self.alpha, Tensor) or isinstance(self.sigma, Tensor):
            alpha, sigma = torch.as_tensor(self.alpha), torch.as_tensor(self.sigma)
            return 2.0 * (alpha.log() - sigma.log())
        if self.sigma == 0.0:
            return math.inf
        return 2.0 * math.log(self.alpha / self.sigma) if self.alpha > 0.0 else -math.inf

    @property
    def noise_to_signal(self) -> Scalar:
        r"""The ratio :math:`\sigma / \alpha`: the ``sigma`` of EDM, in units of the data."""
        if not isinstance(self.alpha, Tensor) and self.alpha == 0.0:
            return math.inf
        return self.sigma / self.alpha

    def map(self, f: Callable[[Scalar], Scalar]) -> Level:
        """The level with ``f(t)``, ``f(alpha)`` and ``f(sigma)``."""
        return Level(f(self.t), f(self.alpha), f(self.sigma))

    def like(self, x: Tensor) -> Level:
        """This level, ready for arithmetic with data ``x`` of shape ``(B, ...)``."""
        return self.map(lambda value: broadcast(value, x))

    @staticmethod
    def cat(parts: Iterable[Level]) -> Level:
        """Join several levels and grids into one grid, in the given order."""
        columns = zip(*((part.t, part.alpha, part.sigma) for part in parts), strict=True)
        return Level(*(torch.cat([float64(value).reshape(-1) for value in column]) for column in columns))

    def __len__(self) -> int:
        return len(self.t) if isinstance(self.t, Tensor) and self.t.ndim else 1

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Level:
        """One level of a grid, made of Python floats; or, for a slice, a list or a mask, a part of the grid."""
        part = self.map(lambda value: float64(value).reshape(-1)[index])
        return part.map(float) if isinstance(index, int) else part

    def __iter__(self) -> Iterator[Level]:
        """The levels of a grid one by one, each made of Python floats."""
        yield from map(Level, *(float64(value).reshape(-1).tolist() for value in (self.t, self.alpha, self.sigma)))
