"""The optimal trajectory against brute force, and its costs against the ledger of the bound."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.bound import gaussian_kl, variational_bound
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.variance import Gamma, analytic, estimate
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.grids import TABLE as CANDIDATES
from sfumato.sampling.grids import cheapest_grid, optimal_grid

VARIANCES = torch.tensor([0.04, 0.02, 1e-2, 1e-3, 1e-4, 1e-5], dtype=torch.float64)
"""Of Gaussian data whose dimensions drown at different levels, so that no two trajectories are alike."""

ORACLE = GaussianOracle(torch.zeros(6, dtype=torch.float64), torch.diag(VARIANCES))


def exact(levels: Level) -> Gamma:
    """The mean square of eps_hat, sigma^2 / (alpha^2 c + sigma^2) for each variance c of the data."""
    rows = sorted(
        (float(level.log_snr), float((level.sigma**2 / (level.alpha**2 * VARIANCES + level.sigma**2)).mean()))
        for level in levels
        if level.sigma > 0.0 and level.alpha > 0.0
    )
    return Gamma(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def spread(level: Level) -> float:
    return float((level.sigma**2 * VARIANCES / (level.alpha**2 * VARIANCES + level.sigma**2)).mean())


def nothing() -> Prediction:
    return Prediction.of_x0(torch.zeros(1, 1), torch.zeros(1, 1), Level(0.5, 0.8, 0.6))


def divergence(t: Level, s: Level, gamma: Gamma) -> float:
    """The expectation of a term of the ledger: the divergence of the two, the means as far apart as they are on
    average."""
    k0, _, tilde = posterior_coefficients(t, s)
    variance = float(analytic(gamma)(nothing(), t, s))
    return float(gaussian_kl(0.0, tilde, k0 * math.sqrt(spread(t)), variance)) / math.log(2.0)


def costs(levels: Level, gamma: Gamma) -> torch.Tensor:
    """What each step of a grid costs the bound, in bits per dimension; the step to the data is free."""
    snr = torch.as_tensor(levels.log_snr)[:-1].exp()
    if len(snr) == 1:
        return torch.zeros(1, dtype=torch.float64)
    variance = torch.as_tensor(gamma.monotone().data_variance(levels[:-2])).clamp(max=1.0)
    return torch.cat([0.5 * (snr.diff() * variance).log1p(), snr.new_zeros(1)]) / math.log(2.0)


SCHEDULES = {
    "linear": schedules.linear(1000),
    "cosine": schedules.cosine(50),
    "continuous": schedules.ContinuousLinear(),
    "karras": schedules.Karras(20.0, rho=3.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_costs_are_the_expected_terms_of_the_bound(name: str, steps: int) -> None:
    levels = grids.uniform(SCHEDULES[name], steps)
    gamma = exact(levels)
    several = list(levels)
    terms = [divergence(t, s, gamma) for t, s in itertools.pairwise(several[:-1])]
    assert costs(levels, gamma).tolist() == pytest.approx([*terms, 0.0], rel=1e-6, abs=1e-9)


def test_costs_are_the_ledger_within_its_error() -> None:
    """Through the bound's own code: data, noise, denoiser and variance."""
    bins = 2**12 + 1
    x0 = (ORACLE.sample(4000, 0, dtype=torch.float64) * (bins // 2)).round() / (bins // 2)
    for levels in (grids.uniform(schedules.linear(1000), 6), optimal_grid(FULL, 6, exact(FULL_GRID))):
        gamma = exact(levels)
        ledger = variational_bound(ORACLE, x0, levels, analytic(gamma, to_data=True), bins=bins)
        error = ledger.steps.std(0) / math.sqrt(len(x0))
        assert bool(((ledger.steps.mean(0) - costs(levels, gamma)[:-1]).abs() < 4.0 * error).all())
        assert float(error.max()) < 0.02


FULL = schedules.linear(1000)
FULL_GRID = grids.uniform(FULL, 1000)


def cheapest(levels: Level, steps: int, gamma: Gamma) -> tuple[float, tuple[int, ...]]:
    """All subsets, with the costs from the posteriors' own coefficients."""
    several = list(levels)
    count = len(several) - 1
    inner = range(1, count)
    paths = [(0, *chosen) for chosen in itertools.combinations(inner, steps - 1)]
    if steps > 1:
        paths = [path for path in paths if path[-1] == count - 1]
    sums = [
        (
            sum(divergence(several[a], several[b], gamma) for a, b in itertools.pairwise(path)),
            (*path, count),
        )
        for path in paths
    ]
    return min(sums)


@pytest.mark.parametrize(
    "schedule",
    [schedules.Discrete(np.linspace(0.02, 0.6, 8)), schedules.cosine(9), schedules.ContinuousLinear()],
)
def test_brute_force(schedule: Schedule) -> None:
    count = schedule.steps if isinstance(schedule, schedules.Discrete) else 7
    levels = grids.uniform(schedule, count)
    gamma = exact(levels)
    for steps in range(1, count + 1):
        least, path = cheapest(levels, steps, gamma)
        found = cheapest_grid(levels, steps, gamma)
        assert torch.as_tensor(found.t).tolist() == torch.as_tensor(levels.t)[list(path)].tolist()
        assert float(costs(found, gamma).sum()) == pytest.approx(least, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("steps", [2, 5, 10, 25, 50])
def test_never_worse_than_the_other_grids(steps: int) -> None:
    gamma = exact(FULL_GRID)
    best = optimal_grid(FULL, steps, gamma)
    # with the ends of the published grid, the levels between uniform in time
    inner = torch.linspace(1000, 1, steps, dtype=torch.float64).round() / 1000
    even = FULL(torch.cat([inner, torch.zeros(1, dtype=torch.float64)]))
    assert float(best.t[0]) == 1.0 and float(best.t[-2]) == 0.001  # type: ignore[index]
    gain = float((costs(even, gamma) - costs(best, gamma)).sum())
    assert gain > 0.1 if steps > 2 else gain == pytest.approx(0.0, abs=1e-12)
    # and that of EDM where the candidates hold it
    karras = schedules.Karras()
    fine = grids.karras(karras, 4 * (steps - 1) + 1, sigma_min=0.01)
    table = exact(fine)
    best = cheapest_grid(fine, steps, table)
    edm = grids.karras(karras, steps, sigma_min=0.01)
    totals = [float(costs(grid, table).sum()) for grid in (best, edm)]
    assert totals[0] <= totals[1] + 1e-12


def test_more_steps_never_cost_more() -> None:
    gamma = exact(FULL_GRID)
    totals = [
        float(costs(optimal_grid(FULL, steps, gamma), gamma).sum()) for steps in (2, 3, 4, 5, 8, 16, 32, 64, 1000)
    ]
    assert all(a > b for a, b in itertools.pairwise(totals))


def test_the_limit_of_many_steps() -> None:
    """Half the integral of the least squared error over the SNR (Kingma et al. 2021, eq. 17), reached in order 1."""
    schedule = schedules.Karras(20.0, rho=1.0)
    ends = [schedule(1.0), schedule(0.001)]
    first, last = ((1.0 / VARIANCES + 1.0 / level.sigma**2) for level in ends)
    limit = float(0.5 * (last / first).log2().mean())
    errors: list[float] = []
    for steps in (500, 1000, 2000):
        t = torch.logspace(0.0, -3.0, steps, dtype=torch.float64)
        levels = schedule(torch.cat([t, torch.zeros(1, dtype=torch.float64)]))
        errors.append(float(costs(levels, exact(levels)).sum()) - limit)
    assert 0.0 < errors[-1] < 0.01
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2.0, 2.0], rel=0.02)


def test_isotropic_gaussian_data_have_no_better_trajectory() -> None:
    schedule = schedules.linear(1000)
    rows = sorted((float(at.log_snr), at.sigma**2 / (0.09 * at.alpha**2 + at.sigma**2)) for at in list(FULL_GRID)[:-1])
    gamma = Gamma(tuple(row[0] for row in rows), tuple(row[1] for row in rows))
    totals = [float(costs(optimal_grid(schedule, k, gamma), gamma).sum()) for k in (2, 7, 300)]
    ratio = [1.0 / 0.09 + math.exp(float(schedule(t).log_snr)) for t in (1.0, 0.001)]
    assert totals == pytest.approx([0.5 * math.log2(ratio[1] / ratio[0])] * 3, rel=1e-9)


def test_few_steps_and_all_steps() -> None:
    gamma = exact(FULL_GRID)
    one = cheapest_grid(FULL_GRID, 1, gamma)
    assert torch.as_tensor(one.t).tolist() == [1.0, 0.0] and costs(one, gamma).tolist() == [0.0]
    two = cheapest_grid(FULL_GRID, 2, gamma)
    assert len(two) == 3 and float(list(two)[1].t) == 0.001
    everything = cheapest_grid(FULL_GRID, 1000, gamma)
    assert torch.equal(torch.as_tensor(everything.t), torch.as_tensor(FULL_GRID.t))
    assert torch.equal(torch.as_tensor(everything.sigma), torch.as_tensor(FULL_GRID.sigma))


def test_a_continuous_schedule_is_cut_finely() -> None:
    schedule = schedules.ContinuousLinear()
    gamma = exact(grids.uniform(schedule, CANDIDATES))
    found = torch.as_tensor(optimal_grid(schedule, 7, gamma).t)
    assert found[-1] == 0.0 and (found[[0, -2]] - torch.tensor([1.0, 1.0 / CANDIDATES])).abs().max() < 1e-9
    assert len(found) == 8 and bool((found.diff() < 0.0).all())


def test_an_estimate_that_says_nothing_does_not_lead_astray() -> None:
    """Where the noise is all, Gamma of a few images may exceed 1: no variance, so that a step seems to cost nothing."""
    levels = grids.uniform(FULL, 100)
    rough = estimate(ORACLE, [ORACLE.sample(200, 0, dtype=torch.float64)], levels, estimator="norm")
    assert max(rough.gamma) > 1.0
    table = exact(levels)
    totals = [float(costs(cheapest_grid(levels, 8, t), table).sum()) for t in (table, rough)]
    assert totals[0] <= totals[1] < totals[0] + 0.15


def test_monotone_is_the_isotonic_regression() -> None:
    """By its definition: no other falling sequence is nearer in the weighted square, and one that falls stays."""
    table = Gamma((-2.0, -1.0, 0.5, 1.0), (0.99, 0.8, 1.05, 0.5))
    snr = np.exp(table.log_snr)
    raw = (1.0 - np.array(table.gamma)) / snr
    fitted = table.monotone()
    fit = (1.0 - np.array(fitted.gamma)) / snr
    assert fitted.log_snr == table.log_snr and bool((np.diff(fit) <= 1e-12).all())
    # the optimum of a convex problem over a cone follows from the directions of that cone
    gradient = snr**2 * (fit - raw)
    cone = [sign * np.ones(4) for sign in (1.0, -1.0)] + [np.arange(4) < k for k in (1, 2, 3)]
    assert all(float(gradient @ direction) > -1e-9 for direction in cone)
    assert float(gradient @ fit) == pytest.approx(0.0, abs=1e-9)
    gamma = exact(FULL_GRID)
    assert gamma.monotone().gamma == pytest.approx(gamma.gamma, abs=1e-13)
    assert fitted.monotone().gamma == pytest.approx(fitted.gamma, abs=1e-13)


TEN = grids.uniform(schedules.linear(10), 10)
TABLE = exact(TEN)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: optimal_grid(schedules.linear(10), 11, TABLE), "1 to 10 steps"),
        (lambda: optimal_grid(schedules.linear(10), 0, TABLE), "1 to 10 steps"),
        (lambda: optimal_grid(FULL, 5, TABLE), "Gamma is known from"),
    ],
)
def test_bad_input(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]
