"""The interface of oracles, and the oracle of a data set's empirical distribution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Data, Level, float64
from sfumato.diffusion.parameterization import v
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError

# flattened samples; and one number of each row's level, or one for all rows
Rows = Float64[Tensor, "rows dims"]
Levels = Float64[Tensor, "levels"]


class Oracle(ABC):
    r"""A distribution of data that is known at every level, and the exact denoiser that follows from it.

    It takes the place of a network. To write one, define the abstract methods, which work on flattened samples in
    float64. Results are differentiable in ``x`` and have its dtype and device.

    Args:
        shape: the shape of one sample.
        schedule: the noise schedule, for functions that take it from the denoiser, such as generation.
        row_size: how many numbers are computed per row; by default the size of a sample.
        device: the device the computations run on.
    """

    # about how many numbers a temporary tensor may hold; larger batches are split
    elements: int = 2**22
    # why the data have no density
    no_density: str | None = None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        schedule: Schedule | None = None,
        row_size: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.shape = shape
        self.dimensions = math.prod(shape)
        if self.dimensions == 0:
            raise InputError(f"An oracle needs samples of at least one dimension; got the shape {shape}.")
        self.schedule = schedule
        self.row_size = row_size or self.dimensions
        self.device = device or torch.device("cpu")

    @abstractmethod
    def log_prob_rows(self, x: Rows, alpha: Levels, sigma: Levels) -> Float64[Tensor, "rows"]:
        r""":math:`\log q(x_t)` in nats."""

    @abstractmethod
    def combine_rows(self, x: Rows, alpha: Levels, sigma: Levels, k0: Levels, k_eps: Levels) -> Rows:
        r""":math:`k_0 E[x_0 | x_t] + k_\epsilon E[\epsilon | x_t]` at ``sigma > 0``, as accurate as either term."""

    @abstractmethod
    def trace_rows(self, x: Rows, alpha: Levels, sigma: Levels) -> Float64[Tensor, "rows"]:
        r""":math:`\operatorname{tr} \operatorname{Cov}[x_0 | x_t]` at ``sigma > 0``."""

    @abstractmethod
    def sample(self, count: int, seed: int, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Data:
        """Samples ``first ... first + count - 1`` of a seed; sample ``i`` does not depend on the count."""

    @property
    def data_std(self) -> float:
        """The standard deviation over all values of the data, which solvers use as the scale of the data."""
        zero = torch.zeros(1, dtype=torch.float64, device=self.device)
        x, one = zero.expand(1, self.dimensions), zero + 1.0
        # pure noise says nothing about the data: its posterior is the data distribution
        mean = self.combine_rows(x, zero, one, one, zero)[0]
        variance = self.trace_rows(x, zero, one)[0] / self.dimensions + mean.var(correction=0)
        return math.sqrt(float(variance))

    def __call__(self, x: Data, level: Level, **cond: Tensor) -> Prediction:
        r"""The exact prediction, :math:`\hat x_0 = E[x_0 | x_t]`, at ``sigma > 0``; conditions are ignored."""
        # v gives both the data and the noise to rounding error at every level; computing one from the other would not
        return Prediction(x, self._combine(x, level, lambda alpha, sigma: (-sigma, alpha)), v(level))

    def score(self, x: Data, level: Level) -> Data:
        r"""The score :math:`\nabla_x \log q(x_t) = -E[\epsilon | x_t] / \sigma` (Vincent 2011)."""
        return self._combine(x, level, lambda alpha, sigma: (0.0 * sigma, -1.0 / sigma))

    def posterior_covariance_trace(self, x: Data, level: Level) -> Float[Tensor, "batch"]:
        r"""The trace of :math:`\operatorname{Cov}[x_0 | x_t]`, the least squared error of any denoiser at ``x``."""
        return torch.cat([self.trace_rows(*part) for part in self._noisy_parts(x, level)]).to(x)

    def marginal_log_prob(self, x: Data, level: Level) -> Float[Tensor, "batch"]:
        r"""The log-density of the diffused data, :math:`\log q(x_t) = \log \int q(x_t | x_0) q(x_0) dx_0`, in nats."""
        rows, alpha, sigma = self._rows(x, level)
        if self.no_density is not None and bool((sigma == 0.0).any()):
            raise InputError(f"{self.no_density}; ask for marginal_log_prob at a level with sigma > 0.")
        return torch.cat([self.log_prob_rows(*part) for part in self._parts(rows, alpha, sigma)]).to(x)

    def log_prob(self, x0: Data) -> Float[Tensor, "batch"]:
        r"""The log-density of the data, :math:`\log q(x_0)`, in nats."""
        return self.marginal_log_prob(x0, Level(0.0, 1.0, 0.0))

    def _combine(
        self, x: Tensor, level: Level, coefficients: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Tensor:
        parts = self._noisy_parts(x, level)
        rows = [self.combine_rows(*part, *coefficients(*part[1:])) for part in parts]
        return torch.cat(rows).to(x).reshape(x.shape)

    def _noisy_parts(self, x: Tensor, level: Level) -> list[tuple[Tensor, Tensor, Tensor]]:
        rows, alpha, sigma = self._rows(x, level)
        if bool((sigma == 0.0).any()):
            raise InputError("A denoiser was called at sigma = 0; end the grid at the data without calling it there.")
        return self._parts(rows, alpha, sigma)

    def _rows(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        if tuple(x.shape[1:]) != self.shape or x.ndim == 0:
            raise InputError(f"This oracle needs samples of shape {self.shape}; got a batch of shape {tuple(x.shape)}.")
        alpha, sigma = (float64(value).to(self.device).reshape(-1) for value in (level.alpha, level.sigma))
        return x.to(self.device, torch.float64).reshape(len(x), self.dimensions), alpha, sigma

    def _parts(self, rows: Tensor, alpha: Tensor, sigma: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        size = max(1, self.elements // self.row_size)
        pieces = rows.split(size)
        if len(alpha) != len(rows) or len(pieces) == 1:
            return [(piece, alpha, sigma) for piece in pieces]
        return list(zip(pieces, alpha.split(size), sigma.split(size), strict=True))


def finite(values: Tensor, what: str) -> Float64[Tensor, "*shape"]:
    """``values`` as a float64 tensor, which must be finite."""
    tensor = torch.as_tensor(values).detach().to(torch.float64)
    if not bool(tensor.isfinite().all()):
        raise InputError(f"The {what} of an oracle must be finite; found NaN or infinity.")
    return tensor


# the ratio of the data's largest square to the variance of the noise above which the expansion of squared distances,
# which is fast, would lose more than about 1e-10 nats to rounding
NEAR = 1e5
# how many differences are computed at a time: as many as fit in the cache of a CPU
BLOCK = 2**17


class EmpiricalOracle(Oracle):
    r"""The exact denoiser of a data set, :math:`q(x_0) = \frac1N \sum_n \mathcal N(x_0; y_n, h^2 I)`, ``std`` = h.

    With :math:`S = \alpha^2 h^2 + \sigma^2`, with :math:`w` the softmax of
    :math:`-\lVert x_t - \alpha y_n \rVert^2 / 2 S` and with :math:`\bar y = \sum_n w_n y_n`,

    .. math::
        E[x_0 | x_t] = \bar y + \frac{\alpha h^2}{S} (x_t - \alpha \bar y), \qquad
        \operatorname{tr} \operatorname{Cov}[x_0 | x_t] =
        \frac{\sigma^4}{S^2} \sum_n w_n \lVert y_n - \bar y \rVert^2 + D \frac{h^2 \sigma^2}{S}

    (Karras et al. 2022, app. B.3, for :math:`h = 0`). A network of unlimited capacity would learn this denoiser.
    """

    def __init__(self, data: Tensor, std: float = 0.0, *, schedule: Schedule | None = None) -> None:
        y = finite(data, "data")
        if len(y) == 0 or std < 0.0:
            raise InputError(f"An empirical distribution needs at least 1 image and std >= 0; got {len(y)} and {std}.")
        shape = tuple(y.shape[1:])
        super().__init__(shape, schedule=schedule, row_size=max(len(y), math.prod(shape)), device=y.device)
        y = y.reshape(len(y), self.dimensions)
        self.std = float(std)
        if self.std == 0.0:
            self.no_density = "An empirical distribution is a sum of points without density (std = 0)"
        # distances are computed as differences of squares, which should be small
        self._centre = y.mean(0)
        self._data: Float64[Tensor, "data dims"] = y - self._centre
        self._squares = self._data.square().sum(1)
        self._largest = float(self._squares.max())

    def log_prob_rows(self, x: Rows, alpha: Levels, sigma: Levels) -> Float64[Tensor, "rows"]:
        variance, _, distances = self._distances(x, alpha, sigma)
        logits = distances / (-2.0 * variance[:, None])
        norm = math.log(len(self._data)) + 0.5 * self.dimensions * (2.0 * math.pi * variance).log()
        return logits.logsumexp(1) - norm

    def combine_rows(self, x: Rows, alpha: Levels, sigma: Levels, k0: Levels, k_eps: Levels) -> Rows:
        variance, z, distances = self._distances(x, alpha, sigma)
        mean = (distances / (-2.0 * variance[:, None])).softmax(1) @ self._data
        difference = z - alpha[:, None] * mean
        scale = (k0 * alpha * self.std**2 + k_eps * sigma) / variance
        return k0[:, None] * (self._centre + mean) + scale[:, None] * difference

    def trace_rows(self, x: Rows, alpha: Levels, sigma: Levels) -> Float64[Tensor, "rows"]:
        variance, z, distances = self._distances(x, alpha, sigma)
        weights = (distances / (-2.0 * variance[:, None])).softmax(1)
        mean = weights @ self._data
        difference = z - alpha[:, None] * mean
        # the variance of the data under the weights: from the data where the noise is large, from the distances to x
        # where it is small and the former would cancel
        far = weights @ self._squares - mean.square().sum(1)
        near = ((weights * distances).sum(1) - difference.square().sum(1)) / alpha.square().clamp(min=1e-300)
        spread = torch.where(self._is_near(alpha, variance), near, far).clamp(min=0.0)
        noise = sigma.square() / variance
        return noise.square() * spread + self.dimensions * self.std**2 * noise

    def sample(self, count: int, seed: int, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Data:
        index = (random.uniform(seed, "oracle component", first, count) * len(self._data)).long().to(self.device)
        rows = self._centre + self._data[index]
        if self.std > 0.0:
            noise = random.normal(seed, "oracle", first, count, (self.dimensions,))
            rows = rows + self.std * noise.to(self.device, torch.float64)
        return rows.to(dtype).reshape(count, *self.shape)

    def _is_near(self, alpha: Tensor, variance: Tensor) -> Tensor:
        return alpha.square() * self._largest > NEAR * variance

    def _distances(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Levels, Rows, Float64[Tensor, "rows data"]]:
        r""":math:`S`, the centred rows, and :math:`\lVert x_t - \alpha y_n \rVert^2` for every data point."""
        variance, scale = (alpha * self.std).square() + sigma.square(), alpha[:, None]
        z = x - scale * self._centre
        if not bool(self._is_near(alpha, variance).any()):
            cross = z @ self._data.mT
            squares = z.square().sum(1, keepdim=True) - 2.0 * scale * cross + scale.square() * self._squares
            return variance, z, squares
        at_once = max(1, min(self.elements, BLOCK) // (max(1, len(z)) * self.dimensions))
        parts = [(z[:, None] - scale[..., None] * y).square().sum(2) for y in self._data.split(at_once)]
        return variance, z, torch.cat(parts, 1)
