"""Grids: the levels at which a sampler stops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError

TABLE = 1000
"""The steps of the table that grids of published tables suppose where a schedule is none."""


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise InputError(f"Sampling needs at least 1 step; got {steps}.")


def uniform(schedule: Schedule, steps: int) -> Level:
    """``steps + 1`` levels uniform in time from 1 to 0: those of a discrete schedule when ``steps`` is its ``T``."""
    _check_steps(steps)
    return schedule(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)


def trailing(schedule: Schedule, steps: int) -> Level:
    r"""Steps of a table counted from its end (Lin et al. 2024, sec. 3.3): :math:`T - i T / N`, rounded.

    It is :func:`uniform` with every level a step of the table. A schedule that is no table has one of 1000 here.

    Raises:
        InputError: if the table has fewer steps.
    """
    table = _table(schedule, steps)
    # as numpy does, halves go to the even number; steps of a table are at least 1 apart, so that none repeats
    return _of_table(schedule, table, [round(table * (steps - i) / steps) for i in range(steps)])


def leading(schedule: Schedule, steps: int) -> Level:
    r"""Every :math:`\lfloor T / N \rfloor`-th step of a table, counted from its first (J. Song et al. 2021, app. D.2).

    The grid as DDPM and DDIM are run with it, :math:`1 + i \lfloor T / N \rfloor`, ends long before the noise: of 1000
    steps, 10 start at 901. Here its noisiest level is ``t = 1`` instead, where sampling starts.

    Raises:
        InputError: if the table has fewer steps.
    """
    table = _table(schedule, steps)
    stride = table // steps
    return _of_table(schedule, table, [table, *(1 + i * stride for i in range(steps - 2, -1, -1))])


def quadratic(schedule: Schedule, steps: int) -> Level:
    r"""Steps of a table denser at the data (J. Song et al. 2021, app. D.2): :math:`\lfloor c\, i^2 \rfloor`.

    With :math:`c = T / N^2`, so that it starts at ``t = 1``, and at least :math:`i`, so that none of the first steps of
    the table repeats. A schedule that is no table has one of 1000 here.

    Raises:
        InputError: if the table has fewer steps.
    """
    table = _table(schedule, steps)
    return _of_table(schedule, table, [max(table * i * i // (steps * steps), i) for i in range(steps, 0, -1)])


def _table(schedule: Schedule, steps: int) -> int:
    _check_steps(steps)
    table = schedule.steps if isinstance(schedule, Discrete) else TABLE
    if steps > table:
        raise InputError(f"A grid of {steps} steps can't be taken from a table of {table}; ask for at most as many.")
    return table


def _of_table(schedule: Schedule, table: int, steps: Sequence[int]) -> Level:
    return schedule(torch.tensor([*steps, 0], dtype=torch.float64) / table)


def karras(
    schedule: Schedule, steps: int, sigma_min: float = 0.002, sigma_max: float | None = None, rho: float = 7.0
) -> Level:
    r"""The grid of EDM in :math:`\hat\sigma = \sigma / \alpha` (Karras et al. 2022, eq. 5), with the data at its end.

    .. math::
        \hat\sigma_i = \left(\hat\sigma_{\max}^{1/\rho}
        + \frac{i}{N - 1} (\hat\sigma_{\min}^{1/\rho} - \hat\sigma_{\max}^{1/\rho})\right)^\rho, \; i = 0 \dots N - 1,
        \qquad \hat\sigma_N = 0

    Args:
        sigma_min: the last level before the data.
        sigma_max: the first level; by default the end of the schedule, ``t = 1``.
        rho: larger puts more levels near the data.

    Raises:
        InputError: if the range is empty or goes beyond the schedule, there is no step, or ``rho`` is not positive.
    """
    if not 0.0 < rho < math.inf:
        raise InputError(f"The rho of a Karras grid must be positive; got {rho}.")

    def between(ramp: Tensor, top: float) -> Tensor:
        return (top ** (1.0 / rho) + ramp * (sigma_min ** (1.0 / rho) - top ** (1.0 / rho))) ** rho

    return _between(schedule, steps, sigma_min, sigma_max, between)


def log_snr(schedule: Schedule, steps: int, sigma_min: float = 0.002, sigma_max: float | None = None) -> Level:
    r"""Uniform in log-SNR, with the data at its end (Lu et al. 2022, DPM-Solver, sec. 3.4).

    .. math:: \hat\sigma_i = \hat\sigma_{\max} (\hat\sigma_{\min} / \hat\sigma_{\max})^{i / (N - 1)}

    Args:
        sigma_min: the last level before the data.
        sigma_max: the first level; by default the end of the schedule, ``t = 1``.

    Raises:
        InputError: as :func:`karras` does.
    """

    def between(ramp: Tensor, top: float) -> Tensor:
        return top * (sigma_min / top) ** ramp

    return _between(schedule, steps, sigma_min, sigma_max, between)


def _between(
    schedule: Schedule,
    steps: int,
    sigma_min: float,
    sigma_max: float | None,
    grid: Callable[[Tensor, float], Tensor],
) -> Level:
    _check_steps(steps)
    end = float(schedule(1.0).noise_to_signal)
    top = end if sigma_max is None else sigma_max
    if not math.isfinite(top):
        raise InputError(
            "This schedule ends where nothing of the data is left, sigma / alpha = inf: say where the grid starts "
            "(sigma_max), or take steps uniform in time."
        )
    if not 0.0 < sigma_min < top:
        raise InputError(f"A grid needs 0 < sigma_min < sigma_max; got {sigma_min:.4g} and {top:.4g}.")
    return at_ratios(schedule, grid(torch.linspace(0.0, 1.0, steps, dtype=torch.float64), top).tolist())


def logistic(
    schedule: Schedule,
    steps: int,
    centre: float,
    width: float,
    skew: float = 1.0,
    sigma_min: float = 0.0,
    sigma_max: float = math.inf,
) -> Level:
    r"""From ``t = 1`` to the data, densest about one level: equal parts of a skewed logistic law of the log-SNR.

    .. math::
        \hat\sigma_i = c\, (p_i^{-1/k} - 1)^{-w}, \qquad p_i = \left(1 - \frac iN\right) p_0,
        \qquad p_0 = \left(1 + (\hat\sigma_{\max} / c)^{-1/w}\right)^{-k}

    For ``k = 1`` the density of :math:`\log\hat\sigma` is that of the logistic distribution of scale ``w`` about
    :math:`\log c`, for another of a skewed one (of :math:`\hat\sigma` itself, of Dagum's). Near the data the levels are
    those of :func:`karras` with :math:`\rho = w / k` and ``sigma_min`` 0, and in much noise they thin out likewise, in
    :math:`\hat\sigma^{-1/w}`. It needs no least level and no greatest, so that it can also start where nothing of the
    data is left.

    Args:
        centre: ``c``, of :math:`\hat\sigma = \sigma / \alpha`.
        width: ``w``.
        skew: ``k``; above 1 the denser levels lie above the centre.
        sigma_min: the least level before the data. Where the last would be below it, it is the last, and the others
            enclose equal parts of what lies above it.
        sigma_max: what lies above it is not divided: the first step leads from the end of the schedule to the level
            that would come after this one.

    Raises:
        InputError: if there is no step, a number is not positive or the range empty.
    """
    _check_steps(steps)
    if not (0.0 < centre < math.inf and 0.0 < width < math.inf and 0.0 < skew < math.inf):
        raise InputError(f"A logistic grid needs a positive centre, width and skew; got {centre}, {width} and {skew}.")
    end = float(schedule(1.0).noise_to_signal)
    if not 0.0 <= sigma_min < min(end, sigma_max):
        raise InputError(f"A grid needs 0 <= sigma_min < sigma_max; got {sigma_min:.4g} and {min(end, sigma_max):.4g}.")

    def part(ratio: float) -> float:
        return math.exp(-skew * math.log1p((ratio / centre) ** (-1.0 / width))) if ratio < math.inf else 1.0

    top, least = part(min(end, sigma_max)), part(sigma_min) if sigma_min > 0.0 else 0.0
    ramp = torch.arange(1, steps, dtype=torch.float64)
    parts = top - top * ramp / steps
    if steps > 1 and least > parts[-1]:
        parts = top + (least - top) * ramp / (steps - 1)
    below = centre * torch.expm1(-parts.log() / skew) ** -width
    first = schedule(torch.ones(1, dtype=torch.float64))
    return _joined(first, schedule.at(-2.0 * below.log()), schedule(torch.zeros(1, dtype=torch.float64)))


def mixture(schedule: Schedule, first: Level, second: Level, share: float) -> Level:
    r"""Between two grids of as many levels, each level in log-SNR: :math:`(1 - w) \lambda_i + w \lambda_i'`.

    Args:
        schedule: whose grids they are.
        share: ``w``, of the second grid, in [0, 1].

    Raises:
        InputError: if the share lies outside [0, 1], or the grids are of different lengths.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"The share of the second grid lies in [0, 1]; got {share}.")
    if len(first) != len(second):
        raise InputError(f"Grids of {len(first) - 1} and {len(second) - 1} steps can't be mixed; give them as many.")
    found: list[float] = []
    for a, b in zip(first, second, strict=True):
        one, other = float(a.log_snr), float(b.log_snr)
        # the ends may be infinite, and none of one of them no number
        weighed = [(weight, value) for weight, value in ((1.0 - share, one), (share, other)) if weight > 0.0]
        found.append(one if one == other else sum(weight * value for weight, value in weighed))
    return at_log_snrs(schedule, found)


