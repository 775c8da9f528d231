"""Grids: the levels at which a sampler stops."""

from __future__ import annotations

import math

import torch

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise InputError(f"Sampling needs at least 1 step; got {steps}.")


def uniform(schedule: Schedule, steps: int) -> Level:
    """``steps + 1`` levels uniform in time from 1 to 0: those of a discrete schedule when ``steps`` is its ``T``."""
    _check_steps(steps)
    return schedule(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)


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

    Raises:
        InputError: if the range is empty or goes beyond the schedule, or there is no step.
    """
    _check_steps(steps)
    end = float(schedule(1.0).noise_to_signal)
    top = end if sigma_max is None else sigma_max
    if not math.isfinite(top):
        raise InputError("This schedule ends where nothing of the data is left: say where the grid starts (sigma_max).")
    if not 0.0 < sigma_min < top:
        raise InputError(f"A grid needs 0 < sigma_min < sigma_max; got {sigma_min:.4g} and {top:.4g}.")
    if top > end * (1.0 + 1e-9):
        raise InputError(f"The schedule ends at sigma / alpha = {end:.4g}; a grid can't start at {top:.4g}.")
    ramp = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    sigma = (top ** (1.0 / rho) + ramp * (sigma_min ** (1.0 / rho) - top ** (1.0 / rho))) ** rho
    levels = schedule.at(-2.0 * sigma.log())
    data = schedule(torch.zeros(1, dtype=torch.float64))
    pairs = ((levels.t, data.t), (levels.alpha, data.alpha), (levels.sigma, data.sigma))
    return Level(*(torch.cat([torch.as_tensor(a), torch.as_tensor(b)]) for a, b in pairs))


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
