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
from sfumato.sampling.coordinates import PredictedData, PredictedNoise, half_log_snr
from sfumato.sampling.defaults import best
from sfumato.sampling.fitted_solver import FittedSolver, weights_of, with_data
from sfumato.sampling.multistep import Adams, multistep
from sfumato.sampling.sample import Step, sample

# with more steps the usual solvers are close to the exact flow, and there are many weights
MAX_STEPS = 50
# the fewest noise samples, a quarter of which is held out
MIN_NOISES = 16
# the least difference between two levels in log-SNR, and their range; at the end the noise is 0.002 of the data
_MIN_GAP, _MIN_LOG_SNR, _MAX_LOG_SNR = 0.05, -20.0, 12.4
# iterations from each start, first for the grid, then with the weights; and the most iterations from the best of them
TRIALS, ITERATIONS = 10, 60
# the sigma / alpha of the first and last levels, and the solvers, that are tried as starts
_STARTS, _ENDS = (math.inf, 40.0, 15.0, 5.0), (0.05, 0.1, 0.2)
USUAL: tuple[Step, ...] = (
    partial(multistep, rule=Adams(PredictedData(), half_log_snr), order=3),
    partial(multistep, rule=Adams(PredictedData(), half_log_snr), order=2),
    partial(multistep, rule=Adams(PredictedNoise()), order=3),
)


