"""Diffused marginals of densities in one and two dimensions, with the lines of their probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.heun import heun
from sfumato.sampling.sample import sample


@dataclass(frozen=True, slots=True)
class Mixture:
    r"""A mixture of round Gaussians, :math:`q(x_0) = \sum_k w_k \mathcal N(x_0; m_k, s_k^2 I)`, and its denoiser.

    Diffused, it is :math:`q(x_t) = \sum_k w_k \mathcal N(x_t; \alpha m_k, (\alpha^2 s_k^2 + \sigma^2) I)`: the
    convolution with the diffusion kernel, in closed form. Levels are those of floats.
    """

    weights: Float64[Tensor, "k"]
    means: Float64[Tensor, "k d"]
    stds: Float64[Tensor, "k"]

    def _parts(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """The logarithm of each component's share of the density at ``x``, its centre and its variance."""
        centres = float(level.alpha) * self.means
        variances = (float(level.alpha) * self.stds).square() + float(level.sigma) ** 2
        squares = (x[:, None] - centres).square().sum(-1)
        logs = self.weights.log() - 0.5 * (squares / variances + x.shape[1] * (2.0 * math.pi * variances).log())
        return logs, centres, variances

    def density(self, x: Float64[Tensor, "n d"], level: Level) -> Float64[Tensor, "n"]:
        """The density of ``q(x_t)`` at ``x``."""
        return self._parts(x, level)[0].logsumexp(1).exp()

    def cdf(self, x: Float64[Tensor, "n"], level: Level) -> Float64[Tensor, "n"]:
        """The distribution function of ``q(x_t)`` in one dimension."""
        _, centres, variances = self._parts(x[:, None], level)
        return torch.special.ndtr((x[:, None] - centres[:, 0]) / variances.sqrt()) @ self.weights

    def __call__(self, x: Float[Tensor, "n d"], level: Level, **cond: Tensor) -> Prediction:
        logs, centres, variances = self._parts(x, level)
        shares = logs.softmax(1)
        gains = float(level.alpha) * self.stds.square() / variances
        inside = self.means + gains[:, None] * (x[:, None] - centres)
        return Prediction.of_x0(x, (shares[..., None] * inside).sum(1), level)


def mixture(weights: list[float], means: list[tuple[float, ...]], stds: list[float]) -> Mixture:
    """A mixture from plain numbers; the weights need not add up to one.

    Raises:
        InputError: if the numbers do not make a density in one or two dimensions.
    """
    w, m, s = (torch.tensor(values, dtype=torch.float64) for values in (weights, means, stds))
    if not len(w) or w.shape != s.shape or m.ndim != 2 or len(m) != len(w) or m.shape[1] not in (1, 2):
        raise InputError("A mixture needs as many weights as means and widths, and means of 1 or 2 numbers each.")
    if bool((w <= 0.0).any() or (s < 0.0).any()):
        raise InputError("The weights of a mixture must be positive, and its widths not negative.")
    return Mixture(w / w.sum(), m, s)


def bumps() -> Mixture:
    """The example in one dimension: a broad, a narrow and a small bump."""
    return mixture([0.5, 0.35, 0.15], [(-1.7,), (0.6,), (2.1,)], [0.45, 0.18, 0.12])


def spiral(arms: int = 2, points: int = 48) -> Mixture:
    """The example in two dimensions: a spiral of narrow Gaussians."""
    means: list[tuple[float, float]] = []
    for arm in range(arms):
        for i in range(points):
            radius = 0.35 + 1.75 * i / (points - 1)
            angle = 2.0 * math.pi * (arm / arms + 0.85 * i / (points - 1))
            means.append((radius * math.cos(angle), radius * math.sin(angle)))
    return mixture([1.0] * len(means), list(means), [0.11] * len(means))


def smoothed(points: Float[Tensor, "n d"]) -> Mixture:
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
    return Mixture(torch.full((count,), 1.0 / count).double(), x, torch.full((count,), width).double())


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
    density: Mixture,
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
        density: what is diffused.
        schedule: how.
        times: where the density is wanted.
        positions: points along an axis.
        lines: how many lines of flow.
        steps: steps of the flow.
        seed: which random points.
    """
    dims = density.means.shape[1]
    levels = grids.uniform(schedule, steps)
    first = next(iter(levels))
    widest = float((density.means.abs().amax(1) + 3.0 * density.stds).max())
    axis = torch.linspace(-1.0, 1.0, positions, dtype=torch.float64) * max(3.2, widest)
    grid = axis[:, None] if dims == 1 else torch.cartesian_prod(axis, axis).flip(1)
    values = [density.density(grid * _scale(level), level) * _scale(level) ** dims for level in schedule(times)]
    starts = _starts(dims, lines, seed) * _scale(first)
    path = [starts, *(frame.x for frame in sample(density, starts, levels, heun))]
    stops = list(levels)
    along = None
    if dims == 1:
        along = torch.stack([density.cdf(x[:, 0], level) for x, level in zip(path, stops, strict=True)]).flip(0)
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
