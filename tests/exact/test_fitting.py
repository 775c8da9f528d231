"""Plans and their fit, against the solvers they write out and against exact flows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Denoiser, embed_log_sigma
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, GaussianOracle, MixtureOracle
from sfumato.diffusion.parameterization import eps
from sfumato.diffusion.schedule import Karras, RectifiedFlow, Schedule, linear
from sfumato.errors import InputError
from sfumato.sampling import fitting, grids
from sfumato.sampling.coordinates import PredictedNoise, Rotation
from sfumato.sampling.fitted_solver import Fitted, FittedSolver, fitted_grid, follow, weights_of
from sfumato.sampling.multistep import Adams, multistep
from sfumato.sampling.published import deis, dpm_solver_pp, lms, unipc
from sfumato.sampling.sample import Step, check_grid, sample
from sfumato.sampling.steps import ancestral, ddim, heun

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": lambda: linear(1000),
    "edm": lambda: Karras(80.0),
    "flow": RectifiedFlow,
}


def ring() -> MixtureOracle:
    angle = torch.arange(8, dtype=torch.float64) * (torch.pi / 4.0)
    means = 2.0 * torch.stack([angle.cos(), angle.sin()], 1)
    return MixtureOracle(means, Covariances.isotropic(torch.full((8,), 0.04), 2))


def noise(seed: int, count: int, size: int = 2) -> Tensor:
    return random.normal(seed, "prior", 0, count, (size,)).double()


def end(oracle: MixtureOracle, x: Tensor, levels: Level, step: Step) -> Tensor:
    for frame in sample(oracle, x, levels, step):
        x = frame.x
    return x


def rows(table: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row[: i + 2]) for i, row in enumerate(table.tolist()))


SOLVERS: dict[str, Step] = {
    "ddim": ddim,
    "2m": dpm_solver_pp(2),
    "3m": dpm_solver_pp(3),
    "lms": lms(4),
    "deis": deis(linear(1000), 3),
    "unipc": unipc(3),
    "rotation": partial(multistep, rule=Adams(Rotation(0.7)), order=3, corrector=2),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_plan_is_the_solver_it_was_made_of(name: str, kind: str) -> None:
    schedule, oracle = SCHEDULES[kind](), ring()
    levels = grids.karras(schedule, 7, 0.02, 20.0)
    table = weights_of(SOLVERS[name], levels)
    log_snr = torch.as_tensor(levels.log_snr)[:-1]
    solver = FittedSolver(tuple(log_snr.tolist()), rows(table))
    x = noise(0, 20) * next(iter(levels)).sigma
    again = end(oracle, x, fitted_grid(schedule, solver), partial(follow, plan=solver))
    torch.testing.assert_close(again, end(oracle, x, levels, SOLVERS[name]), rtol=1e-6, atol=1e-7)


def test_of_other_solvers_there_is_no_plan() -> None:
    levels = grids.karras(linear(1000), 4)
    with pytest.raises(InputError, match="one evaluation per step"):
        weights_of(heun, levels)
    with pytest.raises(InputError, match="adds no noise"):
        weights_of(ancestral, levels)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_ends_of_trajectories(kind: str) -> None:
    """Of a Gaussian, whose flow is known in closed form."""
    schedule = SCHEDULES[kind]()
    root = torch.tensor([[1.0, 0.3], [0.0, 0.2]], dtype=torch.float64)
    oracle = GaussianOracle(torch.tensor([0.4, -1.0]).double(), root @ root.mT)
    known = fitting.examples(oracle, schedule, noise(0, 8))
    low = max(float(schedule(1.0).log_snr), -20.0)
    start = schedule.at(low)
    exact = oracle.flow(known.noise * start.sigma, start, Level(0.0, 1.0, 0.0))
    assert float((known.end - exact).abs().max()) < 2e-3


@pytest.mark.parametrize(
    ("kind", "count", "iterations"),
    [
        ("linear", 64, 8),
        pytest.param("linear", 200, 20, marks=pytest.mark.slow),
        pytest.param("edm", 200, 20, marks=pytest.mark.slow),
        pytest.param("flow", 200, 20, marks=pytest.mark.slow),
    ],
)
def test_fitted_is_nearer_on_other_noises(
    kind: str, count: int, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if count < 200:
        monkeypatch.setattr(fitting, "_STARTS", (20.0,))
        monkeypatch.setattr(fitting, "TRIALS", 2)
    schedule, oracle = SCHEDULES[kind](), ring()
    known = fitting.examples(oracle, schedule, noise(1, count), batch=200)
    fresh = fitting.examples(oracle, schedule, noise(2, 200), batch=200)
    grid_only = fitting.fit(known, 4, coefficients=False, iterations=5)
    both = fitting.fit(known, 4, iterations=iterations)
    start = noise(2, 200)

    def error(levels: Level, step: Step) -> float:
        x = end(oracle, start * next(iter(levels)).sigma, levels, step)
        return float((x - fresh.end).square().mean().sqrt())

    errors = [error(fitted_grid(schedule, solver), partial(follow, plan=solver)) for solver in (grid_only, both)]
    usual = error(grids.karras(schedule, 4, 0.05, min(20.0, float(schedule(1.0).noise_to_signal))), dpm_solver_pp(3))
    assert both.error < 0.5 * both.baseline and grid_only.error <= grid_only.baseline
    assert errors[1] < 0.4 * usual and errors[0] < usual
    check_grid(fitted_grid(schedule, both))


def test_it_is_a_function_of_the_noises() -> None:
    known = fitting.examples(ring(), linear(1000), noise(1, 16))
    seen: list[int] = []
    first = fitting.fit(known, 2, iterations=2, progress=seen.append)
    assert first == fitting.fit(known, 2, iterations=2)
    assert (
        first.noises == 16
        and seen == list(range(1, len(seen) + 1))
        and 1 <= len(seen) <= fitting.most_iterations(iterations=2)
    )
    # computed in pieces it is the same to rounding
    pieces = dataclasses.replace(known, batch=5)
    levels = torch.tensor(first.log_snr, dtype=torch.float64)
    table = torch.tensor([[*row, *[0.0] * (3 - len(row))] for row in first.weights], dtype=torch.float64)
    assert pieces.rms(levels, table) == pytest.approx(known.rms(levels, table), rel=1e-9)
    assert known.part(12, 16).rms(levels, table) == pytest.approx(first.error, rel=1e-9)


def test_the_slope_is_that_of_the_error() -> None:
    """By differences, in the levels and in the weights, also of the solver's own."""
    known = fitting.examples(ring(), linear(1000), noise(1, 16))
    step = partial(multistep, rule=Adams(PredictedNoise()), order=3)
    space = fitting._Space(known.schedule, step, 4)
    search = fitting._Search(space, known, known, lambda: None)
    grid = torch.tensor([-4.0, -1.0, 1.0, 3.0], dtype=torch.float64)
    for vector in (space.vector(grid), torch.cat([space.vector(grid), 0.02 * noise(4, 1, space.changes)[0]])):
        _, slope = search.slope(vector.numpy())
        for i in range(len(vector)):
            width = torch.zeros_like(vector)
            width[i] = 1e-4
            (above, _), (below, _) = (search.slope((vector + sign * width).numpy()) for sign in (1, -1))
            assert slope[i] == pytest.approx((above - below) / 2e-4, rel=2e-3, abs=1e-5)


