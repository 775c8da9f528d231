"""The variational bound on the likelihood of quantized data, term by term, on any grid of levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.gaussian import diffuse, posterior_coefficients
from sfumato.diffusion.level import Data, Level, broadcast, float64
from sfumato.diffusion.variance import ReverseVariance, floor, small
from sfumato.errors import InputError

Number = float | Tensor


def gaussian_kl(mean_1: Number, variance_1: Number, mean_2: Number, variance_2: Number) -> Float64[Tensor, "*shape"]:
    r"""The Kullback-Leibler divergence of two normal distributions in nats, elementwise and in float64.

    :math:`\tfrac12 \left( \frac{v_1}{v_2} - 1 - \log \frac{v_1}{v_2} + \frac{(\mu_1 - \mu_2)^2}{v_2} \right)`
    """
    m1, v1, m2, v2 = (float64(value) for value in (mean_1, variance_1, mean_2, variance_2))
    ratio = v1 / v2
    return 0.5 * (ratio - 1.0 - ratio.log() + (m1 - m2).square() / v2)


def discretized_gaussian(
    x0: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], variance: float | Tensor, bins: int = 256
) -> Float64[Tensor, "*shape"]:
    r"""The log-probability in nats of a bin under a normal distribution, elementwise (Ho et al. 2020, eq. 13).

    :math:`\log \int_{x_0 - w / 2}^{x_0 + w / 2} \mathcal N(x; \mu, v)\, dx` for the ``n`` values
    :math:`-1, -1 + w, \dots, 1`, where the first bin starts at :math:`-\infty` and the last one ends at :math:`\infty`.
    It is differentiable, in float64 and exact in the tails: no probability is ever rounded to 0.
    """
    half = 1.0 / (bins - 1)
    x, centre = x0.double(), mean.double()
    one_over_std = torch.as_tensor(variance, dtype=torch.float64, device=mean.device).rsqrt()
    lower, upper = (x - half - centre) * one_over_std, (x + half - centre) * one_over_std
    # far enough to act as infinity, but finite so that gradients are finite
    lower = torch.where(x < half - 1.0, -1e10, lower)
    upper = torch.where(x > 1.0 - half, 1e10, upper)
    # bins in the upper tail are mirrored: differences of probabilities near 0 are exact, differences near 1 are not
    mirror = lower > 0.0
    lower, upper = torch.where(mirror, -upper, lower), torch.where(mirror, -lower, upper)
    top = torch.special.log_ndtr(upper)
    gap = (top - torch.special.log_ndtr(lower)).clamp(min=1e-300)
    return top + (-torch.expm1(-gap)).log()


def quantized(x0: Data, bins: int = 256) -> Float64[Tensor, "batch *shape"]:
    """The data in float64, snapped exactly to the grid of ``bins`` values from -1 to 1."""
    if bins < 2:
        raise InputError(f"Quantized data have at least 2 values; got bins={bins}.")
    position = (x0.double() + 1.0) * (0.5 * (bins - 1))
    whole = position.round()
    # the tolerance covers how far rounding to float32 moves a value off the grid
    near = (position - whole).abs() <= 1e-3
    if not bool((near & (whole >= 0.0) & (whole <= bins - 1.0)).all()):
        raise InputError(
            f"A bound in bits needs data on the grid of {bins} values from -1 to 1 (8-bit images are x / 127.5 - 1); "
            f"these span [{float(x0.min()):.4g}, {float(x0.max()):.4g}]: quantize them, or pass the number of values "
            "they have as bins=."
        )
    return whole * (2.0 / (bins - 1)) - 1.0


def prior_variance(level: Level) -> float:
    r"""The variance of the prior :math:`p(x_T) = \mathcal N(0, v I)` at the first level of a grid.

    1 where :math:`\alpha^2 + \sigma^2 = 1` (Ho et al. 2020), else :math:`\sigma^2` (Y. Song et al. 2021, app. C).
    """
    alpha, sigma = float(level.alpha), float(level.sigma)
    return 1.0 if abs(alpha * alpha + sigma * sigma - 1.0) < 1e-6 else sigma * sigma


def mean_and_error(values: Float[Tensor, "batch"]) -> tuple[float, float]:
    r"""The mean over images and its standard error :math:`s / \sqrt B`; for a single image the error is NaN."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