def at_times(schedule: Schedule, times: Sequence[float]) -> Level:
    """The levels of a list of times, and the data.

    Args:
        times: falling, in [0, 1]; the data, 0, may be left out.

    Raises:
        InputError: if it is empty, not falling or beyond the schedule.
    """
    _check_falling(times, "times")
    if times[-1] != 0.0:
        times = [*times, 0.0]
    return schedule(torch.tensor(times, dtype=torch.float64))


def at_ratios(schedule: Schedule, ratios: Sequence[float]) -> Level:
    r"""The levels of a list of :math:`\hat\sigma = \sigma / \alpha`, the sigmas of EDM, and the data.

    Args:
        ratios: falling; the data, 0, may be left out.

    Raises:
        InputError: if it is empty, negative, not falling or beyond the schedule.
    """
    _check_falling(ratios, "levels")
    if ratios[-1] < 0.0:
        raise InputError(f"A noise level is at least 0; got {ratios[-1]:.4g}.")
    return at_log_snrs(schedule, [-2.0 * math.log(ratio) if ratio > 0.0 else math.inf for ratio in ratios])


def at_log_snrs(schedule: Schedule, log_snrs: Sequence[float]) -> Level:
    """The levels of a list of log-SNRs, and the data.

    Args:
        log_snrs: rising; the data, infinity, may be left out.

    Raises:
        InputError: if it is empty, not rising or beyond the schedule.
    """
    _check_falling([-value for value in log_snrs], "levels")
    lowest = float(schedule(1.0).log_snr)
    if log_snrs[0] < lowest - 1e-9 * max(1.0, abs(lowest)):
        most, wanted = math.exp(-0.5 * lowest), math.exp(-0.5 * log_snrs[0])
        raise InputError(f"The schedule ends at sigma / alpha = {most:.4g}; a grid can't start at {wanted:.4g}.")
    inside = [value for value in log_snrs if math.isfinite(value)]
    # not every schedule has an inverse at infinity: the ends are known by their times
    parts = [schedule(torch.ones(1, dtype=torch.float64))] if log_snrs[0] == -math.inf else []
    if inside:
        parts.append(schedule.at(torch.tensor(inside, dtype=torch.float64)))
    return _joined(*parts, schedule(torch.zeros(1, dtype=torch.float64)))


