"""Grids: the levels that a sampler visits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.diffusion.level import Level, float64
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.diffusion.variance import Gamma
from sfumato.errors import InputError

# the number of steps that a schedule in continuous time is divided into where a table is needed
TABLE = 1000


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise InputError(f"Sampling needs at least 1 step; got {steps}.")


def uniform(schedule: Schedule, steps: int) -> Level:
    """Steps uniform in time from 1 to 0; all steps of a table if their numbers agree."""
    _check_steps(steps)
    return schedule(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)


def trailing(schedule: Schedule, steps: int) -> Level:
    r"""Steps of a table counted from its end (Lin et al. 2024, sec. 3.3): :math:`T - i T / N`, rounded.

    It is :func:`uniform` with every level rounded to a step of the table, or of 1000 in continuous time.
    """
    table = _table(schedule, steps)
    # halves are rounded to even, as in NumPy; steps are at least 1 apart, so that none repeats
    return _of_table(schedule, table, [round(table * (steps - i) / steps) for i in range(steps)])


def leading(schedule: Schedule, steps: int) -> Level:
    r"""Every :math:`\lfloor T / N \rfloor`-th step of a table from its first (J. Song et al. 2021, app. D.2).

    The noisiest level is ``t = 1``, where sampling starts; as published, 10 steps of 1000 would start at 901.
    """
    table = _table(schedule, steps)
    stride = table // steps
    return _of_table(schedule, table, [table, *(1 + i * stride for i in range(steps - 2, -1, -1))])


def quadratic(schedule: Schedule, steps: int) -> Level:
    r"""Steps of a table, denser near the data (J. Song et al. 2021, app. D.2): :math:`\lfloor T i^2 / N^2 \rfloor`.

    The index is at least :math:`i`, so that none of the first steps of the table repeats.
    """
    table = _table(schedule, steps)
    return _of_table(schedule, table, [max(table * i * i // (steps * steps), i) for i in range(steps, 0, -1)])


def _table(schedule: Schedule, steps: int) -> int:
    _check_steps(steps)
    table = schedule.steps if isinstance(schedule, Discrete) else TABLE
    if steps > table:
        raise InputError(f"A grid of {steps} steps can't be taken from a table of {table}; use at most {table} steps.")
    return table


def _of_table(schedule: Schedule, table: int, steps: Sequence[int]) -> Level:
    return schedule(torch.tensor([*steps, 0], dtype=torch.float64) / table)


def karras(
    schedule: Schedule, steps: int, sigma_min: float = 0.002, sigma_max: float | None = None, rho: float = 7.0
) -> Level:
    r"""The steps of EDM, uniform in :math:`(\sigma / \alpha)^{1 / \rho}` (Karras et al. 2022, eq. 5).

    :math:`\hat\sigma_i = \left(\hat\sigma_{\max}^{1/\rho}
    + \frac{i}{N - 1} (\hat\sigma_{\min}^{1/\rho} - \hat\sigma_{\max}^{1/\rho})\right)^\rho`

    Args:
        sigma_min: the last sigma / alpha before the data.
        sigma_max: the first sigma / alpha; the end of the schedule when not given.
        rho: the exponent; larger values put more steps near the data.
    """
    if not 0.0 < rho < math.inf:
        raise InputError(f"The rho of a Karras grid must be positive; got {rho}.")
    top = _top(schedule, steps, sigma_min, sigma_max)
    ramp = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    ratios = (top ** (1.0 / rho) + ramp * (sigma_min ** (1.0 / rho) - top ** (1.0 / rho))) ** rho
    return at_ratios(schedule, ratios.tolist())


def log_snr(schedule: Schedule, steps: int, sigma_min: float = 0.002, sigma_max: float | None = None) -> Level:
    r"""Steps uniform in log-SNR (Lu et al. 2022, DPM-Solver, sec. 3.4).

    :math:`\hat\sigma_i = \hat\sigma_{\max} (\hat\sigma_{\min} / \hat\sigma_{\max})^{i / (N - 1)}`

    Args:
        sigma_min: the last sigma / alpha before the data.
        sigma_max: the first sigma / alpha; the end of the schedule when not given.
    """
    top = _top(schedule, steps, sigma_min, sigma_max)
    ramp = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    return at_ratios(schedule, (top * (sigma_min / top) ** ramp).tolist())


def _top(schedule: Schedule, steps: int, sigma_min: float, sigma_max: float | None) -> float:
    """The checked first level of a grid between two levels."""
    _check_steps(steps)
    top = float(schedule(1.0).noise_to_signal) if sigma_max is None else sigma_max
    if not math.isfinite(top):
        raise InputError("This schedule ends at alpha = 0: set the start of the grid (sigma_max), or use kind uniform.")
    if not 0.0 < sigma_min < top:
        raise InputError(f"A grid needs 0 < sigma_min < sigma_max; got {sigma_min:.4g} and {top:.4g}.")
    return top


def logistic(
    schedule: Schedule,
    steps: int,
    centre: float,
    width: float,
    skew: float = 1.0,
    sigma_min: float = 0.0,
    sigma_max: float = math.inf,
) -> Level:
    r"""From ``t = 1`` to the data, densest around one level: quantiles of a skewed logistic distribution of log-SNR.

    .. math::
        \hat\sigma_i = c\, (p_i^{-1/k} - 1)^{-w}, \qquad p_i = \left(1 - \frac iN\right) p_0,
        \qquad p_0 = \left(1 + (\hat\sigma_{\max} / c)^{-1/w}\right)^{-k}

    For ``skew`` :math:`k = 1` the density of :math:`\log\hat\sigma` is logistic, of scale ``width`` :math:`w` around
    :math:`\log c`, the ``centre``; above 1 the denser levels lie above it (:math:`\hat\sigma` has a Dagum
    distribution). Near the data the levels are those of :func:`karras` with :math:`\rho = w / k` and ``sigma_min`` 0;
    at high noise they are uniform in :math:`\hat\sigma^{-1/w}`. It may start at :math:`\alpha = 0`.

    Args:
        sigma_min: the least sigma / alpha before the data. If the last level would be below it, it becomes the last
            level, and the others divide the range above it.
        sigma_max: the sigma / alpha from which the grid is divided; the first step leads from the end of the schedule
            to the level after this one.
    """
    _check_steps(steps)
    if not (0.0 < centre < math.inf and 0.0 < width < math.inf and 0.0 < skew < math.inf):
        raise InputError(f"A logistic grid needs a positive centre, width and skew; got {centre}, {width} and {skew}.")
    end = min(float(schedule(1.0).noise_to_signal), sigma_max)
    if not 0.0 <= sigma_min < end:
        raise InputError(f"A grid needs 0 <= sigma_min < sigma_max; got {sigma_min:.4g} and {end:.4g}.")

    def quantile(ratio: float) -> float:
        return math.exp(-skew * math.log1p((ratio / centre) ** (-1.0 / width))) if ratio < math.inf else 1.0

    top, least = quantile(end), quantile(sigma_min) if sigma_min > 0.0 else 0.0
    ramp = torch.arange(1, steps, dtype=torch.float64)
    parts = top - top * ramp / steps
    if steps > 1 and least > parts[-1]:
        parts = top + (least - top) * ramp / (steps - 1)
    between = centre * torch.expm1(-parts.log() / skew) ** -width
    return Level.cat([schedule(1.0), schedule.at(-2.0 * between.log()), schedule(0.0)])


def at_times(schedule: Schedule, times: Sequence[float]) -> Level:
    """The levels at a falling list of times in [0, 1]; the data, 0, may be left out."""
    _check_falling(times, "times")
    return schedule(torch.tensor(times if times[-1] == 0.0 else [*times, 0.0], dtype=torch.float64))


def at_ratios(schedule: Schedule, ratios: Sequence[float]) -> Level:
    r"""The levels at a falling list of :math:`\sigma / \alpha`, the sigmas of EDM; the data, 0, may be left out."""
    _check_falling(ratios, "levels")
    if ratios[-1] < 0.0:
        raise InputError(f"A noise level is at least 0; got {ratios[-1]:.4g}.")
    return at_log_snrs(schedule, [-2.0 * math.log(ratio) if ratio > 0.0 else math.inf for ratio in ratios])


def at_log_snrs(schedule: Schedule, log_snrs: Sequence[float]) -> Level:
    """The levels at a rising list of log-SNRs; the data, infinity, may be left out."""
    _check_falling([-value for value in log_snrs], "levels")
    # not every schedule can be inverted at infinity, so the data are given by their time
    noisy = [value for value in log_snrs if value < math.inf]
    return Level.cat([schedule.at(torch.tensor(noisy, dtype=torch.float64)), schedule(0.0)])


def _check_falling(values: Sequence[float], what: str) -> None:
    if not values or any(math.isnan(value) for value in values):
        raise InputError(f"A grid is a list of {what}, each a number; got {list(values)}.")
    for k, (a, b) in enumerate(itertools.pairwise(values), 2):
        if not a > b:
            raise InputError(
                f"The {what} of a grid must go strictly towards the data; number {k} repeats or goes back."
            )


def listed(
    schedule: Schedule,
    steps: int,
    sigmas: tuple[float, ...] = (),
    times: tuple[float, ...] = (),
    log_snrs: tuple[float, ...] = (),
) -> Level:
    """Any levels, given in one of three lists; the data follow them.

    Args:
        sigmas: sigma / alpha of each level, falling.
        times: the time of each level, falling, at most 1.
        log_snrs: the log-SNR of each level, rising.
    """
    lists = [(at, values) for at, values in ((at_ratios, sigmas), (at_times, times), (at_log_snrs, log_snrs)) if values]
    if len(lists) != 1:
        raise InputError("A listed grid needs its levels in one list: sigmas, times or log_snrs.")
    at, values = lists[0]
    # listing the data is optional
    count = len(values) - (not log_snrs and values[-1] == 0.0)
    if count != steps:
        raise InputError(f"The grid lists {count} levels, which make as many steps; sampling.steps is {steps}.")
    return at(schedule, values)


def fine(schedule: Schedule, steps: int, sigma_min: float = 0.002) -> Level:
    r"""Many steps over a whole schedule: all of a table, else the cheaper of uniform and Karras spacing.

    The grid of :func:`karras` ends where the last of ``steps`` uniform steps starts, but no closer to the data than
    ``sigma_min``. It begins at :math:`\hat\sigma = 80` (the end of EDM) if the schedule ends at :math:`\alpha = 0`. The
    grid with the lower :func:`excess` is returned: where :math:`\hat\sigma` is proportional to time, as for rectified
    flow, the last uniform steps reduce it by factors of 3/2 and 2, however many steps there are.
    """
    even = uniform(schedule, steps)
    if isinstance(schedule, Discrete) or steps == 1:
        return even
    top = float(even[0].noise_to_signal)
    top, low = top if math.isfinite(top) else 80.0, max(sigma_min, float(even[-2].noise_to_signal))
    if not low < top:
        return even
    return min(even, karras(schedule, steps, low, top), key=excess)


def excess(levels: Level) -> float:
    r"""How far the bound on a grid exceeds the entropy, in nats per dimension, for standard normal data.

    With the small variance each step between two noisy levels costs the divergence :math:`\tfrac12 (r - 1 - \log r)`,
    where :math:`r = \frac{1 + \mathrm{SNR}_s}{1 + \mathrm{SNR}_t}` is the ratio of the variances.
    """
    snr = float64(levels.log_snr)[:-1].exp()
    growth = snr.diff() / (1.0 + snr[:-1])
    return float(0.5 * (growth - growth.log1p()).sum())


def optimal_grid(schedule: Schedule, steps: int, gamma: Gamma) -> Level:
    """The steps with the lowest variational bound, by Analytic-DPM (Bao et al. 2022); needs sfumato tune.

    They are chosen from all steps of a table, or from 1000 in continuous time (:func:`cheapest_grid`).
    """
    count = schedule.steps if isinstance(schedule, Discrete) else TABLE
    return cheapest_grid(fine(schedule, count), steps, gamma)


def cheapest_grid(candidates: Level, steps: int, gamma: Gamma) -> Level:
    r"""The ``steps + 1`` candidate levels from noise to data with the lowest bound.

    A step with the optimal mean and variance adds to the bound, in nats per dimension,

    .. math::
        \tfrac12 \log \frac{\tilde\beta + k_0^2 V_t}{\tilde\beta}
        = \tfrac12 \log\left(1 + (\mathrm{SNR}_s - \mathrm{SNR}_t)\, V_t\right), \qquad
        V_t = \tfrac1D \mathbb E \operatorname{tr} Var[x_0 | x_t]

    (Bao et al. 2022, sec. 4; Kingma et al. 2021, eq. 14), and the shortest path of ``steps`` edges follows by dynamic
    programming (Watson et al. 2021). The step to the data is free, so the last noisy level is the last
    candidate, as published; a single step goes directly from noise to data. Gamma is made monotone, because at high
    noise an estimate may imply that a step costs nothing.
    """
    # for the noisy levels only
    log_snr = torch.as_tensor(candidates.log_snr, dtype=torch.float64)[:-1]
    count = len(log_snr)
    if not 1 <= steps <= count:
        raise InputError(f"A grid of {steps} steps can't be chosen from {count + 1} levels; use 1 to {count} steps.")
    edges = torch.full((count + 1, count + 1), math.inf, dtype=torch.float64)
    edges[count - 1 if steps > 1 else 0, count] = 0.0
    if count > 1:
        variance = torch.as_tensor(gamma.monotone().data_variance(candidates[: count - 1])).clamp(max=1.0)
        snr = log_snr.exp()
        between = 0.5 * ((snr - snr[:-1, None]) * variance[:, None]).log1p()
        edges[:-2, :-1] = between.masked_fill(torch.ones_like(between).tril().bool(), math.inf)
    return candidates[_shortest(edges, steps)]


def _shortest(edges: Float64[Tensor, "nodes nodes"], steps: int) -> list[int]:
    """The shortest path of ``steps`` forward edges from the first node to the last."""
    last = len(edges) - 1
    # after k edges a path has reached at least node k, and must leave a node for each remaining edge
    width = last - steps + 1
    length = torch.full((width,), math.inf, dtype=torch.float64)
    length[0] = 0.0
    previous: list[Tensor] = []
    for k in range(1, steps + 1):
        length, nearest = (length[:, None] + edges[k - 1 : k - 1 + width, k : k + width]).min(0)
        previous.append(nearest + (k - 1))
    path = [last]
    for k in range(steps, 0, -1):
        path.append(int(previous[k - 1][path[-1] - k]))
    return path[::-1]
