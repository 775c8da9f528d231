"""The two processes over time: schedules as curves, chains of images, the denoising loss, and diffused marginals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.analysis import Images, spread
from sfumato.diffusion.bound import mean_and_error
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.gaussian import forward_process
from sfumato.diffusion.level import Level
from sfumato.diffusion.objective import denoising_loss
from sfumato.diffusion.oracle import Covariances, GaussianOracle, MixtureOracle
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.sample import Step, sample, seeded_noise
from sfumato.sampling.steps import heun


def schedule_curves(schedule: Schedule, points: int = 1000) -> tuple[Level, Float64[Tensor, "steps"]]:
    r"""The levels of a schedule after :math:`N` steps (those of a table, otherwise ``points``), and :math:`N \beta_i`.

    :math:`\beta_i = 1 - \bar\alpha_i / \bar\alpha_{i-1}` with :math:`\bar\alpha = \alpha^2 / (\alpha^2 + \sigma^2)`
    is that of the variance-preserving process with the same signal-to-noise ratio.
    """
    steps = schedule.steps if isinstance(schedule, Discrete) else points
    levels = schedule(torch.arange(steps + 1, dtype=torch.float64) / steps)
    # log alpha_bar = -log(1 + 1 / SNR), without cancellation near the data
    log_alpha_bar = -torch.nn.functional.softplus(-torch.as_tensor(levels.log_snr))
    return levels, -steps * torch.expm1(log_alpha_bar.diff())


class Strip(NamedTuple):
    r"""The images :math:`x_t` of a chain at some levels, and the estimates of the data."""

    times: Float64[Tensor, "levels"]
    scale: Float64[Tensor, "levels"]  # sqrt(alpha^2 + sigma^2)
    images: Float[Tensor, "levels batch channels *space"]
    x0: Float[Tensor, "levels batch channels *space"] | None = None


def _strip(chain: Sequence[tuple[Any, ...]]) -> Strip:
    """Of levels, each with its images and perhaps the estimates of the data."""
    levels, *images = zip(*chain, strict=True)
    times, scale = torch.tensor([(float(level.t), _scale(level)) for level in levels], dtype=torch.float64).unbind(1)
    return Strip(times, scale, *(torch.stack(row) for row in images))


def forward_strip(images: Images, levels: Level, *, seed: int = 0) -> Strip:
    """A sample of the forward chain at the given levels, with the data first."""
    step = itertools.count()

    def noise(x: Tensor) -> Tensor:
        return random.normal(seed, "forward chain", 0, len(x), tuple(x.shape[1:]), step=next(step)).to(x)

    return _strip([(Level(0.0, 1.0, 0.0), images), *forward_process(images, levels, noise)])


def reverse_strip(
    denoiser: Denoise, x: Images, levels: Level, step: Step, *, keep: int = 8, seed: int = 0, **cond: Any
) -> Strip:
    """Sample from ``x`` and keep ``keep`` evenly spaced levels of the grid, the noise and the sample among them."""
    last, shown = len(levels) - 1, spread(len(levels), keep)
    kept: list[tuple[Level, Tensor, Tensor]] = []
    for i, frame in enumerate(sample(denoiser, x, levels, step, noise=seeded_noise(seed), previews=True, **cond), 1):
        assert frame.x0 is not None
        if i == 1:  # the first estimate is made from pure noise
            kept.append((levels[0], x, frame.x0))
        if i in shown:
            kept.append((frame.level, frame.x, frame.x if i == last else frame.x0))
    return _strip(kept)


def gaussian_loss(data: GaussianOracle, levels: Level) -> Float64[Tensor, "levels"]:
    r"""The least denoising loss of Gaussian data, per dimension, on the error of :math:`\hat\epsilon`.

    :math:`\frac1D \sum_i \frac{\alpha^2 \lambda_i}{\alpha^2 \lambda_i + \sigma^2}`.
    """
    alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (levels.alpha, levels.sigma))
    signal = alpha.square() * data.variances
    # at sigma = 0 the limit: a direction without variance adds nothing, however small the noise
    return torch.where(signal > 0.0, signal / (signal + sigma.square()).clamp(min=1e-300), 0.0).mean(1)


BATCH = 500


class LossCurve(NamedTuple):
    """The denoising loss over time, its standard error over the data, and the least loss for a Gaussian."""

    times: Float64[Tensor, "n"]
    measured: Float64[Tensor, "n"]
    error: Float64[Tensor, "n"]
    gaussian: Float64[Tensor, "n"]


def loss_over_time(
    denoiser: Denoise, images: Images, levels: Level, gaussian: GaussianOracle, *, seed: int = 0, **cond: Any
) -> LossCurve:
    """The loss of a denoiser on at least two images at some levels, next to that of a fitted Gaussian."""
    if len(images) < 2:
        raise InputError(f"A loss with its standard error needs at least 2 images; got {len(images)}.")
    if bool((torch.as_tensor(levels.sigma) <= 0.0).any()):
        raise InputError("There is no loss at sigma = 0, where there is nothing to denoise; leave t = 0 out.")
    rows: list[tuple[float, float]] = []
    for i, level in enumerate(levels):
        parts: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            x0 = images[start : start + BATCH]
            noise = random.normal(seed, "loss over time", start, len(x0), tuple(x0.shape[1:]), step=i).to(x0)
            batch: dict[str, Any] = {name: value[start : start + BATCH] for name, value in cond.items()}
            with torch.no_grad():
                parts.append(denoising_loss(denoiser, x0, level, noise, **batch).double().cpu())
        rows.append(mean_and_error(torch.cat(parts)))
    measured, error = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return LossCurve(torch.as_tensor(levels.t), measured, error, gaussian_loss(gaussian, levels))


def bumps() -> MixtureOracle:
    """The example in one dimension: a broad, a narrow and a small Gaussian."""
    rows = [(0.5, -1.7, 0.45), (0.35, 0.6, 0.18), (0.15, 2.1, 0.12)]
    weights, means, stds = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return MixtureOracle(means[:, None], Covariances.isotropic(stds.square(), 1), weights)


def spiral() -> MixtureOracle:
    """The example in two dimensions: a spiral of narrow Gaussians, in two arms."""
    place = torch.arange(48, dtype=torch.float64) / 47.0
    arm = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    radius, angle = 0.35 + 1.75 * place, 2.0 * math.pi * (arm + 0.85 * place)
    means = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(0, 1)
    variances = torch.full((len(means),), 0.11**2, dtype=torch.float64)
    return MixtureOracle(means, Covariances.isotropic(variances, 2))


def kernel_density(points: Float[Tensor, "n d"], scale: float = 1.0) -> MixtureOracle:
    """The Gaussian kernel density of points in 1 or 2 dimensions, its width by Silverman's rule (1986, sec. 4.3).

    The rule is that of a single bump; ``scale`` multiplies the width, below 1 for densities of several.
    """
    x = points.detach().cpu().double()
    count, dims = x.shape
    spread = float(x.std(0).mean()) if count > 1 else 0.0
    if spread == 0.0:
        raise InputError("A kernel density needs at least two points that differ.")
    width = scale * spread * (4.0 / (dims + 2.0) / count) ** (1.0 / (dims + 4.0))
    return MixtureOracle(x, Covariances.isotropic(torch.full((count,), width * width, dtype=torch.float64), dims))


class Marginals(NamedTuple):
    r"""The densities :math:`q(x_t)` from the data to the noise, and trajectories of the probability flow between them.

    All positions are :math:`x / \sqrt{\alpha^2 + \sigma^2}`, so that every schedule fits into the same axes. In two
    dimensions the second axis of the grid is vertical; in one, ``cdf`` is the distribution function of :math:`q(x_t)`
    along each trajectory, which the flow conserves.
    """

    times: Float64[Tensor, "times"]
    axis: Float64[Tensor, "positions"]
    density: Float64[Tensor, "times *grid"]
    line_times: Float64[Tensor, "steps"]
    lines: Float64[Tensor, "steps lines d"]
    cdf: Float64[Tensor, "steps lines"] | None


def marginals(
    density: MixtureOracle,
    schedule: Schedule,
    times: Float64[Tensor, "times"],
    *,
    positions: int = 301,
    lines: int = 15,
    steps: int = 300,
    seed: int = 0,
) -> Marginals:
    """The diffused marginals of a mixture, and its probability flow from ``t = 1`` by Heun's method.

    In one dimension the trajectories start at evenly spaced quantiles of the noise, in two at random points of it.
    """
    if density.shape not in ((1,), (2,)):
        raise InputError(f"Marginals are of vectors of 1 or 2 numbers; these have shape {density.shape}.")
    dims, levels = density.dimensions, grids.uniform(schedule, steps)
    c = density.covariances
    deviations = torch.cat([c.values, c.rest[:, None]], 1).amax(1).sqrt()
    widest = float((density.means.abs().amax(1) + 3.0 * deviations).max())
    axis = torch.linspace(-1.0, 1.0, positions, dtype=torch.float64) * max(3.2, widest)
    grid = axis[:, None] if dims == 1 else torch.cartesian_prod(axis, axis).flip(1)
    values = [density.marginal_log_prob(grid * _scale(t), t).exp() * _scale(t) ** dims for t in schedule(times)]
    if dims == 1:
        start = torch.special.ndtri((torch.arange(lines, dtype=torch.float64) + 0.5) / lines)[:, None]
    else:
        start = random.normal(seed, "flow lines", 0, lines, (dims,)).double()
    start = start * _scale(levels[0])
    path = list(zip([start, *(frame.x for frame in sample(density, start, levels, heun))], levels, strict=True))
    return Marginals(
        times,
        axis,
        torch.stack(values).reshape(len(values), *(positions,) * dims),
        torch.as_tensor(levels.t).flip(0),
        torch.stack([x / _scale(level) for x, level in path]).flip(0),
        torch.stack([density.marginal_cdf(x[:, 0], level) for x, level in path]).flip(0) if dims == 1 else None,
    )


def _scale(level: Level) -> float:
    return math.hypot(float(level.alpha), float(level.sigma))
