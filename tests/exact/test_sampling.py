"""Samplers against the exact flow and the exact marginals of Gaussian data."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from tests.oracles import MEAN, STD, Counted, gaussian

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion import variance
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.published import dpm_solver_pp
from sfumato.sampling.sample import Frame, initial, sample, seeded_noise
from sfumato.sampling.steps import ancestral, ddim, heun

SCHEDULES = {
    "linear": schedules.ContinuousLinear(),
    "cosine": schedules.ContinuousCosine(),
    "edm": schedules.Karras(),
}


def last(frames: object) -> torch.Tensor:
    return list(frames)[-1].x  # type: ignore[call-overload]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("step", "order"), [(ddim, 1.0), (heun, 2.0), (dpm_solver_pp(2), 2.0)], ids=["ddim", "heun", "dpm"]
)
def test_order_of_convergence(name: str, step: object, order: float) -> None:
    """The error against the exact flow falls as the nominal power of the number of steps, down to the data."""
    schedule, oracle = SCHEDULES[name], gaussian()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * schedule(1.0).sigma
    exact = oracle.flow(x, schedule(1.0), schedule(0.0))
    errors = []
    for steps in (160, 320):
        # sigma_min shrinks with the steps, so that the first-order last step does not set the order
        levels = grids.karras(schedule, steps, sigma_min=1e-5)
        errors.append(float((last(sample(oracle, x, levels, step)) - exact).abs().max()))  # type: ignore[arg-type]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_one_ddim_step_is_the_published_formula() -> None:
    schedule, oracle = schedules.linear(1000), gaussian(shape=(2,))
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, s = schedule(0.6), schedule(0.4)
    noise = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = last(_one(oracle, x, t, s, partial(ddim, eta=0.7), noise))
    prediction = oracle(x, t)
    # Song et al. 2021, eqs. 12 and 16, in alpha_bar
    a, b = t.alpha**2, s.alpha**2
    spread = 0.7 * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
    expected = math.sqrt(b) * prediction.x0 + math.sqrt(1 - b - spread**2) * prediction.eps + spread * noise
    assert (found - expected).abs().max() < 1e-12


def test_one_ancestral_step_is_algorithm_2() -> None:
    schedule, oracle = schedules.linear(1000), gaussian(shape=(2,))
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t, s = schedule(0.5), schedule(0.499)
    beta, bar = float(schedule.betas[499]), t.alpha**2
    found = last(_one(oracle, x, t, s, partial(ancestral, variance=variance.large), noise))
    eps = oracle(x, t).eps
    expected = (x - beta / math.sqrt(1 - bar) * eps) / math.sqrt(1 - beta) + math.sqrt(beta) * noise
    assert (found - expected).abs().max() < 1e-10


def _one(oracle: Denoise, x: torch.Tensor, t: Level, s: Level, step: object, noise: torch.Tensor) -> object:
    from sfumato.sampling.sample import Memory

    yield Frame(step(oracle, x, t, s, Memory(lambda _: noise)), s)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("step", "tolerance"),
    [
        (ancestral, 0.05),  # the small variance is too small for data that are no single point, by 3 % at 200 steps
        (partial(ddim, eta=1.0), 0.05),
        (partial(ancestral, variance=variance.large), 0.02),
        (partial(ddim, eta=0.5), 0.05),
        (ddim, 0.02),
        (heun, 0.02),
        (dpm_solver_pp(2), 0.02),
    ],
)
def test_samples_have_the_mean_and_spread_of_the_data(step: object, tolerance: float) -> None:
    schedule, oracle = schedules.linear(1000), gaussian(shape=(4, 5))
    levels = grids.uniform(schedule, 200)
    x = initial(levels, (4, 5), 0, count=1000)
    found = last(sample(oracle, x, levels, step, noise=seeded_noise(0)))  # type: ignore[arg-type]
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(STD, rel=tolerance)


def test_ddim_with_eta_one_is_ancestral() -> None:
    schedule, oracle = schedules.cosine(1000), gaussian(shape=(3,))
    levels = grids.uniform(schedule, 20)
    x = initial(levels, (3,), 5, count=4).double()
    one = last(sample(oracle, x, levels, partial(ddim, eta=1.0), noise=seeded_noise(7)))
    two = last(sample(oracle, x, levels, ancestral, noise=seeded_noise(7)))
    assert (one - two).abs().max() < 1e-10


def test_no_step_calls_the_denoiser_at_the_data_and_frames_end_there() -> None:
    schedule, oracle = schedules.Karras(), Counted(gaussian())
    levels = grids.karras(schedule, 10)
    frames = list(sample(oracle, torch.zeros(2, 1), levels, heun, previews=True))
    assert len(frames) == 10 and frames[-1].level.sigma == 0.0
    assert len(oracle.calls) == 19 and min(oracle.calls) > 0.0
    assert all(frame.x0 is not None for frame in frames)


def test_deterministic_steps_draw_no_noise() -> None:
    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("noise was drawn")

    levels = grids.uniform(schedules.linear(100), 5)
    for step in (ddim, heun, dpm_solver_pp(2)):
        last(sample(gaussian(), torch.zeros(2, 1), levels, step, noise=refuse))


@pytest.mark.parametrize("step", [ddim, partial(ddim, eta=0.5), ancestral, heun, dpm_solver_pp(2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_frame_is_written_over(step: object, dtype: torch.dtype) -> None:
    levels = grids.uniform(schedules.linear(100), 10)
    x = initial(levels, (2, 3), 1, count=4).to(dtype)
    before, kept = x.clone(), []
    for frame in sample(gaussian(shape=(2, 3)), x, levels, step):  # type: ignore[arg-type]
        kept.append((frame.x, frame.x.clone()))
    assert torch.equal(x, before) and all(torch.equal(one, two) for one, two in kept)


def test_a_network_that_returns_its_input() -> None:
    from sfumato.diffusion.denoiser import Denoiser, embed_thousand
    from sfumato.diffusion.parameterization import eps

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return x

    denoiser = Denoiser(Same(), schedules.linear(100), eps, embed_thousand)
    levels, x = grids.uniform(schedules.linear(100), 10), torch.ones(2, 3)
    before, steps = x.clone(), list(itertools.pairwise(levels))
    found = last(sample(denoiser, x, levels, ddim))
    # the predicted noise is x itself, so that every step multiplies by one number
    factor = math.prod(s.alpha * (1.0 - t.sigma) / t.alpha + s.sigma for t, s in steps)
    assert torch.equal(x, before) and (found - factor * x).abs().max() < 1e-6 * abs(factor)


def test_an_image_of_a_seed_does_not_depend_on_its_batch() -> None:
    schedule = schedules.linear(100)
    levels = grids.uniform(schedule, 10)

    def draw(first: int, count: int) -> torch.Tensor:
        x = initial(levels, (2, 3), 1, first=first, count=count)
        return last(sample(gaussian(shape=(2, 3)), x, levels, ancestral, noise=seeded_noise(1, first)))

    assert torch.equal(draw(0, 6)[4:6], draw(4, 2))


@pytest.mark.parametrize("schedule", [schedules.linear(1000), schedules.ContinuousCosine(), schedules.Karras()])
def test_grids(schedule: schedules.Schedule) -> None:
    uniform = grids.uniform(schedule, 10)
    assert [level.t for level in uniform] == pytest.approx([i / 10 for i in range(10, -1, -1)])
    karras = grids.karras(schedule, 12, sigma_min=0.02)
    ratios = [level.noise_to_signal for level in karras]
    assert ratios[0] == pytest.approx(schedule(1.0).noise_to_signal, rel=1e-6)
    assert ratios[-2] == pytest.approx(0.02, rel=1e-6) and ratios[-1] == 0.0
    roots = torch.tensor(ratios[:-1], dtype=torch.float64) ** (1 / 7)
    steps = roots.diff().abs().tolist()
    assert max(steps) - min(steps) < 1e-6 * max(steps)


def test_a_full_uniform_grid_visits_every_step_of_a_table() -> None:
    schedule = schedules.linear(100)
    alphas = [level.alpha**2 for level in grids.uniform(schedule, 100)]
    assert alphas[:-1] == pytest.approx(schedule.alpha_bars.flip(0).tolist(), abs=1e-14)


@pytest.mark.parametrize("step", [ddim, heun, dpm_solver_pp(2), ancestral])
def test_steps_start_where_nothing_of_the_data_is_left(step: object) -> None:
    """Rectified flow begins at alpha = 0: the first step is first order, and the exact flow is followed."""
    schedule, oracle = schedules.RectifiedFlow(), gaussian()
    levels = grids.uniform(schedule, 200)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    found = last(sample(oracle, x, levels, step))  # type: ignore[arg-type]
    assert found.isfinite().all()
    if step is not ancestral:
        exact = oracle.flow(x, schedule(1.0), schedule(0.0))
        assert (found - exact).abs().max() < 0.02
    with pytest.raises(InputError, match="set the start of the grid"):
        grids.karras(schedule, 5)
    assert len(grids.karras(schedule, 5, sigma_max=50.0)) == 6


def test_one_step_is_enough_for_a_grid() -> None:
    for levels in (grids.uniform(schedules.cosine(10), 1), grids.karras(schedules.Karras(), 1)):
        assert len(levels) == 2
        assert last(sample(gaussian(), torch.zeros(2, 1), levels, heun)).isfinite().all()


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (lambda s: s(torch.tensor([1.0, 0.5], dtype=torch.float64)), "end at the data"),
        (lambda s: s(torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)), "fall strictly"),
        (lambda s: s(torch.tensor([1.0, 0.5, 0.5, 0.0], dtype=torch.float64)), "fall strictly"),
        (lambda s: s(torch.tensor([0.0], dtype=torch.float64)), "at least one step"),
        (lambda s: grids.uniform(s, 0), "at least 1 step"),
        (lambda s: grids.uniform(s, -3), "at least 1 step"),
        (lambda s: grids.karras(s, 5, sigma_min=0.0), "sigma_min"),
        (lambda s: grids.karras(s, 5, sigma_max=1e9), "can't start"),
    ],
)
def test_bad_grids(levels: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        last(sample(gaussian(), torch.zeros(1, 1), levels(schedules.linear(100)), ddim))  # type: ignore[operator]
