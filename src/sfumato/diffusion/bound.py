"""The variational bound on the likelihood of quantized data, term by term, on any grid of levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.gaussian import diffuse, posterior_coefficients
from sfumato.diffusion.level import Level, Scalar, broadcast
from sfumato.diffusion.variance import ReverseVariance, floor, small
from sfumato.errors import InputError

_OFF_GRID = 1e-3
"""How far from a value of the grid, in bins, data may lie: the rounding of float32, not another grid."""


def gaussian_kl(
    mean_1: float | Tensor, variance_1: float | Tensor, mean_2: float | Tensor, variance_2: float | Tensor
) -> Float64[Tensor, "*shape"]:
    r"""The divergence of two normal distributions in nats, elementwise and in float64.

    .. math::
        D_{KL}(\mathcal N(\mu_1, v_1) \Vert \mathcal N(\mu_2, v_2))
        = \tfrac12 \left( \frac{v_1}{v_2} - 1 - \log \frac{v_1}{v_2} + \frac{(\mu_1 - \mu_2)^2}{v_2} \right)
    """
    m1, v1, m2, v2 = (torch.as_tensor(value, dtype=torch.float64) for value in (mean_1, variance_1, mean_2, variance_2))
    ratio = v1 / v2
    return 0.5 * (ratio - 1.0 - ratio.log() + (m1 - m2).square() / v2)


def discretized_gaussian(
    x0: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], variance: float | Tensor, bins: int = 256
) -> Float64[Tensor, "*shape"]:
    r"""The log-probability in nats of a bin under a normal distribution, elementwise (Ho et al. 2020, eq. 13).

    The values are :math:`-1, -1 + w, \dots, 1` with :math:`w = 2 / (n - 1)` for ``n`` bins, and

    .. math::
        \log P(x_0) = \log \int_{x_0 - w / 2}^{x_0 + w / 2} \mathcal N(x; \mu, v)\, dx

    where the first bin starts at :math:`-\infty` and the last one ends at :math:`\infty`, so that the
    probabilities of the bins sum to 1. It is differentiable, in float64 and exact in the tails: no probability
    is ever rounded to 0.

    Args:
        x0: values of the grid.
        mean: the mean.
        variance: positive; broadcasts against ``mean``.
        bins: the number of values, 256 for 8-bit data.
    """
    half = 1.0 / (bins - 1)
    x, centre = x0.double(), mean.double()
    one_over_std = torch.as_tensor(variance, dtype=torch.float64, device=mean.device).rsqrt()
    lower, upper = (x - half - centre) * one_over_std, (x + half - centre) * one_over_std
    # far enough to be infinite, and finite for the sake of gradients
    lower = torch.where(x < half - 1.0, -1e10, lower)
    upper = torch.where(x > 1.0 - half, 1e10, upper)
    # a bin of the upper tail is mirrored: differences of probabilities near 0 are exact, those near 1 are not
    mirror = lower > 0.0
    lower, upper = torch.where(mirror, -upper, lower), torch.where(mirror, -lower, upper)
    top = torch.special.log_ndtr(upper)
    gap = (top - torch.special.log_ndtr(lower)).clamp(min=1e-300)
    return top + (-torch.expm1(-gap)).log()


def quantized(x0: Float[Tensor, "batch *shape"], bins: int = 256) -> Float64[Tensor, "batch *shape"]:
    """The data in float64, exactly on the grid of ``bins`` values from -1 to 1.

    Raises:
        InputError: if they are empty, or a value does not lie on that grid.
    """
    if bins < 2:
        raise InputError(f"Quantized data have at least 2 values; got bins={bins}.")
    if x0.numel() == 0:
        raise InputError(f"There is no data to evaluate: its shape is {tuple(x0.shape)}.")
    position = (x0.double() + 1.0) * (0.5 * (bins - 1))
    whole = position.round()
    worst = float((position - whole).abs().max())
    inside = bool(((whole >= 0.0) & (whole <= bins - 1.0)).all())
    if not (inside and worst <= _OFF_GRID):
        span = f"span [{float(x0.min()):.4g}, {float(x0.max()):.4g}]"
        what = f"{span} and lie up to {worst:.2g} of a bin off it" if inside else span
        raise InputError(
            f"A bound in bits needs data on the grid of {bins} values from -1 to 1 (8-bit images are x / 127.5 - 1); "
            f"these {what}: quantize them, or state the number of their values with bins=."
        )
    return whole * (2.0 / (bins - 1)) - 1.0


def prior_variance(level: Level) -> float:
    r"""The variance of the prior :math:`p(x_T) = \mathcal N(0, v I)` at the first level of a grid.

    1 where the variance is preserved, :math:`\alpha^2 + \sigma^2 = 1` (Ho et al. 2020); :math:`\sigma^2` where it is
    not, as in variance-exploding schedules (Y. Song et al. 2021, app. C).
    """
    alpha, sigma = float(level.alpha), float(level.sigma)
    return 1.0 if abs(alpha * alpha + sigma * sigma - 1.0) < 1e-6 else sigma * sigma


def mean_and_error(values: Float[Tensor, "batch"]) -> tuple[float, float]:
    r"""The mean over images and its standard error :math:`s / \sqrt B`; the error of one image is not known (NaN)."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


