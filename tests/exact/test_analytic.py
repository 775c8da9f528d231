"""Analytic-DPM against closed forms and the paper's own expressions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from tests.oracles import gaussian
from tests.round_mixtures import ONE_D, Mixture

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion import variance
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.variance import Gamma, analytic, estimate
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.sample import initial, sample, seeded_noise
from sfumato.sampling.steps import ancestral

SCHEDULES = {
    "linear": schedules.linear(1000),
    "cosine": schedules.cosine(50),
    "continuous": schedules.ContinuousLinear(),
    "karras": schedules.Karras(),
}


def exact(levels: Level, std: float) -> Gamma:
    """Gamma of Gaussian data: eps_hat = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2), so its mean square is this."""
    rows = sorted(
        (float(level.log_snr), level.sigma**2 / (level.alpha**2 * std**2 + level.sigma**2))
        for level in levels
        if level.sigma > 0.0 and level.alpha > 0.0
    )
    return Gamma(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def nothing() -> Prediction:
    return Prediction.of_x0(torch.zeros(1, 1), torch.zeros(1, 1), Level(0.5, 0.8, 0.6))


def pairs(levels: Level) -> Iterator[tuple[Level, Level]]:
    several = list(levels)
    return itertools.pairwise(several)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("std", [0.3, 1.0])
def test_gaussian_data_in_closed_form(name: str, steps: int, std: float) -> None:
    """x_s given x_t is Gaussian with variance s_s^2 - c^2 / s_t^2 by the rule of conditioning: the optimum exactly."""
    levels = grids.uniform(SCHEDULES[name], steps)
    spread = analytic(exact(levels, std), radius=10.0, to_data=True)
    for t, s in pairs(levels):
        marginal_t = t.alpha**2 * std**2 + t.sigma**2
        marginal_s = s.alpha**2 * std**2 + s.sigma**2
        covariance = t.alpha / s.alpha * marginal_s
        closed = marginal_s - covariance**2 / marginal_t
        assert float(spread(nothing(), t, s)) == pytest.approx(closed, abs=1e-10)


@pytest.mark.parametrize("steps", [5, 50])
def test_the_expressions_of_the_paper(steps: int) -> None:
    """Bao et al. 2022, eqs. 8 and 9 with lambda_n^2 = beta-tilde, in their alpha_bar and beta_bar, on a spaced grid."""
    levels, std = grids.uniform(schedules.linear(1000), steps), 0.5
    table = exact(levels, std)
    for t, s in list(pairs(levels))[:-1]:
        bar, bar_before = t.alpha**2, s.alpha**2
        alpha, beta_bar, beta_bar_before = bar / bar_before, 1 - bar, 1 - bar_before
        squared = beta_bar_before / beta_bar * (1 - alpha)
        of_score = 1.0 / (bar * std**2 + beta_bar)
        root = math.sqrt(beta_bar / alpha) - math.sqrt(beta_bar_before - squared)
        published = squared + root**2 * (1 - beta_bar * of_score)
        assert float(analytic(table)(nothing(), t, s)) == pytest.approx(published, abs=1e-10)
        # theorem 2, the bound of data in [-1, 1]
        bound = (
            squared + (math.sqrt(bar_before) - math.sqrt(beta_bar_before - squared) * math.sqrt(bar / beta_bar)) ** 2
        )
        noisy = Gamma(table.log_snr, tuple(0.0 for _ in table.gamma))
        widest = squared + root**2
        assert float(analytic(noisy)(nothing(), t, s)) == pytest.approx(min(bound, widest), abs=1e-10)


@pytest.mark.parametrize("std", [0.2, 0.7, 1.0])
def test_it_lies_between_small_and_large(std: float) -> None:
    levels = grids.uniform(schedules.linear(1000), 20)
    spread = analytic(exact(levels, std))
    for t, s in list(pairs(levels))[:-1]:
        low, high = (float(kind(nothing(), t, s)) for kind in (variance.small, variance.large))
        assert low < float(spread(nothing(), t, s)) <= high * (1 + 1e-9)
    # large is optimal for standard normal data, small for a point
    t, s = list(pairs(levels))[3]
    assert float(analytic(exact(levels, 1.0))(nothing(), t, s)) == pytest.approx(
        float(variance.large(nothing(), t, s)), rel=1e-9
    )
    point = Gamma(exact(levels, std).log_snr, (1.0,) * 20)
    assert float(analytic(point)(nothing(), t, s)) == pytest.approx(float(variance.small(nothing(), t, s)), rel=1e-6)


def test_between_the_levels_of_the_table_gaussian_data_stay_exact() -> None:
    table = exact(grids.uniform(schedules.linear(1000), 7), 0.6)
    for level in list(grids.uniform(schedules.ContinuousLinear(), 40))[1:30]:
        closed = level.sigma**2 * 0.36 / (level.alpha**2 * 0.36 + level.sigma**2)
        assert float(table.data_variance(level)) == pytest.approx(closed, abs=1e-10)


def test_a_batch_of_levels_is_the_single_levels() -> None:
    schedule = schedules.linear(1000)
    table = exact(grids.uniform(schedule, 10), 0.6)
    t = schedule(torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64))
    s = schedule(torch.tensor([0.0, 0.1, 0.6], dtype=torch.float64))
    for options in ({}, {"to_data": True}, {"last": schedule(0.1)}):
        spread = analytic(table, **options)  # type: ignore[arg-type]
        together = torch.as_tensor(spread(nothing(), t, s))
        alone = [float(spread(nothing(), *pair)) for pair in zip(t, s, strict=True)]
        assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_the_noise_of_the_last_noisy_step_is_clipped() -> None:
    schedule = schedules.linear(1000)
    levels = grids.uniform(schedule, 10)
    table, several = exact(levels, 0.6), list(levels)
    spread = analytic(table, last=several[-2], pixels=1.0)
    t, s = several[-3], several[-2]
    found = math.sqrt(float(spread(nothing(), t, s)))
    # by quadrature, the mean of |sigma z| is one grey value of 255 over [-1, 1]
    z = np.linspace(-12, 12, 200_001)
    mean = float(np.sum(np.abs(found * z) * np.exp(-z * z / 2)) / np.sum(np.exp(-z * z / 2)))
    assert mean == pytest.approx(2 / 255, rel=1e-6)
    before = several[-4], several[-3]
    assert spread(nothing(), *before) == analytic(table)(nothing(), *before)
    assert spread(nothing(), several[-2], several[-1]) == 0.0


def test_estimated_from_a_denoiser() -> None:
    oracle = gaussian(0.0, 0.5, (8,))
    levels = grids.uniform(schedules.linear(1000), 6)
    data = 0.5 * torch.randn(4000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    found = estimate(oracle, data.split(1000), levels, estimator="norm", progress=seen.append)
    assert seen == [1000, 2000, 3000, 4000] and found.samples == 4000
    assert found.gamma == pytest.approx(exact(levels, 0.5).gamma, rel=0.03)
    assert found.log_snr == pytest.approx(exact(levels, 0.5).log_snr, abs=1e-12)
    # for any batch size, and with conditions, which the oracle ignores
    of_error = estimate(oracle, [data], levels)
    assert of_error.gamma == pytest.approx(exact(levels, 0.5).gamma, rel=0.03) and of_error.estimator == "error"
    again = estimate(oracle, [(part, {"label": torch.zeros(len(part))}) for part in data.split(1700)], levels)
    assert again.gamma == pytest.approx(of_error.gamma, rel=1e-12)
    assert estimate(oracle, [data], levels, seed=1).gamma != of_error.gamma


def posterior_variance(mixture: Mixture, level: Level) -> float:
    r"""E Var[x_0 | x_t] in one dimension: Var = (sigma^2 / alpha) times the derivative of x_0_hat, by quadrature."""
    at = (
        level.alpha * torch.linspace(-4.0, 4.0, 200_001).double()
        + level.sigma * torch.linspace(-8, 8, 200_001).double()
    )
    x = at[:, None]
    slope = torch.gradient(mixture(x, level).x0[:, 0], spacing=(at,))[0]
    density = mixture.log_p(x, level.alpha, level.sigma).exp()
    return float(torch.trapezoid(density * slope, at)) * level.sigma**2 / level.alpha


@pytest.mark.parametrize("name", ["linear", "karras", "continuous"])
def test_the_squared_error_knows_the_variance_at_every_level(name: str) -> None:
    """Against the exact posterior variance of a mixture: within a few per cent from pure noise to the data, where the
    published norm is wrong by orders of magnitude in most of the noise; and so is what the sampler adds."""
    levels = grids.uniform(SCHEDULES[name], 24)[:-1]
    levels = levels[torch.as_tensor(levels.sigma) > 1e-3 * torch.as_tensor(levels.alpha)]
    data = ONE_D.draw(500 * 16).reshape(-1, 16)
    repeated = Repeated()
    tables = {kind: estimate(repeated, [data], levels, estimator=kind) for kind in ("error", "norm")}  # type: ignore[arg-type]
    exact_ones = [posterior_variance(ONE_D, level) for level in levels]
    off: dict[str, list[float]] = {}
    for kind, table in tables.items():
        assert table.estimator == kind
        both = (table.data_variance(levels), table.monotone().data_variance(levels))
        off[kind] = [abs(math.log(float(v) / e)) for found in both for v, e in zip(found, exact_ones, strict=True)]
    assert max(off["error"]) < 0.06
    assert max(off["norm"]) > math.log(2.0)
    assert all(error < norm + 0.06 for error, norm in zip(off["error"], off["norm"], strict=True))


class Repeated:
    """The exact denoiser of many independent values of the mixture."""

    def __call__(self, x: torch.Tensor, level: Level, **cond: torch.Tensor) -> Prediction:
        return Prediction.of_x0(x, ONE_D(x.reshape(-1, 1), level).x0.view_as(x), level)


def test_a_network_that_is_worse_than_none_near_the_data_is_not_believed() -> None:
    """Its error may exceed that of x / alpha, which is the most that is known: Gamma is at least 0."""

    def constant(x: torch.Tensor, level: Level, **cond: torch.Tensor) -> Prediction:
        return Prediction.of_x0(x, torch.zeros_like(x), level)

    level = schedules.Karras().at(torch.tensor([-6.0, 2.0, 6.0], dtype=torch.float64))
    found = estimate(constant, [ONE_D.draw(4000)], level)
    variance_of_data = float(ONE_D.draw(4000).square().mean())
    assert found.gamma[1:] == (0.0, 0.0) or found.gamma[2] == 0.0
    assert float(torch.as_tensor(found.data_variance(level))[0]) == pytest.approx(variance_of_data, rel=1e-6)
    assert found.monotone().estimator == "error"


def test_it_survives_json() -> None:
    table = exact(grids.uniform(schedules.linear(100), 5), 0.4)
    for kept in (table, dataclasses.replace(table, estimator="error")):
        assert Gamma.from_dict(json.loads(json.dumps(dataclasses.asdict(kept)))) == kept
    # those of before there were two
    old = {"log_snr": [0.0], "gamma": [0.5], "samples": 3}
    assert Gamma.from_dict(old) == Gamma((0.0,), (0.5,), 3, "norm")


def test_few_steps_of_ancestral_sampling_have_the_spread_of_the_data() -> None:
    """With the optimal variance the spread of Gaussian data is exact in any number of steps; with the small one not."""
    oracle = gaussian(0.0, 0.6, (4, 5))
    levels = grids.uniform(schedules.linear(1000), 8)
    x = initial(levels, (4, 5), 0, count=2000).double()
    stds: list[float] = []
    for kind in (analytic(exact(levels, 0.6)), variance.small):
        *_, frame = sample(oracle, x, levels, partial(ancestral, variance=kind), noise=seeded_noise(0))
        stds.append(float(frame.x.std()))
    # the last step has no noise: what is lost there is known
    first, data = list(levels)[-2], list(levels)[-1]
    lost = first.sigma**2 * 0.36 / (first.alpha**2 * 0.36 + first.sigma**2)
    assert data.sigma == 0.0
    assert stds[0] == pytest.approx(math.sqrt(0.36 - lost), rel=0.01)
    assert stds[1] < 0.95 * stds[0]


TABLE = Gamma((-5.0, 0.0, 5.0), (0.99, 0.8, 0.1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gamma((), ()), "for each"),
        (lambda: Gamma((0.0, 1.0), (0.5,)), "for each"),
        (lambda: Gamma((1.0, 0.0), (0.5, 0.5)), "rise strictly"),
        (lambda: Gamma((0.0, 1.0), (0.5, math.nan)), "for each"),
        (lambda: Gamma((0.0, 1.0), (0.5, -0.1)), "for each"),
        (lambda: Gamma.from_dict({"gamma": [1.0]}), "not the values"),
        (lambda: Gamma.from_dict({"gamma": ["x"], "log_snr": [1.0], "samples": 1}), "not the values"),
        (lambda: Gamma.from_dict({**dataclasses.asdict(TABLE), "estimator": "mean"}), "error or norm"),
        (lambda: TABLE.data_variance(schedules.linear()(1.0)), "log-SNR -5 to 5"),
        (lambda: TABLE.data_variance(schedules.linear()(0.001)), "estimate it"),
        (lambda: analytic(TABLE, radius=0.0), "must be positive"),
        (lambda: estimate(gaussian(), [], grids.uniform(schedules.linear(), 3)), "without data"),
        (lambda: estimate(gaussian(), [torch.zeros(1, 1)], schedules.RectifiedFlow()(1.0)), "with signal"),
        (lambda: estimate(gaussian(), [torch.zeros(1, 1)], schedules.linear()(0.0)), "with noise"),
    ],
)
def test_bad_input(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]