@dataclass(frozen=True, eq=False)
class Bound:
    r"""The terms of a variational bound, in bits per dimension, for each image.

    :math:`-\log_2 p_\theta(x_0) / D \le L_T + \sum_{t > 1} L_{t-1} + L_0` (Ho et al. 2020, eq. 5): the prior term, the
    ``N - 1`` steps between noisy levels in the order of the grid, and the decoder term. With randomly drawn steps, the
    step terms are unbiased estimates, most of them 0.
    """

    levels: Level
    prior: Float64[Tensor, "batch"]
    steps: Float64[Tensor, "batch steps"]
    decoder: Float64[Tensor, "batch"]

    @property
    def total(self) -> Float64[Tensor, "batch"]:
        return self.prior + self.steps.sum(1) + self.decoder

    @property
    def mean(self) -> float:
        return mean_and_error(self.total)[0]

    @property
    def standard_error(self) -> float:
        return mean_and_error(self.total)[1]

    @classmethod
    def join(cls, parts: Sequence[Bound]) -> Bound:
        """Concatenate the bounds of several batches on the same grid, on the CPU."""
        columns = zip(*((part.prior, part.steps, part.decoder) for part in parts), strict=True)
        prior, steps, decoder = (torch.cat(list(column)).cpu() for column in columns)
        return cls(parts[0].levels, prior, steps, decoder)


def variational_bound(
    denoiser: Denoise,
    x0: Data,
    levels: Level,
    variance: ReverseVariance = small,
    *,
    bins: int = 256,
    seed: int = 0,
    first: int = 0,
    draws: int | None = None,
    **cond: Tensor,
) -> Bound:
    r"""The variational bound of quantized data on any grid of levels (Ho et al. 2020, eqs. 5 and 13).

    For neighbours ``t``, ``s`` of the grid and :math:`p_\theta(x_s | x_t) = \mathcal N(\tilde\mu(x_t, \hat x_0), v I)`,

    .. math::
        L_T = D_{KL}(q(x_T | x_0) \Vert p(x_T)), \quad
        L_{t-1} = D_{KL}(q(x_s | x_t, x_0) \Vert p_\theta(x_s | x_t)), \quad
        L_0 = -\log p_\theta(x_0 | x_1)

    with the prior of :func:`prior_variance`. The decoder is :func:`discretized_gaussian`, with :func:`floor` as its
    variance where ``variance`` gives 0. Each term is estimated with one noise sample, which depends only on the seed,
    the image and the step.

    Args:
        x0: data on the grid of ``bins`` values from -1 to 1 (256 for 8-bit images).
        variance: the variance of the reverse process, positive before the last step.
        first: the index of the first image, so that different batches of a data set get different noise.
        draws: estimate the sum over the steps from this many random steps per image, one from each of as many equal
            parts of the grid.
    """
    if draws is not None and draws < 1:
        raise InputError(f"A Monte-Carlo estimate needs at least 1 random step per image; got {draws}.")
    exact, grid = quantized(x0, bins), list(levels)
    if len(grid) < 2 or grid[-1].sigma != 0.0:
        raise InputError("A bound needs a grid that reaches the data: at least two levels, the last with sigma = 0.")
    _check_falling(grid)
    terms = _Terms(denoiser, x0, exact, variance, seed, first, cond)
    with torch.no_grad():
        if draws is None:
            steps = terms.steps(grid[:-1])
        else:
            count = len(grid) - 2
            steps = torch.zeros(len(x0), count, dtype=torch.float64, device=x0.device)
            u = random.uniform(seed, "bound steps", first, len(x0), (draws,))
            # one step from each of ``draws`` equal parts, so that every step is equally likely
            picks = ((torch.arange(draws, dtype=torch.float64) + u) * count / draws).long().clamp(max=count - 1)
            for column in picks.unbind(1) if count else ():
                noise = torch.cat([terms.noise(index, image, 1) for image, index in enumerate(column.tolist())])
                bits = terms.step(levels[column], levels[column + 1], noise) * (count / draws)
                steps.scatter_add_(1, column[:, None].to(x0.device), bits[:, None])
        return Bound(levels, terms.prior(grid[0]), steps, terms.decoder(grid, bins))


