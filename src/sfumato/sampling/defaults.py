"""The sampler of choice for a number of evaluations, whatever the data and the schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.coordinates import Rotation, arsinh
from sfumato.sampling.multistep import Adams, multistep
from sfumato.sampling.sample import Step

SIGMA_MIN = 0.002
r"""The least :math:`\sigma / \alpha` of a schedule in continuous time that networks learn (Karras et al. 2022)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A multistep and a grid, for at least so many evaluations; levels in units of the standard deviation of the data.

    Attributes:
        least: the fewest evaluations it is for.
        order: of the predictor.
        corrector: of the corrector.
        ending: the predictions that the step to the data extrapolates.
        rotation: the scale of the coordinate.
        arsinh: whether predictions are extrapolated in that, and not in the angle of the coordinate.
        centre: of the logistic grid.
        width: of the logistic grid.
        skew: of the logistic grid.
        most: of the logistic grid, the level from which on it is divided.
    """

    least: int
    order: int
    corrector: int
    ending: int
    rotation: float
    arsinh: bool
    centre: float
    width: float
    skew: float
    most: float


CHOICES = (
    Choice(1, 2, 4, 1, 5.2, False, 1.05, 1.95, 1.65, 320.0),
    Choice(8, 3, 4, 1, 2.75, False, 0.72, 2.1, 1.12, 320.0),
    Choice(9, 4, 4, 1, 5.2, False, 0.6, 1.9, 1.35, 600.0),
    Choice(13, 4, 4, 1, 3.5, True, 0.36, 2.17, 1.8, 600.0),
    Choice(30, 4, 4, 3, 3.5, True, 0.36, 2.17, 1.8, math.inf),
)


def choice(nfe: int) -> Choice:
    """The row of :data:`CHOICES` for a number of evaluations.

    Raises:
        InputError: if there is none.
    """
    if nfe < 1:
        raise InputError(f"Sampling needs at least 1 evaluation of the network; got {nfe}.")
    return [row for row in CHOICES if row.least <= nfe][-1]


def best(schedule: Schedule, nfe: int, scale: float = 1.0, sigma_min: float | None = None) -> tuple[Level, Step]:
    r"""The grid and the step that come nearest to the exact answer with so many evaluations of the network.

    All of them are exponential Adams methods in a :class:`~sfumato.sampling.coordinates.Rotation`, with a corrector,
    on a :func:`~sfumato.sampling.grids.logistic` grid, and have one evaluation per step. With ``d`` the standard
    deviation of the data:

    ====== ===== ========= ====== ====== ======== ======= ===== ==== =====
    NFE    order corrector ending scale  variable centre  width skew most
    ====== ===== ========= ====== ====== ======== ======= ===== ==== =====
    1-7    2     4         1      5.2 d  its own  1.05 d  1.95  1.65 320 d
    8      3     4         1      2.75 d its own  0.72 d  2.1   1.12 320 d
    9-12   4     4         1      5.2 d  its own  0.6 d   1.9   1.35 600 d
    13-29  4     4         1      3.5 d  arsinh   0.36 d  2.17  1.8  600 d
    30-    4     4         3      3.5 d  arsinh   0.36 d  2.17  1.8
    ====== ===== ========= ====== ====== ======== ======= ===== ==== =====

    They were found by a random search for the least ratios of the error to that of the best configuration of diffusers
    and k-diffusion, at 5, 8, 10, 15 and 20 evaluations, on the four targets of ``benchmarks/solvers.py`` under the
    linear and the EDM schedule. The noises were those of seeds 1 and 2, where the benchmark measures with those of seed
    0; the numbers were rounded then, and rows put where they lead. The last column alone was chosen under the cosine
    schedule, which ends at a hundred times the noise of the others (seed 1). Only levels relative to the data enter,
    and of a schedule only its two ends. The scale of the coordinate is several times that of the data because the main
    directions of images are many times as wide as a pixel.

    Args:
        schedule: any, also one that ends where nothing of the data is left.
        nfe: how many evaluations.
        scale: the standard deviation of the data, over all their numbers.
        sigma_min: the least :math:`\sigma / \alpha` before the data; by default half that of the first step of a
            table, and :data:`SIGMA_MIN` in continuous time: of much less noise networks have learned nothing.

    Returns:
        a grid of ``nfe`` steps, and the step.

    Raises:
        InputError: if there is no evaluation, the scale is not positive or ``sigma_min`` is beyond the schedule.
    """
    row = choice(nfe)
    if not 0.0 < scale < math.inf:
        raise InputError(f"The scale of the data is a standard deviation and must be positive; got {scale}.")
    if sigma_min is None:
        table = isinstance(schedule, Discrete)
        sigma_min = 0.5 * float(schedule(1.0 / schedule.steps).noise_to_signal) if table else SIGMA_MIN
    levels = grids.logistic(schedule, nfe, row.centre * scale, row.width, row.skew, sigma_min, row.most * scale)
    rule = Adams(Rotation(row.rotation * scale), arsinh(scale) if row.arsinh else None)
    return levels, partial(multistep, rule=rule, order=row.order, corrector=row.corrector, ending=row.ending)
