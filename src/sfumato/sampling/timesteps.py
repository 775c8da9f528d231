"""The grids of diffusers: steps of a table by its rules, which decide where sampling starts and ends."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError


def timesteps(
    schedule: Schedule,
    steps: int,
    spacing: Literal["leading", "linspace", "trailing"] = "leading",
    offset: int = 0,
    before_last: bool = False,
    noisiest: int | None = None,
) -> Level:
    r"""Steps of a table spaced as in diffusers (Lin et al. 2024, table 2), whose networks receive their indices.

    Index ``i`` is step ``i + 1`` of the table. With :math:`K = N`, or :math:`K = N + 1` with ``before_last``:

    ======== ========================================================================
    spacing  indices; with ``before_last`` without the last
    ======== ========================================================================
    leading  :math:`\lfloor T / K \rfloor k` + offset, :math:`k = K - 1 \dots 0`
    linspace :math:`(T - 1) k / (K - 1)`, rounded, :math:`k = K - 1 \dots 0`
    trailing :math:`T - k T / N`, rounded, less 1, :math:`k = 0 \dots N - 1`
    ======== ========================================================================

    Where the first step is not the end of the table, as with leading, sampling starts below the largest noise level.

    Args:
        schedule: a table of betas.
        steps: the number of steps.
        spacing: leading, linspace or trailing, the timestep_spacing of diffusers.
        offset: the number added to the indices of leading, the steps_offset of diffusers.
        before_last: whether the step closest to the data is left out, as in the multistep schedulers of diffusers.
        noisiest: the number of steps of the table to use, counted from the data; all when not given.
    """
    if not isinstance(schedule, Discrete):
        raise InputError("A grid of timesteps needs a table of betas, which this schedule is not; use grid.kind best.")
    table = schedule.steps
    last = table if noisiest is None else noisiest
    if not 1 <= last <= table:
        raise InputError(f"grid.noisiest is {last}; the table has steps 1 to {table}.")
    indices = _indices(table, last, steps, spacing, offset, before_last)
    if steps < 1 or len(indices) != steps or indices[0] > table - 1 or indices[-1] < 0 or (np.diff(indices) >= 0).any():
        raise InputError(
            f"A grid of {steps} steps with {spacing} spacing and an offset of {offset} does not fit a table of "
            f"{table}; use another number of steps."
        )
    return schedule(torch.from_numpy(np.append(indices + 1, 0) / table))


def _indices(table: int, last: int, steps: int, spacing: str, offset: int, before_last: bool) -> np.ndarray:
    """The indices, rounded by NumPy as in diffusers."""
    count = max(steps, 1) + before_last
    if spacing == "linspace":
        # a single step would be the one at the data
        return (np.linspace(0, last - 1, count).round()[::-1] if count > 1 else np.array([last - 1]))[:steps]
    if spacing == "leading":
        return (np.arange(count) * (last // count))[::-1][:steps] + offset
    return np.arange(last, 0, -table / max(steps, 1)).round()[:steps] - 1