def latent_terms(
    denoiser: Denoise,
    x0: Data,
    levels: Level,
    variance: ReverseVariance = small,
    *,
    seed: int = 0,
    first: int = 0,
    **cond: Tensor,
) -> tuple[Float64[Tensor, "batch"], Float64[Tensor, "batch steps"]]:
    r"""The terms :math:`L_T` ``(B,)`` and :math:`L_{t-1}` ``(B, N - 1)`` of ``N`` latents, in bits per dimension.

    These are the terms of :func:`variational_bound` down to the last latent; the data need not be quantized.
    """
    grid = list(levels)
    if float(grid[-1].sigma) == 0.0:
        raise InputError("A latent has noise: leave out the level of the data, sigma = 0.")
    _check_falling(grid)
    terms = _Terms(denoiser, x0, x0.double(), variance, seed, first, cond)
    with torch.no_grad():
        return terms.prior(grid[0]), terms.steps(grid)


def _check_falling(grid: list[Level]) -> None:
    snr = [float(level.log_snr) for level in grid]
    if any(math.isnan(value) for value in snr) or any(a >= b for a, b in itertools.pairwise(snr)):
        raise InputError("The grid of a bound must fall strictly from noise to the data, without repeated levels.")


@dataclass(frozen=True, slots=True)
class _Terms:
    """The terms of the bound of one batch, in bits per dimension; ``exact`` is the batch in float64."""

    denoiser: Denoise
    x0: Tensor
    exact: Tensor
    variance: ReverseVariance
    seed: int
    first: int
    cond: dict[str, Tensor]

    def noise(self, step: int, image: int = 0, count: int | None = None) -> Tensor:
        shape, count = tuple(self.x0.shape[1:]), len(self.x0) if count is None else count
        return random.normal(self.seed, "bound", self.first + image, count, shape, step=step).to(self.x0)

    def prior(self, level: Level) -> Tensor:
        alpha, sigma = float(level.alpha), float(level.sigma)
        return _bits(gaussian_kl(alpha * self.exact, sigma * sigma, 0.0, prior_variance(level)))

    def steps(self, grid: list[Level]) -> Tensor:
        """The terms of all steps in a grid of noisy levels."""
        terms = torch.zeros(len(self.x0), len(grid) - 1, dtype=torch.float64, device=self.x0.device)
        for index, (t, s) in enumerate(itertools.pairwise(grid)):
            terms[:, index] = self.step(t, s, self.noise(index))
        return terms

    def step(self, t: Level, s: Level, noise: Tensor) -> Tensor:
        estimate, variance = self._reverse(t, s, noise)
        if not bool((variance > 0.0).all()):
            raise InputError("The reverse variance is 0 between two noisy levels, which makes the bound infinite.")
        k0, _, tilde = (broadcast(k, self.exact) for k in posterior_coefficients(t, s))
        return _bits(gaussian_kl(k0 * self.exact, tilde, k0 * estimate, variance))

    def decoder(self, grid: list[Level], bins: int) -> Tensor:
        estimate, variance = self._reverse(grid[-2], grid[-1], self.noise(len(grid) - 2))
        variance = torch.where(variance > 0.0, variance, floor(grid))
        return _bits(-discretized_gaussian(self.exact, estimate, variance, bins))

    def _reverse(self, t: Level, s: Level, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The estimate of the data and the reverse variance, in float64."""
        prediction = self.denoiser(diffuse(self.x0, t, noise), t, **self.cond)
        variance = float64(broadcast(self.variance(prediction, t, s), self.exact)).to(self.exact.device)
        return prediction.x0.double(), variance


def _bits(nats: Tensor) -> Float64[Tensor, "batch"]:
    return nats.reshape(len(nats), -1).mean(1) / math.log(2.0)