def _check_falling(values: Sequence[float], what: str) -> None:
    if not values or any(math.isnan(value) for value in values):
        raise InputError(f"A grid is a list of {what}, each a number; got {list(values)}.")
    for k, (a, b) in enumerate(itertools.pairwise(values)):
        if not a > b:
            raise InputError(
                f"The {what} of a grid must go strictly from noise to the data; number {k + 2} repeats or goes back."
            )


def _joined(*parts: Level) -> Level:
    columns = zip(*((part.t, part.alpha, part.sigma) for part in parts), strict=True)
    return Level(*(torch.cat([torch.as_tensor(value) for value in column]) for column in columns))


def fine(schedule: Schedule, steps: int, sigma_min: float = 0.002) -> Level:
    r"""Many steps over a whole schedule: uniform in time, but not much nearer to the data than ``sigma_min``.

    Where the last of ``steps`` uniform steps of a continuous schedule would start at less than half of that, it is the
    grid of :func:`karras` down to there: at less noise the data are certain, and a network has not learned to be. It
    enters a schedule that ends at ``alpha = 0`` at :math:`\hat\sigma = 80`, EDM's end.

    Args:
        sigma_min: the least level of interest, :math:`\hat\sigma` in units of the data.
    """
    _check_steps(steps)
    end = float(schedule(1.0).noise_to_signal)
    if not isinstance(schedule, Discrete) and float(schedule(1.0 / steps).noise_to_signal) < 0.5 * sigma_min < end:
        return karras(schedule, steps, sigma_min, end if math.isfinite(end) else 80.0)
    return uniform(schedule, steps)