@dataclass(frozen=True, eq=False)
class Bound:
    r"""The ledger of a variational bound: what each term costs, in bits per dimension, for each image.

    :math:`-\log_2 p_\theta(x_0) / D \le L_T + \sum_{t > 1} L_{t-1} + L_0` (Ho et al. 2020, eq. 5).

    Attributes:
        levels: the grid, ``N + 1`` levels from noise to data.
        prior: :math:`L_T`, the divergence of :math:`q(x_T | x_0)` from the prior.
        steps: the terms :math:`L_{t-1}` of the ``N - 1`` steps between noisy levels, in the order of the grid. When
            they were drawn at random, the unbiased estimates of them: most are 0, the drawn ones are scaled up.
        decoder: :math:`L_0`, the cost of the data given the last noisy level.
        draws: how many steps were drawn for each image; None when all were computed.
    """

    levels: Level
    prior: Float64[Tensor, "batch"]
    steps: Float64[Tensor, "batch steps"]
    decoder: Float64[Tensor, "batch"]
    draws: int | None = None

    @property
    def total(self) -> Float64[Tensor, "batch"]:
        """The bound for each image."""
        return self.prior + self.steps.sum(1) + self.decoder

    @property
    def mean(self) -> float:
        """The bound, averaged over images."""
        return mean_and_error(self.total)[0]

    @property
    def standard_error(self) -> float:
        """The standard error of :attr:`mean` over images."""
        return mean_and_error(self.total)[1]

    @classmethod
    def join(cls, parts: Sequence[Bound]) -> Bound:
        """The ledger of several batches on one grid, on the processor."""
        columns = zip(*((part.prior, part.steps, part.decoder) for part in parts), strict=True)
        prior, steps, decoder = (torch.cat(list(column)).cpu() for column in columns)
        return cls(parts[0].levels, prior, steps, decoder, parts[0].draws)


