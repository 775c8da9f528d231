"""Diffused marginals of densities in one and two dimensions, with the lines of their probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, MixtureOracle
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.heun import heun
from sfumato.sampling.sample import sample


def bumps() -> MixtureOracle:
    """The example in one dimension: a broad, a narrow and a small bump."""
    rows = [(0.5, -1.7, 0.45), (0.35, 0.6, 0.18), (0.15, 2.1, 0.12)]
    weights, means, stds = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return MixtureOracle(means[:, None], Covariances.isotropic(stds.square(), 1), weights)


def spiral(arms: int = 2, points: int = 48) -> MixtureOracle:
    """The example in two dimensions: a spiral of narrow Gaussians."""
    means: list[tuple[float, float]] = []
    for arm in range(arms):
        for i in range(points):
            radius = 0.35 + 1.75 * i / (points - 1)
            angle = 2.0 * math.pi * (arm / arms + 0.85 * i / (points - 1))
            means.append((radius * math.cos(angle), radius * math.sin(angle)))
    variances = torch.full((len(means),), 0.11**2, dtype=torch.float64)
    return MixtureOracle(torch.tensor(means, dtype=torch.float64), Covariances.isotropic(variances, 2))


def smoothed(points: Float[Tensor, "n d"]) -> MixtureOracle:
    """The kernel density of points in one or two dimensions, its width by Silverman's rule (1986, sec. 4.3).

    Raises:
        InputError: for fewer than two points, or points that do not differ.
    """
    x = points.detach().cpu().double()
    count, dims = x.shape
    spread = float(x.std(0).mean()) if count > 1 else 0.0
    if spread == 0.0:
        raise InputError("A density needs at least two points that differ.")
    width = spread * (4.0 / (dims + 2.0) / count) ** (1.0 / (dims + 4.0))
    return MixtureOracle(x, Covariances.isotropic(torch.full((count,), width * width, dtype=torch.float64), dims))


@dataclass(frozen=True, slots=True)
class Marginals:
    r"""The densities :math:`q(x_t)` from the data to the noise, and lines of the flow that carries one to the other.

    All positions are :math:`x / \sqrt{\alpha^2 + \sigma^2}`, in which every schedule fits one picture (it is ``x``
    itself where the schedule preserves the variance).

    Attributes:
        times: from 0 to 1.
        axis: the positions, the same along both axes in two dimensions.
        density: at each time and position; in two dimensions the second axis is vertical.
        line_times: from 0 to 1.
        lines: the position of each line at each time.
        cdf: in one dimension, the distribution function of ``q(x_t)`` along each line; the flow conserves it.
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
    r"""The diffused marginals of a mixture, and its probability flow by Heun's steps from ``t = 1``.

    In one dimension the lines start at evenly spread quantiles of the noise, in two at random points of it.

    Args:
        density: what is diffused, in one or two dimensions.
        schedule: how.
        times: where the density is wanted.
        positions: points along an axis.
        lines: how many lines of flow.
        steps: steps of the flow.
        seed: which random points.

    Raises:
        InputError: if the density is not in one or two dimensions, or there is none at a time that is wanted.
    """
    if density.shape not in ((1,), (2,)):
        raise InputError(f"Marginals are drawn of vectors of 1 or 2 numbers; these samples have shape {density.shape}.")
    dims = density.dimensions
    levels = grids.uniform(schedule, steps)
    first = next(iter(levels))
    c = density.covariances
    deviations = torch.cat([c.values, c.rest[:, None]], 1).amax(1).sqrt()
    widest = float((density.means.abs().amax(1) + 3.0 * deviations).max())
    axis = torch.linspace(-1.0, 1.0, positions, dtype=torch.float64) * max(3.2, widest)
    grid = axis[:, None] if dims == 1 else torch.cartesian_prod(axis, axis).flip(1)
    values = [
        density.marginal_log_prob(grid * _scale(level), level).exp() * _scale(level) ** dims
        for level in schedule(times)
    ]
    starts = _starts(dims, lines, seed) * _scale(first)
    path = [starts, *(frame.x for frame in sample(density, starts, levels, heun))]
    stops = list(levels)
    along = None
    if dims == 1:
        along = torch.stack([density.marginal_cdf(x[:, 0], level) for x, level in zip(path, stops, strict=True)]).flip(
            0
        )
    return Marginals(
        times,
        axis,
        torch.stack(values).reshape(len(values), *(positions,) * dims),
        torch.as_tensor(levels.t).flip(0),
        torch.stack([x / _scale(level) for x, level in zip(path, stops, strict=True)]).flip(0),
        along,
    )


def _scale(level: Level) -> float:
    return math.hypot(float(level.alpha), float(level.sigma))


def _starts(dims: int, lines: int, seed: int) -> Tensor:
    if dims == 1:
        return torch.special.ndtri((torch.arange(lines, dtype=torch.float64) + 0.5) / lines)[:, None]
    return random.normal(seed, "flow lines", 0, lines, (dims,)).double()
