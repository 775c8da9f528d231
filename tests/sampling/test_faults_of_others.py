"""Faults that samplers of other libraries were seen to have on exact targets, and that ours must not have."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, MixtureOracle
from sfumato.diffusion.schedule import ContinuousCosine, Karras, Schedule, cosine, linear
from sfumato.sampling import grids
from sfumato.sampling.published import dpm_solver_pp
from sfumato.sampling.sample import check_grid, initial, sample

Grid = Callable[[Schedule, int], Level]
GRIDS: dict[str, Grid] = {
    "uniform": grids.uniform,
    "trailing": grids.trailing,
    "leading": grids.leading,
    "quadratic": grids.quadratic,
    "karras": grids.karras,
    "log-SNR": grids.log_snr,
    "logistic": partial(grids.logistic, centre=0.5, width=1.8, skew=1.5),
    "fine": grids.fine,
}
SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "continuous cosine": ContinuousCosine,
    "edm": Karras,
}


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 37, 250])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_grids_use_every_step(grid: Grid, schedule: Callable[[], Schedule], steps: int) -> None:
    """They start at t = 1 (as leading spacing does not) and no two levels are one (as sigma_min, or rounded times)."""
    noise = schedule()
    levels = grid(noise, steps)
    check_grid(levels)
    assert len(levels) == steps + 1
    first = next(iter(levels))
    assert first.t == pytest.approx(1.0, abs=1e-9)
    assert first.sigma == pytest.approx(noise(1.0).sigma, rel=1e-9)
    log_snr = torch.as_tensor(levels.log_snr)[:-1]
    # a step that changes the noise by less than a thousandth is wasted
    assert bool((log_snr.diff() > 2e-3).all())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_more_steps_are_not_much_worse(schedule: Callable[[], Schedule]) -> None:
    """The last steps do not lose their lower order at some number of steps (there 0.098 became 0.61 from 8 to 10)."""
    angle = torch.arange(8, dtype=torch.float64) * (torch.pi / 4.0)
    means = torch.stack([angle.cos(), angle.sin()], 1)
    oracle = MixtureOracle(means, Covariances.isotropic(torch.full((8,), 0.01), 2))
    noise = schedule()
    # the same noise in float64 on every grid
    x = initial(noise(1.0), (2,), 0, count=64).double()

    def end(steps: int) -> torch.Tensor:
        *_, last = sample(oracle, x, grids.karras(noise, steps), dpm_solver_pp(2))
        return last.x

    exact = end(300)
    errors = [float((end(steps) - exact).square().mean().sqrt()) for steps in (6, 8, 9, 10, 12, 14, 15, 16, 20)]
    # chance alone makes half as much more of very few steps
    assert all(b < 2.0 * a for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("schedule", [linear, cosine], ids=["linear", "cosine"])
def test_the_denoiser_is_told_the_exact_level(schedule: Callable[[], Schedule]) -> None:
    """Not the nearest step of a table, which costs 5 to 20 % of accuracy."""
    noise = schedule()
    seen: list[Level] = []

    def denoiser(x: torch.Tensor, level: Level) -> Prediction:
        seen.append(level)
        return Prediction.of_x0(x, torch.zeros_like(x), level)

    levels = grids.karras(noise, 10)
    for _ in sample(denoiser, torch.ones(1, 2), levels, dpm_solver_pp(2)):
        pass
    assert [level.sigma for level in seen] == [level.sigma for level in list(levels)[:-1]]
    whole = [level.t * 1000 for level in seen]
    assert any(abs(t - round(t)) > 0.01 for t in whole)