def test_a_network_is_differentiable_in_the_level() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return x * time.sin()[:, None]

    schedule = linear(1000)
    denoiser = Denoiser(Net(), schedule, eps, embed_log_sigma)
    x = noise(0, 3)

    def x0(log_snr: Tensor) -> Tensor:
        time = schedule.time(log_snr)
        return denoiser(x, Level(time, *schedule.kernel(time))).x0.sum()

    at = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(x0(at), at)
    with torch.no_grad():
        assert float(slope) == pytest.approx(float(x0(at + 1e-5) - x0(at - 1e-5)) / 2e-5, rel=1e-4)
        # one level for all, as a tensor, is that level as numbers
        torch.testing.assert_close(x0(at), denoiser(x, schedule.at(0.3)).x0.sum())


def test_plans_go_through_json() -> None:
    solver = FittedSolver((-3.0, 1.0), ((0.5, 0.5), (0.1, 0.3, 0.6)), 0.01, 0.02, 64)
    assert FittedSolver.from_dict(dataclasses.asdict(solver)) == solver
    fitted = Fitted(solvers={2: solver})
    assert Fitted.from_dict(fitted.to_dict()) == fitted
    for broken in (
        {"log_snr": [1.0]},
        {**dataclasses.asdict(solver), "weights": None},
        {**dataclasses.asdict(solver), "log_snr": ["a", 2]},
    ):
        with pytest.raises(InputError, match="not the values of a fitted solver"):
            FittedSolver.from_dict(broken)


def test_bad_plans() -> None:
    weights = ((0.5, 0.5), (0.1, 0.3, 0.6))
    with pytest.raises(InputError, match="rise strictly"):
        FittedSolver((1.0, 1.0), weights)
    with pytest.raises(InputError, match="a row of weights"):
        FittedSolver((1.0, 2.0), weights[:1])
    with pytest.raises(InputError, match="finite"):
        FittedSolver((1.0, math.nan), weights)
    with pytest.raises(InputError, match="schedule ends at a log-SNR"):
        fitted_grid(linear(1000), FittedSolver((-15.0, 1.0), weights))
    solver = FittedSolver((-3.0, 1.0), weights)
    for levels in (grids.uniform(linear(1000), 2), grids.uniform(linear(1000), 3)):
        with pytest.raises(InputError, match="only on its own grid"):
            end(ring(), noise(0, 2), levels, partial(follow, plan=solver))
    with pytest.raises(InputError, match="has only for 2: fit one with sfumato tune RUN --steps 3"):
        Fitted(solvers={2: solver}).require_solver(3)
    with pytest.raises(InputError, match="other weights, from step 7"):
        Fitted(stale=7).require_solver(3)


def test_bad_fits() -> None:
    known = fitting.examples(ring(), linear(1000), noise(1, 16), evaluations=8)
    with pytest.raises(InputError, match="1 to 50 steps; got 0"):
        fitting.fit(known, 0)
    with pytest.raises(InputError, match="at least 16 noises; got 15"):
        fitting.fit(known.part(0, 15), 3)


def test_one_step() -> None:
    """The best constant and the best multiple of what one prediction says."""
    known = fitting.examples(ring(), linear(1000), noise(1, 64))
    solver = fitting.fit(known, 1, iterations=10)
    assert solver.steps == 1 and solver.error <= solver.baseline
