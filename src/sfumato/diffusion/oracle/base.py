"""What every oracle has: the interface, and the way from images at a level to rows of float64."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.parameterization import v
from sfumato.errors import InputError


class Oracle(ABC):
    r"""A distribution of data that is known at every level, and the exact denoiser that follows from it.

    An oracle is a denoiser like any other: samplers, bounds and figures take it as they take a network. To write
    one, define :meth:`log_prob_rows`, :meth:`posterior_rows` and :meth:`trace_rows` on flattened samples in float64,
    and :meth:`sample`. Everything is differentiable in ``x``. Computations are done in float64 on the device of the
    oracle's own tensors, and answers come in the dtype and on the device of ``x``.

    Args:
        shape: the shape of one sample.
    """

    elements: int = 2**22
    """About how many numbers a temporary tensor may hold; batches are cut to stay below it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dimensions = math.prod(shape)
        if self.dimensions == 0:
            raise InputError(f"An oracle needs samples of at least one dimension; got the shape {shape}.")

    @abstractmethod
    def log_prob_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> Float64[Tensor, "rows"]:
        r""":math:`\log q(x_t)` in nats; the levels are one per row or one for all."""

    @abstractmethod
    def posterior_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> tuple[Float64[Tensor, "rows dims"], Float64[Tensor, "rows dims"]]:
        r""":math:`E[x_0 | x_t]` and :math:`E[\epsilon | x_t]` at ``sigma > 0``.

        Either follows from the other, :math:`x_t = \alpha E[x_0 | x_t] + \sigma E[\epsilon | x_t]`, but the difference
        loses digits of the noise near the data, and of the data in the noise.
        """

    def combine_rows(
        self,
        x: Float64[Tensor, "rows dims"],
        alpha: Float64[Tensor, "levels"],
        sigma: Float64[Tensor, "levels"],
        k0: Float64[Tensor, "levels"],
        k_eps: Float64[Tensor, "levels"],
    ) -> Float64[Tensor, "rows dims"]:
        r""":math:`k_0 E[x_0 | x_t] + k_\epsilon E[\epsilon | x_t]`, for oracles that get it cheaper than the two."""
        x0, eps = self.posterior_rows(x, alpha, sigma)
        return k0[:, None] * x0 + k_eps[:, None] * eps

    @abstractmethod
    def trace_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> Float64[Tensor, "rows"]:
        r""":math:`\operatorname{tr} \operatorname{Cov}[x_0 | x_t]` at ``sigma > 0``."""

    @abstractmethod
    def sample(
        self, count: int, seed: int, *, first: int = 0, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "batch *shape"]:
        """Samples ``first ... first + count - 1`` of a seed; sample ``i`` is the same whatever the count.

        Raises:
            InputError: if ``count`` or ``first`` is negative.
        """

    @property
    def rows_at_once(self) -> int:
        """How many rows are computed together."""
        return max(1, self.elements // self.dimensions)

    @property
    def device(self) -> torch.device:
        """Where the computations are done."""
        return torch.device("cpu")

    @property
    def no_density(self) -> str | None:
        """Why the data have no density, or None if they have one."""
        return None

    def __call__(self, x: Float[Tensor, "batch *shape"], level: Level, **cond: Tensor) -> Prediction:
        r"""The exact prediction, :math:`\hat x_0 = E[x_0 | x_t]`; conditions are ignored.

        Raises:
            InputError: at ``sigma = 0``, or if ``x`` or the level have another shape than the data.
        """
        parts = self._noisy_parts(x, level)
        # v holds both the data and the noise to rounding at every level, where either of them would lose the other
        target = torch.cat([self.combine_rows(rows, alpha, sigma, -sigma, alpha) for rows, alpha, sigma in parts])
        return Prediction(x, target.to(x).reshape(x.shape), v(level))

    def score(self, x: Float[Tensor, "batch *shape"], level: Level) -> Float[Tensor, "batch *shape"]:
        r"""The score :math:`\nabla_x \log q(x_t) = -E[\epsilon | x_t] / \sigma` (Vincent 2011).

        Raises:
            InputError: as calling the oracle does.
        """
        parts = self._noisy_parts(x, level)
        found = [self.combine_rows(rows, alpha, sigma, 0.0 * sigma, -1.0 / sigma) for rows, alpha, sigma in parts]
        return torch.cat(found).to(x).reshape(x.shape)

    def posterior_covariance_trace(self, x: Float[Tensor, "batch *shape"], level: Level) -> Float[Tensor, "batch"]:
        r"""The trace of :math:`\operatorname{Cov}[x_0 | x_t]`, the squared error that no denoiser can avoid at ``x``.

        :math:`\nabla \cdot E[x_0 | x_t] = \frac{\alpha}{\sigma^2} \operatorname{tr} \operatorname{Cov}[x_0 | x_t]`.

        Raises:
            InputError: as calling the oracle does.
        """
        return torch.cat([self.trace_rows(*part) for part in self._noisy_parts(x, level)]).to(x)

    def marginal_log_prob(self, x: Float[Tensor, "batch *shape"], level: Level) -> Float[Tensor, "batch"]:
        r"""The log-density of the diffused data, :math:`\log q(x_t) = \log \int q(x_t | x_0) q(x_0) dx_0`, in nats.

        Raises:
            InputError: at ``sigma = 0`` if the data have no density; if ``x`` or the level have another shape.
        """
        rows, alpha, sigma = self._rows(x, level)
        if self.no_density is not None and bool((sigma == 0.0).any()):
            raise InputError(f"{self.no_density}; ask for marginal_log_prob at a level with sigma > 0.")
        parts = [self.log_prob_rows(*part) for part in self._parts(rows, alpha, sigma)]
        return torch.cat(parts).to(x)

    def log_prob(self, x0: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        r"""The log-density of the data, :math:`\log q(x_0)`, in nats.

        Raises:
            InputError: if the data have no density.
        """
        return self.marginal_log_prob(x0, Level(0.0, 1.0, 0.0))

    def _noisy_parts(self, x: Tensor, level: Level) -> list[tuple[Tensor, Tensor, Tensor]]:
        rows, alpha, sigma = self._rows(x, level)
        if bool((sigma == 0.0).any()):
            raise InputError("A denoiser was called at sigma = 0; end the grid at the data without calling it there.")
        return self._parts(rows, alpha, sigma)

    def _rows(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        if tuple(x.shape[1:]) != self.shape or x.ndim == 0:
            raise InputError(f"This oracle knows samples of shape {self.shape}; got a batch of shape {tuple(x.shape)}.")
        if not x.is_floating_point():
            raise InputError(f"An oracle needs floating-point data; got {x.dtype}.")
        alpha, sigma = (
            torch.as_tensor(value, dtype=torch.float64).to(self.device).reshape(-1)
            for value in (level.alpha, level.sigma)
        )
        if not len(alpha) == len(sigma) or len(alpha) not in (1, len(x)):
            raise InputError(f"A level must be one for all or one per sample; got {len(alpha)} for {len(x)} samples.")
        return x.to(self.device, torch.float64).reshape(len(x), self.dimensions), alpha, sigma

    def _parts(self, rows: Tensor, alpha: Tensor, sigma: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        pieces = rows.split(self.rows_at_once)
        if len(alpha) != len(rows) or len(pieces) == 1:
            return [(piece, alpha, sigma) for piece in pieces]
        return list(zip(pieces, alpha.split(self.rows_at_once), sigma.split(self.rows_at_once), strict=True))


def check_count(count: int, first: int) -> None:
    """Check that the numbers of samples can be.

    Raises:
        InputError: if one is negative.
    """
    if count < 0 or first < 0:
        raise InputError(f"Samples are numbered from 0; got {count} samples from number {first}.")


def finite(values: Tensor, what: str) -> Float64[Tensor, "*shape"]:
    """``values`` as a float64 tensor.

    Raises:
        InputError: if one is NaN or infinite.
    """
    tensor = torch.as_tensor(values).detach().to(torch.float64)
    if not bool(tensor.isfinite().all()):
        raise InputError(f"The {what} of an oracle must be finite; found NaN or infinity.")
    return tensor