def variational_bound(
    denoiser: Denoise,
    x0: Float[Tensor, "batch *shape"],
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

    where the means of the two in the middle differ by :math:`k_0 (x_0 - \hat x_0)`, the prior is that of
    :func:`prior_variance`, and the last is :func:`discretized_gaussian`, with :func:`floor` as its variance
    where ``variance`` gives 0 there. Each term is estimated with one draw of the noise, which depends on
    the seed, the image and the step alone.

    Args:
        denoiser: any denoiser; it is called once per step.
        x0: data on the grid of ``bins`` values from -1 to 1.
        levels: a grid that falls from noise to the data; the full one of a discrete schedule or any other.
        variance: the variance of the reverse process, one number, one per image or one per value.
        bins: the number of values of the data, 256 for 8-bit images (17 for the digits).
        seed: which noise.
        first: the number of the first image, so that batches of a data set see fresh noise.
        draws: estimate the sum over the steps from this many of them for each image, one in each of as many equal
            parts of the grid, in place of all. The prior and the decoder are always computed, so this takes
            ``draws + 1`` calls of the denoiser. As many draws as steps give the full ledger.
        cond: conditions, passed on to the denoiser.

    Raises:
        InputError: if the data are not on that grid, the levels do not fall to the data, the variance is not positive
            before the last step, or ``draws`` is below 1.
    """
    exact = quantized(x0, bins)
    grid = list(levels)
    _check_reaches_data(grid)
    if draws is not None and draws < 1:
        raise InputError(f"A Monte-Carlo estimate needs at least 1 draw of a step for each image; got {draws}.")
    shape, count = tuple(x0.shape[1:]), len(grid) - 2

    def noise(step: int, start: int = first, number: int = len(x0)) -> Tensor:
        return _noise(seed, start, number, shape, step)

    def term(t: Level, s: Level, fresh: Tensor) -> Tensor:
        return _step(denoiser, x0, exact, t, s, variance, fresh.to(x0), cond)

    with torch.no_grad():
        steps = torch.zeros(len(x0), count, dtype=torch.float64, device=x0.device)
        if draws is None:
            steps = _steps(denoiser, x0, exact, grid[:-1], variance, seed, first, cond)
        elif count:
            chosen = _draw_steps(seed, first, len(x0), draws, count)
            for column in chosen.unbind(1):
                picks = column.tolist()
                fresh = torch.cat([noise(index, first + image, 1) for image, index in enumerate(picks)])
                bits = term(_pick(grid, picks), _pick(grid, [index + 1 for index in picks]), fresh) * (count / draws)
                steps.scatter_add_(1, column[:, None].to(x0.device), bits[:, None])
        prior = _prior(exact, grid[0])
        decoder = _decoder(denoiser, x0, exact, grid, variance, noise(count).to(x0), bins, cond)
    return Bound(levels, prior, steps, decoder, draws)


def latent_terms(
    denoiser: Denoise,
    x0: Float[Tensor, "batch *shape"],
    levels: Level,
    variance: ReverseVariance = small,
    *,
    seed: int = 0,
    first: int = 0,
    **cond: Tensor,
) -> tuple[Float64[Tensor, "batch"], Float64[Tensor, "batch steps"]]:
    r"""The terms of the bound that belong to the latents: :math:`L_T`, and :math:`L_{t-1}` of the steps between them.

    They are those of :func:`variational_bound`, number by number, without the decoder :math:`L_0`. They need no
    quantized data, and say what the latents carry of any; without a decoder they bound no likelihood.

    Args:
        denoiser: any denoiser; it is called once per step.
        x0: the data.
        levels: ``N`` levels that fall from noise to the last latent, which still has noise.
        variance: the variance of the reverse process.
        seed: which noise.
        first: the number of the first image.
        cond: conditions, passed on to the denoiser.

    Returns:
        The prior and the ``N - 1`` steps, in bits per dimension, for each image.

    Raises:
        InputError: if there are no data, the levels do not fall or reach the data, or the variance is not positive.
    """
    if x0.numel() == 0:
        raise InputError(f"There is no data to evaluate: its shape is {tuple(x0.shape)}.")
    grid, exact = list(levels), x0.double()
    if float(grid[-1].sigma) == 0.0:
        raise InputError("A latent has noise: leave the data, sigma = 0, out of these levels.")
    _check_falling(grid)
    with torch.no_grad():
        return _prior(exact, grid[0]), _steps(denoiser, x0, exact, grid, variance, seed, first, cond)


def _steps(
    denoiser: Denoise,
    x0: Tensor,
    exact: Tensor,
    grid: list[Level],
    variance: ReverseVariance,
    seed: int,
    first: int,
    cond: dict[str, Tensor],
) -> Tensor:
    """The terms of all steps of a grid of noisy levels."""
    terms = torch.zeros(len(x0), len(grid) - 1, dtype=torch.float64, device=x0.device)
    for index, (t, s) in enumerate(itertools.pairwise(grid)):
        noise = _noise(seed, first, len(x0), tuple(x0.shape[1:]), index).to(x0)
        terms[:, index] = _step(denoiser, x0, exact, t, s, variance, noise, cond)
    return terms


def _noise(seed: int, first: int, count: int, shape: tuple[int, ...], step: int) -> Tensor:
    return random.normal(seed, "bound", first, count, shape, step=step)


def _check_reaches_data(grid: list[Level]) -> None:
    sigma = [float(level.sigma) for level in grid]
    if len(grid) < 2 or sigma[-1] != 0.0:
        raise InputError(
            f"A bound needs a grid that reaches the data: at least two levels, the last with sigma = 0; this one has "
            f"{len(grid)} and ends at sigma = {sigma[-1]:.4g}."
        )
    _check_falling(grid)


def _check_falling(grid: list[Level]) -> None:
    snr = [float(level.log_snr) for level in grid]
    if any(math.isnan(value) for value in snr) or any(a >= b for a, b in itertools.pairwise(snr)):
        raise InputError("The grid of a bound must fall strictly from noise to the data, without a level repeated.")


def _draw_steps(seed: int, first: int, batch: int, draws: int, count: int) -> Int64[Tensor, "batch draws"]:
    """One step from each of ``draws`` equal parts of ``count`` steps; together they are uniform."""
    u = random.uniform(seed, "bound steps", first, batch, (draws,))
    strata = torch.arange(draws, dtype=torch.float64)
    return ((strata + u) * count / draws).long().clamp(max=count - 1)


def _pick(grid: list[Level], picks: list[int]) -> Level:
    rows = [(grid[i].t, grid[i].alpha, grid[i].sigma) for i in picks]
    t, alpha, sigma = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return Level(t, alpha, sigma)


def _bits(nats: Tensor) -> Float64[Tensor, "batch"]:
    return nats.reshape(len(nats), -1).mean(1) / math.log(2.0)


def _spread(value: Scalar, like: Tensor) -> Float64[Tensor, "..."]:
    """A variance as float64, broadcasting against ``like``: given for all, for each image, or for each value."""
    if isinstance(value, Tensor) and value.ndim < like.ndim:
        value = broadcast(value, like)
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def _step(
    denoiser: Denoise,
    x0: Tensor,
    exact: Tensor,
    t: Level,
    s: Level,
    variance: ReverseVariance,
    noise: Tensor,
    cond: dict[str, Tensor],
) -> Tensor:
    prediction = denoiser(diffuse(x0, t, noise), t, **cond)
    k0, _, tilde = (broadcast(k, exact) for k in posterior_coefficients(t, s))
    spread = _spread(variance(prediction, t, s), exact)
    if not bool((spread > 0.0).all()):
        raise InputError(
            "The reverse variance is 0 between two noisy levels, where the bound is infinite; "
            "a bound needs a stochastic reverse process (the small, large or a learned variance)."
        )
    nats = gaussian_kl(k0 * exact, tilde, k0 * prediction.x0.double(), spread)
    return _bits(nats)


def _prior(exact: Tensor, last: Level) -> Tensor:
    alpha, sigma = float(last.alpha), float(last.sigma)
    return _bits(gaussian_kl(alpha * exact, sigma * sigma, 0.0, prior_variance(last)))


def _decoder(
    denoiser: Denoise,
    x0: Tensor,
    exact: Tensor,
    grid: list[Level],
    variance: ReverseVariance,
    noise: Tensor,
    bins: int,
    cond: dict[str, Tensor],
) -> Tensor:
    t, s = grid[-2:]
    prediction: Prediction = denoiser(diffuse(x0, t, noise), t, **cond)
    spread = _spread(variance(prediction, t, s), exact)
    spread = torch.where(spread > 0.0, spread, floor(grid))
    return _bits(-discretized_gaussian(exact, prediction.x0.double(), spread, bins))