@dataclass(frozen=True)
class Examples:
    """Trajectories of a denoiser, given by their two ends: standard normal noise, and the sample of the exact flow.

    Errors are divided by ``dimensions``, by default the size of a sample; ``batch`` trajectories are computed at once.
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

    def part(self, first: int, last: int) -> Examples:
        cond = {name: value[first:last] for name, value in self.cond.items()}
        return dataclasses.replace(self, noise=self.noise[first:last], end=self.end[first:last], cond=cond)

    def batches(self) -> Iterator[Examples]:
        for first in range(0, len(self), self.batch):
            yield self.part(first, first + self.batch)

    def squares(self, log_snr: Float64[Tensor, "N"], weights: Float64[Tensor, "N N+1"]) -> Float64[Tensor, ""]:
        """The sum over samples of the mean square error, differentiable in the levels and weights."""
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
        return (x - self.end).double().square().sum().cpu() / (self.dimensions or self.noise[0].numel())

    @torch.no_grad()
    def rms(self, log_snr: Float64[Tensor, "N"], weights: Float64[Tensor, "N N+1"]) -> float:
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
    """The :class:`Examples` from standard normal ``noise``, by a solver of order 3 on ``evaluations`` fine levels."""
    low, high = _range(schedule)
    levels = with_data(schedule, torch.linspace(low, high, evaluations, dtype=torch.float64))
    starts = Examples(denoise, schedule, noise, noise, cond or {}, dimensions, batch)
    ends: list[Tensor] = []
    for part in starts.batches():
        x = part.noise * levels[0].sigma
        for frame in sample(denoise, x, levels, USUAL[0], noise=None, previews=False, any_order=False, **part.cond):
            x = frame.x
        ends.append(x)
    return dataclasses.replace(starts, end=torch.cat(ends))


def first_level(schedule: Schedule) -> Level:
    """The level at which the trajectories start."""
    return schedule.at(torch.tensor(_range(schedule)[0], dtype=torch.float64))


def _range(schedule: Schedule) -> tuple[float, float]:
    """The log-SNR at which sampling starts, and the greatest log-SNR at which the denoiser is called."""
    nearest = float(schedule(1.0 / schedule.steps).log_snr) if isinstance(schedule, Discrete) else _MAX_LOG_SNR
    return max(float(schedule(1.0).log_snr), _MIN_LOG_SNR), min(nearest, _MAX_LOG_SNR)


@dataclass(frozen=True)
class _Space:
    """Fitted solvers with a given number of steps, as unconstrained vectors.

    The first ``steps + 1`` numbers are the logarithms, up to a common factor, of the gaps in log-SNR from the start of
    the schedule through the levels to the greatest log-SNR. The others are changes to the weights of ``step`` on that
    grid, in units of the scale of the state they lead to.
    """

    schedule: Schedule
    step: Step
    steps: int

    def _min_gaps(self) -> Tensor:
        return torch.tensor([0.0, *[_MIN_GAP] * self.steps], dtype=torch.float64)

    def vector(self, log_snr: Tensor) -> Tensor:
        low, high = _range(self.schedule)
        ends = torch.tensor([low, *log_snr.tolist(), high], dtype=torch.float64)
        return (ends.diff() - self._min_gaps()).clamp(min=0.03).log()

    def log_snr(self, vector: Tensor) -> Tensor:
        low, high = _range(self.schedule)
        least = self._min_gaps()
        room = high - low - least.sum()
        return low + (least + room * vector[: self.steps + 1].softmax(0)).cumsum(0)[:-1]

    def weights(self, vector: Tensor, log_snr: Tensor) -> Tensor:
        """The weights of a vector, differentiable in it and in the levels."""
        levels = log_snr.detach()
        usual = self._usual(levels)
        if log_snr.requires_grad:
            # differences give the derivative for any solver, and its weights are cheap
            slopes = torch.stack([self._slope(levels, i) for i in range(self.steps)])
            usual = usual + torch.einsum("i,ijk->jk", log_snr - levels, slopes)
        changes = vector[self.steps + 1 :]
        if len(changes) == 0:
            return usual
        alpha, sigma = self.schedule.kernel(self.schedule.time(log_snr).clamp(0.0, 1.0))
        # the last row leads to the data, where the noise is 0 and gives no scale
        noise = torch.cat([sigma[1:], 0.3 * sigma[-1:]]) / sigma[0]
        data = torch.cat([alpha[1:], torch.ones_like(alpha[:1])])
        scale = torch.cat([noise[:, None], data[:, None].expand(-1, self.steps)], 1)
        used = torch.ones(self.steps, self.steps + 1).tril(1).bool()
        return usual + scale * torch.zeros_like(usual).masked_scatter(used, changes)

    @property
    def changes(self) -> int:
        return self.steps * (self.steps + 3) // 2

    def _usual(self, log_snr: Tensor) -> Tensor:
        return weights_of(self.step, with_data(self.schedule, log_snr))

    def _slope(self, log_snr: Tensor, i: int) -> Tensor:
        width = torch.zeros_like(log_snr)
        width[i] = 1e-4
        below, above = log_snr - width, log_snr + width
        below[i] = below[i].clamp(min=_range(self.schedule)[0])
        return (self._usual(above) - self._usual(below)) / (above[i] - below[i])


def fit(
    known: Examples,
    steps: int,
    *,
    coefficients: bool = True,
    iterations: int = ITERATIONS,
    progress: Callable[[int], None] | None = None,
) -> FittedSolver:
    r"""The solver with ``steps`` evaluations whose samples are closest to the ends of known trajectories.

    L-BFGS minimizes the logarithm of the mean square error on three quarters of the examples, through the solver and
    the denoiser: first over the levels with a solver's weights, then (if ``coefficients``) over levels and weights.
    There are many local minima. The search therefore starts from the default
    (:func:`~sfumato.sampling.defaults.best`) and from the best other solver for each of a few first levels, with few
    iterations and noise samples, and continues from the best result for at most ``iterations``. It returns the solver
    of all iterations with the least error on the last quarter. ``progress`` is called with the iterations done.
    """
    check(steps, len(known))
    cut = len(known) - len(known) // 4
    training, heldout = known.part(0, cut), known.part(cut, len(known))
    few = training.part(0, max(MIN_NOISES, cut // 3))
    done = itertools.count(1)
    searches: list[_Search] = []
    for log_snr, step in _starts(few, steps):
        search = _Search(_Space(known.schedule, step, steps), few, heldout, lambda: progress and progress(next(done)))
        search.visit(search.space.vector(log_snr).numpy())
        searches.append(search)
    baseline = min(search.error for search in searches)
    for search in searches:
        search.descend(search.best, TRIALS)
        if coefficients:
            search.descend(search.with_changes(), TRIALS)
    search = min(searches, key=lambda search: search.error)
    search.training = training
    search.descend(search.with_changes() if coefficients else search.best, iterations)
    vector = torch.from_numpy(search.best)
    levels = search.space.log_snr(vector)
    table = search.space.weights(vector, levels).tolist()
    rows = tuple(tuple(row[: i + 2]) for i, row in enumerate(table))
    return FittedSolver(tuple(levels.tolist()), rows, search.error, baseline, len(known))


def most_iterations(coefficients: bool = True, iterations: int = ITERATIONS) -> int:
    """The greatest number of iterations of :func:`fit`, for a progress bar."""
    return (1 + len(_STARTS)) * TRIALS * (2 if coefficients else 1) + iterations


def check(steps: int, noises: int) -> None:
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"A grid is fitted for 1 to {MAX_STEPS} steps; got {steps}.")
    if noises < MIN_NOISES:
        raise InputError(f"A grid is fitted to at least {MIN_NOISES} noises; got {noises}.")


def _starts(known: Examples, steps: int) -> list[tuple[Tensor, Step]]:
    """The default solver, and for each first level the best of the usual solvers on Karras grids."""
    low, high = _range(known.schedule)
    least, most = math.exp(-0.5 * high), math.exp(-0.5 * low)
    numbers = len(known) * (known.dimensions or known.noise[0].numel())
    scale = math.sqrt(float(known.end.double().square().sum()) / numbers)
    levels, step = best(known.schedule, steps, scale)
    starts = [(torch.as_tensor(levels.log_snr)[:-1].clamp(low, high), step)]
    for start in dict.fromkeys(min(start, most) for start in _STARTS):
        tried: list[tuple[float, Tensor, Step]] = []
        for last, step in itertools.product((max(end, 1.1 * least) for end in _ENDS), USUAL):
            if last < start:
                ramp = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
                log_snr = -14.0 * (start ** (1 / 7) + ramp * (last ** (1 / 7) - start ** (1 / 7))).log()
                weights = weights_of(step, with_data(known.schedule, log_snr))
                tried.append((known.rms(log_snr, weights), log_snr, step))
        if tried:
            starts.append(min(tried, key=lambda one: one[0])[1:])
    return starts


@dataclass
class _Search:
    """A descent that keeps the best vector so far."""

    space: _Space
    training: Examples
    heldout: Examples
    report: Callable[[], object]
    best: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    error: float = math.inf

    def visit(self, vector: NDArray[np.float64]) -> None:
        """Measure a vector on the held-out examples, and keep it if it is the best."""
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
            squares = batch.squares(inner[0], inner[1])
            for slope, part in zip(slopes, torch.autograd.grad(squares, inner), strict=True):
                slope += part
            total += float(squares.detach())
        if not math.isfinite(total):
            return math.inf, np.zeros_like(vector)
        (gradient,) = torch.autograd.grad(outer, [point], slopes)
        return math.log(total / len(self.training) + 1e-30), (gradient / (total + 1e-30)).numpy()

    def with_changes(self) -> NDArray[np.float64]:
        """The best vector, extended by changes to the weights that start at 0."""
        return np.pad(self.best, (0, self.space.steps + 1 + self.space.changes - len(self.best)))

    def descend(self, vector: NDArray[np.float64], iterations: int) -> None:
        from scipy.optimize import minimize

        def after(vector: NDArray[np.float64]) -> None:
            self.visit(vector)
            self.report()

        # a line search that overshoots costs extra passes, so the passes are limited too
        limits = {"maxiter": iterations, "maxfun": 2 * iterations}
        if iterations >= 1:
            minimize(self.slope, vector, jac=True, method="L-BFGS-B", callback=after, options=limits)
