"""Sfumato's configurations, each a step and a grid by name, and the default of each number of evaluations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

from torch import Tensor

from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.sampling import defaults, grids
from sfumato.sampling.published import dpm_solver_pp
from sfumato.sampling.sample import Step, sample
from sfumato.sampling.steps import ddim, heun
from side_by_side.peers import Result
from side_by_side.problem import Problem

Configuration = Callable[[Schedule, int, float], tuple[Level, Step]]
"""``(schedule, nfe, std)`` to a grid and a step that make at most so many evaluations; std is that of the data."""


def _steps(nfe: int, per_step: int) -> int:
    """The steps that ``nfe`` evaluations allow: the last one, to the data, takes one."""
    return (nfe - 1) // per_step + 1


def _plain(
    schedule: Schedule, nfe: int, std: float, *, grid: Callable[[Schedule, int], Level], step: Step, per_step: int
) -> tuple[Level, Step]:
    return grid(schedule, _steps(nfe, per_step)), step


CONFIGURATIONS: dict[str, Configuration] = {"the default": defaults.best} | {
    f"{step_name}, {grid_name}": partial(_plain, grid=grid, step=step, per_step=per_step)
    for (step_name, step, per_step), (grid_name, grid) in itertools.product(
        (("DDIM", ddim, 1), ("Heun", heun, 2), ("DPM-Solver++(2M)", dpm_solver_pp(2), 1)),
        (("uniform", grids.uniform), ("karras", grids.karras)),
    )
}


def default(nfe: int) -> str:
    """The one configuration for a number of evaluations, whatever the data and the schedule."""
    return "the default"


def final(denoiser: Denoise, x: Tensor, levels: Level, step: Step) -> Tensor:
    """The sample at the end of a grid."""
    for frame in sample(denoiser, x, levels, step):
        x = frame.x
    return x


def measure(name: str, problem: Problem, nfe: int) -> Result:
    """Run one of the configurations. What it raises is a fault of ours, and not caught."""
    levels, step = CONFIGURATIONS[name](problem.schedule, nfe, problem.target.std)
    model = problem.counted()
    x = final(model, problem.noise * next(iter(levels)).sigma, levels, step)
    if model.calls > nfe:
        raise AssertionError(f"{name} made {model.calls} evaluations where {nfe} were allowed.")
    rms, median = problem.errors(x)
    return Result(rms, median, model.calls)
