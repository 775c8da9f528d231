"""The distribution of a data set itself."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.oracle.base import Oracle, check_count, finite
from sfumato.errors import InputError

NEAR = 1e5
"""The ratio of the data's largest square to the variance of the noise above which the expansion of squared distances,
which is fast, would lose more than some 1e-10 nats to rounding."""

BLOCK = 2**17
"""How many differences are taken at a time: as many as a processor's cache holds."""


class EmpiricalOracle(Oracle):
    r"""The exact denoiser of a data set, :math:`q(x_0) = \frac1N \sum_n \mathcal N(x_0; y_n, h^2 I)`.

    With :math:`S = \alpha^2 h^2 + \sigma^2`, with :math:`w` the softmax of
    :math:`-\lVert x_t - \alpha y_n \rVert^2 / 2 S` and with :math:`\bar y = \sum_n w_n y_n`,

    .. math::
        E[x_0 | x_t] = \bar y + \frac{\alpha h^2}{S} (x_t - \alpha \bar y), \qquad
        \operatorname{tr} \operatorname{Cov}[x_0 | x_t] =
        \frac{\sigma^4}{S^2} \sum_n w_n \lVert y_n - \bar y \rVert^2 + D \frac{h^2 \sigma^2}{S}

    (Karras et al. 2022, app. B.3, for :math:`h = 0`.) This is the denoiser that a network with no bound to its
    capacity would learn: its samples are the data.

    Args:
        data: ``(N, *shape)``.
        std: the standard deviation :math:`h` of a kernel around each sample.

    Raises:
        InputError: if there are no data, a value is not finite, or ``std`` is negative.
    """

    def __init__(self, data: Tensor, std: float = 0.0) -> None:
        y = finite(data, "data")
        if y.ndim == 0 or len(y) == 0:
            raise InputError("An empirical distribution needs data of shape (N, *shape) with N at least 1.")
        if not 0.0 <= std < math.inf:
            raise InputError(f"The standard deviation of a kernel must be at least 0 and finite; got {std}.")
        super().__init__(tuple(y.shape[1:]))
        y = y.reshape(len(y), self.dimensions)
        self.std = float(std)
        # distances are differences of squares, which are best small
        self._centre = y.mean(0)
        self._data: Float64[Tensor, "data dims"] = y - self._centre
        self._squares = self._data.square().sum(1)
        self._largest = float(self._squares.max())

    @property
    def rows_at_once(self) -> int:
        return max(1, self.elements // max(len(self._data), self.dimensions))

    @property
    def device(self) -> torch.device:
        return self._data.device

    @property
    def no_density(self) -> str | None:
        return None if self.std > 0.0 else "An empirical distribution is a sum of points without density (std = 0)"

    def log_prob_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> Float64[Tensor, "rows"]:
        variance = self._variance(alpha, sigma)
        logits = self._distances(self._centred(x, alpha), alpha, variance) / (-2.0 * variance[:, None])
        norm = math.log(len(self._data)) + 0.5 * self.dimensions * (2.0 * math.pi * variance).log()
        return logits.logsumexp(1) - norm

    def posterior_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> tuple[Float64[Tensor, "rows dims"], Float64[Tensor, "rows dims"]]:
        variance, z = self._variance(alpha, sigma), self._centred(x, alpha)
        nearest = self._weights(self._distances(z, alpha, variance), variance) @ self._data
        apart = z - alpha[:, None] * nearest
        x0 = self._centre + nearest + (alpha * self.std**2 / variance)[:, None] * apart
        return x0, (sigma / variance)[:, None] * apart

    def trace_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> Float64[Tensor, "rows"]:
        variance, z = self._variance(alpha, sigma), self._centred(x, alpha)
        distances = self._distances(z, alpha, variance)
        weights = self._weights(distances, variance)
        nearest = weights @ self._data
        apart = z - alpha[:, None] * nearest
        # the spread of the data under the weights: by the data far from them, by what is left of x near them,
        # where the other difference would cancel
        far = weights @ self._squares - nearest.square().sum(1)
        near = ((weights * distances).sum(1) - apart.square().sum(1)) / alpha.square().clamp(min=1e-300)
        spread = torch.where(self._is_near(alpha, variance), near, far).clamp(min=0.0)
        noise = sigma.square() / variance
        return noise.square() * spread + self.dimensions * self.std**2 * noise

    def sample(
        self, count: int, seed: int, *, first: int = 0, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "batch *shape"]:
        check_count(count, first)
        index = (random.uniform(seed, "oracle component", first, count) * len(self._data)).long().to(self.device)
        rows = self._centre + self._data[index]
        if self.std > 0.0:
            noise = random.normal(seed, "oracle", first, count, (self.dimensions,))
            rows = rows + self.std * noise.to(self.device, torch.float64)
        return rows.to(dtype).reshape(count, *self.shape)

    def _variance(self, alpha: Tensor, sigma: Tensor) -> Float64[Tensor, "levels"]:
        return (alpha * self.std).square() + sigma.square()

    def _weights(self, distances: Tensor, variance: Tensor) -> Float64[Tensor, "rows data"]:
        return (distances / (-2.0 * variance[:, None])).softmax(1)

    def _centred(self, x: Tensor, alpha: Tensor) -> Float64[Tensor, "rows dims"]:
        return x - alpha[:, None] * self._centre

    def _is_near(self, alpha: Tensor, variance: Tensor) -> Tensor:
        return alpha.square() * self._largest > NEAR * variance

    def _distances(self, z: Tensor, alpha: Tensor, variance: Tensor) -> Float64[Tensor, "rows data"]:
        r""":math:`\lVert x_t - \alpha y_n \rVert^2`, for all data."""
        scale = alpha[:, None]
        if not bool(self._is_near(alpha, variance).any()):
            cross = z @ self._data.mT
            return z.square().sum(1, keepdim=True) - 2.0 * scale * cross + scale.square() * self._squares
        at_once = max(1, min(self.elements, BLOCK) // (max(1, len(z)) * self.dimensions))
        parts = [(z[:, None] - scale[..., None] * y).square().sum(2) for y in self._data.split(at_once)]
        return torch.cat(parts, 1)
