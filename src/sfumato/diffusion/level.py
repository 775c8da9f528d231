"""The one coordinate of the package: a noise level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Scalar = float | Float[Tensor, "*batch"]
"""A number that belongs to a noise level: a Python float (one level for the whole batch, exact, no
synchronization with a device) or a tensor of shape ``(B,)`` (one level per sample)."""


def broadcast(value: Scalar, x: Tensor) -> float | Tensor:
    """``value`` made ready for arithmetic with data ``x``: shape ``(B, 1, ..., 1)``, dtype and device of ``x``."""
    if isinstance(value, float | int) or value.ndim == 0:
        return value
    if value.ndim == x.ndim and value.ndim > 1:
        # already a number per dimension, such as a learned variance
        return value.to(x.dtype).to(x.device, non_blocking=True)
    return value.to(x.dtype).to(x.device, non_blocking=True).reshape(-1, *[1] * (x.ndim - 1))


def sqrt(value: Scalar) -> Scalar:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


@dataclass(frozen=True, slots=True)
class Level:
    r"""A noise level: :math:`x = \alpha\, x_0 + \sigma\, \epsilon` with :math:`\epsilon \sim \mathcal N(0, I)`.

    Attributes:
        t: time in [0, 1]; 0 is the data, 1 is the noise.
        alpha: the scale of the data, :math:`\sqrt{\bar\alpha}` in the notation of DDPM.
        sigma: the standard deviation of the noise, :math:`\sqrt{1 - \bar\alpha}` in DDPM; 0 at ``t = 0``.

    The three are either Python floats or float64 tensors of one shape, ``(B,)`` for a level per sample or
    ``(N + 1,)`` for a grid.
    """

    t: Scalar
    alpha: Scalar
    sigma: Scalar

    @property
    def log_snr(self) -> Scalar:
        r"""The logarithm of the signal-to-noise ratio, :math:`\lambda = \log(\alpha^2 / \sigma^2)`.

        (The ratio: Kingma et al. 2021, eq. 2.)
        """
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

    def like(self, x: Tensor) -> Level:
        """The same level, ready for arithmetic with data ``x`` of shape ``(B, ...)``."""
        return Level(*(broadcast(value, x) for value in (self.t, self.alpha, self.sigma)))

    def __len__(self) -> int:
        return len(self.t) if isinstance(self.t, Tensor) and self.t.ndim else 1

    def __iter__(self) -> Iterator[Level]:
        """The levels of a grid one by one, each made of Python floats."""
        columns = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (self.t, self.alpha, self.sigma))
        for t, alpha, sigma in zip(*(column.tolist() for column in columns), strict=True):
            yield Level(t, alpha, sigma)
