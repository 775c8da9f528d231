"""Fitting a grid and the weights of a solver to the trajectories of a denoiser."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError
from sfumato.sampling.coordinates import Data, Noise, half_log_snr
from sfumato.sampling.defaults import best
from sfumato.sampling.fitted_solver import Plan, weights_of, with_data
from sfumato.sampling.multistep import Adams, multistep
from sfumato.sampling.sample import Step, sample

MOST = 50
"""The most steps that are fitted: beyond, the usual solvers are near the exact flow, and the weights are many."""

FEWEST = 16
"""The fewest noises, of which a quarter is held out."""

_APART = 0.05
"""The least difference of two levels in log-SNR."""

_NOISIEST, _CLEAREST = -20.0, 12.4
"""The log-SNR between which levels are; at the latter the noise is 0.002 of the data."""

TRIALS, ITERATIONS = 10, 60
"""Iterations from each start, of the grid and of all; and from the best of them, at most."""

_STARTS, _ENDS = (math.inf, 40.0, 15.0, 5.0), (0.05, 0.1, 0.2)
r"""The first and last :math:`\sigma / \alpha` of the grids that are tried first."""

STOCK: tuple[Step, ...] = (
    partial(multistep, rule=Adams(Data(), half_log_snr), order=3),
    partial(multistep, rule=Adams(Data(), half_log_snr), order=2),
    partial(multistep, rule=Adams(Noise()), order=3),
)
"""The solvers that are tried first."""


@dataclass(frozen=True)
class Examples:
    """Trajectories of a denoiser, by their two ends.

    Attributes:
        denoise: the denoiser.
        schedule: its schedule.
        noise: standard normal.
        end: where the exact probability flow from each noise ends.
        cond: the conditions of each.
        dimensions: what the sum of squares of an error is divided by; by default the numbers in one sample.
        batch: how many are computed at once.
    """

    denoise: Denoise
    schedule: Schedule
    noise: Float[Tensor, "count *shape"]
    end: Float[Tensor, "count *shape"]
    cond: dict[str, Tensor] = field(default_factory=dict)
    dimensions: int | None = None
    batch: int = 64

    def __len__(self) -> int:
        return len(self.noise)

    @property
    def size(self) -> int:
        """What the sum of squares of a sample is divided by."""
        return self.dimensions or self.noise[0].numel()

    def part(self, first: int, last: int) -> Examples:
        """Those from number ``first`` to before ``last``."""
        cond = {name: value[first:last] for name, value in self.cond.items()}
        noise, end = self.noise[first:last], self.end[first:last]
        return Examples(self.denoise, self.schedule, noise, end, cond, self.dimensions, self.batch)

    def batches(self) -> Iterator[Examples]:
        """All of them, in pieces."""
        for first in range(0, len(self), self.batch):
            yield self.part(first, first + self.batch)

    def squares(self, log_snr: Float64[Tensor, "N"], weights: Float64[Tensor, "N N+1"]) -> Float64[Tensor, ""]:
        """The sum over samples of the mean square error per dimension, differentiable in the levels and weights."""
        times = self.schedule.time(log_snr).clamp(0.0, 1.0)
        alpha, sigma = self.schedule.kernel(times)
        start = self.noise * sigma[0].to(self.noise.device)
        x, estimates = start, list[Tensor]()
        for i in range(len(log_snr)):
            estimates.append(self.denoise(x, Level(times[i], alpha[i], sigma[i]), **self.cond).x0)
            row = weights[i].to(x.device)
            x = row[0] * start
            for weight, estimate in zip(row[1:], estimates, strict=False):
                x = x + weight * estimate
        return (x - self.end).double().square().sum().cpu() / self.size

    @torch.no_grad()
    def rms(self, log_snr: Float64[Tensor, "N"], weights: Float64[Tensor, "N N+1"]) -> float:
        """The root mean square error per dimension."""
        total = sum(float(batch.squares(log_snr, weights)) for batch in self.batches())
        return math.sqrt(total / len(self))


def examples(
    denoise: Denoise,
    schedule: Schedule,
    noise: Float[Tensor, "count *shape"],
    *,
    evaluations: int = 96,
    dimensions: int | None = None,
    batch: int = 64,
    cond: dict[str, Tensor] | None = None,
) -> Examples:
    """Follow the probability flow from noises to their ends, nearly exactly.

    Args:
        denoise: the denoiser as it is sampled from.
        schedule: its schedule.
        noise: standard normal.
        evaluations: how many, of a solver of order 3 on levels uniform in log-SNR.
        dimensions: what the sum of squares of an error is divided by; by default the numbers in one sample.
        batch: how many are computed at once.
        cond: conditions, one row per noise.
    """
    low, high = _range(schedule)
    levels = with_data(schedule, torch.linspace(low, high, evaluations, dtype=torch.float64))
    posed = Examples(denoise, schedule, noise, noise, cond or {}, dimensions, batch)
    ends: list[Tensor] = []
    for some in posed.batches():
        x = some.noise * next(iter(levels)).sigma
        for frame in sample(denoise, x, levels, STOCK[0], noise=None, previews=False, reuse=True, **some.cond):
            x = frame.x
        ends.append(x)
    return dataclasses.replace(posed, end=torch.cat(ends))


def _range(schedule: Schedule) -> tuple[float, float]:
    """The log-SNR at which a schedule starts, and the most at which a denoiser is called."""
    nearest = float(schedule(1.0 / schedule.steps).log_snr) if isinstance(schedule, Discrete) else _CLEAREST
    return max(float(schedule(1.0).log_snr), _NOISIEST), min(nearest, _CLEAREST)


@dataclass(frozen=True)
class _Space:
    """Plans of a number of steps as vectors without bounds.

    The first ``steps + 1`` numbers are the logarithms of the gaps between the levels, up to one factor: from the start
    of the schedule to the first level, to the next, ..., to the most log-SNR. The others are changes of the weights of
    the solver on that grid, in units of the scale of what they lead to.
    """

    schedule: Schedule
    step: Step
    steps: int

    def _least(self) -> Tensor:
        least = torch.full((self.steps + 1,), _APART, dtype=torch.float64)
        least[0] = 0.0
        return least

    def vector(self, log_snr: Tensor) -> Tensor:
        """The vector of a grid."""
        low, high = _range(self.schedule)
        ends = torch.tensor([low, *log_snr.tolist(), high], dtype=torch.float64)
        return (ends.diff() - self._least()).clamp(min=0.03).log()

    def log_snr(self, vector: Tensor) -> Tensor:
        """The levels of a vector."""
        low, high = _range(self.schedule)
        least = self._least()
        room = high - low - least.sum()
        return low + (least + room * vector[: self.steps + 1].softmax(0)).cumsum(0)[:-1]

    def weights(self, vector: Tensor, log_snr: Tensor) -> Tensor:
        """The weights of a vector, differentiable in it and in the levels."""
        levels = log_snr.detach()
        of_solver = self._of_solver(levels)
        if log_snr.requires_grad:
            # the derivative by differences, for any solver: its weights are cheap
            slopes = torch.stack([self._slope(levels, i) for i in range(self.steps)])
            of_solver = of_solver + torch.einsum("i,ijk->jk", log_snr - levels, slopes)
        changes = vector[self.steps + 1 :]
        if len(changes) == 0:
            return of_solver
        alpha, sigma = self.schedule.kernel(self.schedule.time(log_snr).clamp(0.0, 1.0))
        # the last row is of the data, where the noise has no scale of its own
        noise = torch.cat([sigma[1:], 0.3 * sigma[-1:]]) / sigma[0]
        data = torch.cat([alpha[1:], torch.ones_like(alpha[:1])])
        scale = torch.cat([noise[:, None], data[:, None].expand(-1, self.steps)], 1)
        table = torch.zeros_like(of_solver).masked_scatter(self._used(), changes)
        return of_solver + scale * table

    def _used(self) -> Tensor:
        return torch.ones(self.steps, self.steps + 1).tril(1).bool()

    @property
    def changes(self) -> int:
        """How many weights there are."""
        return self.steps * (self.steps + 3) // 2

    def _of_solver(self, log_snr: Tensor) -> Tensor:
        return weights_of(self.step, with_data(self.schedule, log_snr))

    def _slope(self, log_snr: Tensor, i: int) -> Tensor:
        width = torch.zeros_like(log_snr)
        width[i] = 1e-4
        below = log_snr - width
        below[i] = below[i].clamp(min=_range(self.schedule)[0])
        above = log_snr + width
        return (self._of_solver(above) - self._of_solver(below)) / (above[i] - below[i])


def fit(
    known: Examples,
    steps: int,
    *,
    coefficients: bool = True,
    iterations: int = ITERATIONS,
    progress: Callable[[int], None] | None = None,
) -> Plan:
    r"""The plan of ``steps`` evaluations whose samples are the nearest to the ends of known trajectories.

    Usual solvers are improved by L-BFGS, through the solver and the denoiser: the levels with the solver's own weights,
    then the levels and all weights. There are many local minima, so that this is begun from the default
    (:func:`~sfumato.sampling.defaults.best`) and from the best of others for each of a few first levels, with few
    iterations and noises, and gone on with from the best of these. What is minimized is the logarithm of the mean
    square error on three quarters of the examples; the plan that is returned is the one, of all on the way, that did
    best on the last quarter.

    Args:
        known: trajectories; :func:`examples`.
        steps: how many, of one evaluation each.
        coefficients: whether the weights are fitted too, or only the grid.
        iterations: at most, from the best of the starts.
        progress: called after each iteration with the number of those that are done.

    Raises:
        InputError: if ``steps`` is not from 1 to 50, or there are too few examples.
    """
    check(steps, len(known))
    cut = len(known) - len(known) // 4
    training, heldout = known.part(0, cut), known.part(cut, len(known))
    few = training.part(0, max(FEWEST, cut // 3))
    searches: list[_Search] = []
    report = _Count(progress)
    for log_snr, step in _first(few, steps):
        search = _Search(_Space(known.schedule, step, steps), few, heldout, report)
        search.visit(search.space.vector(log_snr).numpy())
        searches.append(search)
    stock = min(search.error for search in searches)
    for search in searches:
        search.descend(search.best, TRIALS)
        if coefficients:
            search.descend(search.with_changes(), TRIALS)
    search = min(searches, key=lambda one: one.error)
    search.training = training
    search.descend(search.with_changes() if coefficients else search.best, iterations)
    found = torch.from_numpy(search.best)
    levels = search.space.log_snr(found)
    table = search.space.weights(found, levels).tolist()
    rows = tuple(tuple(row[: i + 2]) for i, row in enumerate(table))
    return Plan(tuple(levels.tolist()), rows, search.error, stock, len(known))


def most_iterations(coefficients: bool = True, iterations: int = ITERATIONS) -> int:
    """How many iterations there are at most, of which ``progress`` is told."""
    return (1 + len(_STARTS)) * TRIALS * (2 if coefficients else 1) + iterations


def check(steps: int, noises: int) -> None:
    """Check that a grid can be fitted.

    Raises:
        InputError: if ``steps`` is not from 1 to 50, or there are too few noises.
    """
    if not 1 <= steps <= MOST:
        raise InputError(f"A grid is fitted for 1 to {MOST} steps; got {steps}.")
    if noises < FEWEST:
        raise InputError(f"A grid is fitted to at least {FEWEST} noises; got {noises}.")


def _first(known: Examples, steps: int) -> list[tuple[Tensor, Step]]:
    """The default, and for each level that grids start at the best of the usual solvers on Karras grids."""
    low, high = _range(known.schedule)
    least, most = math.exp(-0.5 * high), math.exp(-0.5 * low)
    scale = math.sqrt(float(known.end.double().square().sum()) / (len(known) * known.size))
    levels, step = best(known.schedule, steps, scale)
    found = [(torch.as_tensor(levels.log_snr)[:-1].clamp(low, high), step)]
    for start in dict.fromkeys(min(start, most) for start in _STARTS):
        tried: list[tuple[float, Tensor, Step]] = []
        for last, step in itertools.product((max(end, 1.1 * least) for end in _ENDS), STOCK):
            if last < start:
                ramp = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
                log_snr = -14.0 * (start ** (1 / 7) + ramp * (last ** (1 / 7) - start ** (1 / 7))).log()
                weights = weights_of(step, with_data(known.schedule, log_snr))
                tried.append((known.rms(log_snr, weights), log_snr, step))
        if tried:
            found.append(min(tried, key=lambda one: one[0])[1:])
    return found


class _Count:
    """The iterations of several descents, counted together."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self.done, self.progress = 0, progress

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done)


