"""Stochastic steps against published formulas and exact marginals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tests.oracles import MEAN, STD, gaussian, spread

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.published import dpm_solver_pp, predictor_corrector, sa_solver, sde_dpm_solver_pp
from sfumato.sampling.sample import Memory, initial, sample, seeded_noise
from sfumato.sampling.steps import Churn, ancestral, euler, heun

SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.linear(1000),
    "continuous": schedules.ContinuousLinear(),
    "edm": schedules.Karras(),
    "flow": schedules.RectifiedFlow(),
}
STEPS: dict[str, Callable[[Schedule], Any]] = {
    "euler_churn": lambda s: partial(euler, churn=Churn(s, 1, 0.05)),
    "heun_churn": lambda s: partial(heun, churn=Churn(s, 1, 0.3, 0.01, 20.0)),
    "sde_1": lambda s: sde_dpm_solver_pp(1),
    "sde_2m": lambda s: sde_dpm_solver_pp(2),
    "sde_2m_half": lambda s: sde_dpm_solver_pp(2, eta=0.5),
    "sde_3m": lambda s: sde_dpm_solver_pp(3),
    "sa": lambda s: sa_solver(),
    "sa_everywhere": lambda s: sa_solver(2, 1, tau=0.7, low=0.0, high=math.inf),
    "langevin": lambda s: partial(predictor_corrector, snr=0.1),
}


def last(frames: Any) -> torch.Tensor:
    return list(frames)[-1].x


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", STEPS)
def test_samples_have_the_mean_and_the_spread_of_the_data(name: str, step: str) -> None:
    schedule, oracle = SCHEDULES[name], gaussian(shape=(10,))
    levels = grids.karras(schedule, 120, 0.02, min(schedule(1.0).noise_to_signal, 80.0))
    x = initial(levels, (10,), 0, count=2000)
    found = last(sample(oracle, x, levels, STEPS[step](schedule), noise=seeded_noise(3)))
    # 20000 numbers: three standard errors are 1.3 % of the mean and 1.5 % of the spread, and steps are not small
    first_order = step in ("euler_churn", "sde_1", "langevin")
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(found.std()) == pytest.approx(STD, rel=0.06 if first_order else 0.02)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", STEPS)
def test_few_steps_from_pure_noise_are_finite_and_an_image_does_not_depend_on_its_batch(name: str, step: str) -> None:
    schedule = SCHEDULES[name]

    def draw(first: int, count: int, steps: int) -> torch.Tensor:
        levels = grids.uniform(schedule, steps)
        x = initial(levels, (2, 3), 1, first=first, count=count)
        return last(sample(gaussian(shape=(2, 3)), x, levels, STEPS[step](schedule), noise=seeded_noise(1, first)))

    for steps in (1, 2, 7):
        found = draw(0, 6, steps)
        assert found.isfinite().all() and found.dtype == torch.float32
        assert torch.equal(found[4:6], draw(4, 2, steps))


def one(step: Any, x: torch.Tensor, t: Level, s: Level, noise: torch.Tensor) -> torch.Tensor:
    return step(gaussian(shape=(2,)), x, t, s, Memory(lambda _: noise))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_order_step_of_the_reverse_diffusion_is_ancestral(name: str) -> None:
    schedule, x, noise = SCHEDULES[name], randn(5, 2), randn(5, 2, seed=1)
    t, s = schedule(0.7), schedule(0.5)
    expected = one(ancestral, x, t, s, noise)
    for step in (sde_dpm_solver_pp(1), sa_solver(1, 0, low=0.0, high=math.inf)):
        assert (one(step, x, t, s, noise) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_sde_dpm_solver_pp_2m_is_the_published_step(eta: float) -> None:
    schedule, oracle = SCHEDULES["continuous"], gaussian(shape=(2,))
    r, t, s = (schedule(v) for v in (0.8, 0.7, 0.5))
    x, noise = randn(5, 2), randn(5, 2, seed=1)
    memory, step = Memory(lambda _: noise), sde_dpm_solver_pp(2, eta)
    y = step(oracle, x, r, t, memory)
    found = step(oracle, y, t, s, memory)
    lam = [math.log(v.alpha / v.sigma) for v in (r, t, s)]
    h, ratio = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
    one, two = oracle(y, t).x0, oracle(x, r).x0
    grow = s.alpha * (1.0 - math.exp(-(1.0 + eta) * h))
    expected = s.sigma / t.sigma * math.exp(-eta * h) * y + grow * (one + 0.5 / ratio * (one - two))
    expected = expected + s.sigma * math.sqrt(1.0 - math.exp(-2.0 * eta * h)) * noise
    assert (found - expected).abs().max() < 1e-12


def test_without_noise_it_is_the_probability_flow() -> None:
    schedule, oracle = SCHEDULES["continuous"], gaussian(shape=(2,))
    levels, x = grids.uniform(schedule, 12), randn(4, 2)

    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("noise was drawn")

    expected = last(sample(oracle, x, levels, dpm_solver_pp(3)))
    for step in (sde_dpm_solver_pp(3, eta=0.0), partial(sa_solver(3, 0, tau=0.0))):
        found = last(sample(oracle, x, levels, step, noise=refuse))
        assert (found - expected).abs().max() < 0.02
    assert torch.equal(last(sample(oracle, x, levels, sde_dpm_solver_pp(3, eta=0.0), noise=refuse)), expected)


@pytest.mark.parametrize("corrected", [False, True])
def test_churn_is_algorithm_2_of_edm(corrected: bool) -> None:
    schedule, oracle = schedules.Karras(), gaussian(shape=(2,))
    x, noise, gamma, blur = randn(5, 2), randn(5, 2, seed=1), 0.2, 1.007
    sigma, following = 3.0, 2.0
    t, s = (schedule.at(-2.0 * math.log(v)) for v in (sigma, following))
    step = partial(heun if corrected else euler, churn=Churn(schedule, 1, gamma, 0.1, 10.0, blur))
    found = one(step, x, t, s, noise)
    raised = sigma + gamma * sigma
    hat = x + math.sqrt(raised**2 - sigma**2) * blur * noise

    def slope(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return (x - oracle(x, Level(0.5, 1.0, sigma)).x0) / sigma

    d = slope(hat, raised)
    expected = hat + (following - raised) * d
    if corrected:
        expected = hat + (following - raised) * 0.5 * (d + slope(expected, following))
    assert (found - expected).abs().max() < 1e-10
    outside = partial(heun, churn=Churn(schedule, 1, gamma, 5.0, 10.0))
    assert torch.equal(one(outside, x, t, s, noise), one(partial(heun, final_order=1), x, t, s, noise))


def test_churn_stays_within_the_schedule() -> None:
    schedule = schedules.Karras()
    x, memory = randn(3, 2), Memory(seeded_noise(0))
    _, raised = Churn(schedule, 1, 0.4)(x, schedule.at(-2.0 * math.log(70.0)), memory)
    assert raised.sigma == pytest.approx(80.0)
    assert Churn(schedule, 1, 0.4)(x, schedule(1.0), memory)[1].t == 1.0
    _, raised = Churn(schedule, 1, 9.0)(x, schedule.at(0.0), memory)
    assert raised.sigma == pytest.approx(math.sqrt(2.0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_langevin_steps_leave_the_marginal_as_it_is(name: str) -> None:
    """And draw to it what is not there: states without spread."""
    schedule, oracle = SCHEDULES[name], gaussian(shape=(4,))
    s = schedule(0.5)
    x = torch.full((2000, 4), s.alpha * MEAN, dtype=torch.float64)
    memory = Memory(seeded_noise(0))
    # a step to its own level adds nothing
    found = predictor_corrector(oracle, x, s, s, memory, corrections=300, snr=0.12)
    assert float(found.mean()) == pytest.approx(s.alpha * MEAN, abs=0.04 * spread(s))
    assert float(found.std()) == pytest.approx(spread(s), rel=0.04)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Churn(schedules.Karras(), 1, -0.1), "churn >= 0"),
        (lambda: Churn(schedules.Karras(), 1, 0.1, 2.0, 1.0), "churn_low < churn_high"),
        (lambda: sde_dpm_solver_pp(2, eta=-1.0), "eta"),
        (lambda: sde_dpm_solver_pp(7), "order from 1 to 3"),
        (lambda: sa_solver(tau=-1.0), "tau"),
        (lambda: sa_solver(corrector=9), "corrector"),
        (
            lambda: one(partial(predictor_corrector, snr=2.0), randn(1, 1), *[Level(0.5, 1.0, 1.0)] * 2, randn(1, 1)),
            "snr",
        ),
    ],
)
def test_bad_input(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_langevin_needs_a_step_that_does_not_blow_up() -> None:
    t, s = (schedules.Karras()(v) for v in (0.6, 0.5))
    with pytest.raises(InputError, match="snr between 0 and"):
        one(partial(predictor_corrector, snr=2.0), randn(1, 1), t, s, randn(1, 1))