@dataclass
class _Search:
    """A descent, and the best that it met."""

    space: _Space
    training: Examples
    heldout: Examples
    report: Callable[[], None]
    best: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    error: float = math.inf

    def visit(self, vector: NDArray[np.float64]) -> None:
        """Measure a vector on what is held out, and keep it if it is the best."""
        point = torch.from_numpy(vector)
        log_snr = self.space.log_snr(point)
        error = self.heldout.rms(log_snr, self.space.weights(point, log_snr))
        if error < self.error:
            self.best, self.error = vector.copy(), error

    def slope(self, vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The logarithm of the mean square error, and its gradient."""
        point = torch.from_numpy(vector).clone().requires_grad_()
        log_snr = self.space.log_snr(point)
        outer = [log_snr, self.space.weights(point, log_snr)]
        inner = [value.detach().requires_grad_() for value in outer]
        total, slopes = 0.0, [torch.zeros_like(value) for value in inner]
        for batch in self.training.batches():
            found = batch.squares(inner[0], inner[1])
            for slope, part in zip(slopes, torch.autograd.grad(found, inner), strict=True):
                slope += part
            total += float(found.detach())
        if not math.isfinite(total):
            return math.inf, np.zeros_like(vector)
        (gradient,) = torch.autograd.grad(outer, [point], slopes)
        return math.log(total / len(self.training) + 1e-30), (gradient / (total + 1e-30)).numpy()

    def with_changes(self) -> NDArray[np.float64]:
        """The best, with changes of the weights, of none at first."""
        missing = self.space.steps + 1 + self.space.changes - len(self.best)
        return np.concatenate([self.best, np.zeros(missing)])

    def descend(self, vector: NDArray[np.float64], iterations: int) -> None:
        """L-BFGS from a vector."""
        from scipy.optimize import minimize

        def after(vector: NDArray[np.float64]) -> None:
            self.visit(vector)
            self.report()

        if iterations < 1:
            return
        # a line search that overshoots costs passes: the iterations bound the passes too
        limits = {"maxiter": iterations, "maxfun": 2 * iterations}
        minimize(self.slope, vector, jac=True, method="L-BFGS-B", callback=after, options=limits)
