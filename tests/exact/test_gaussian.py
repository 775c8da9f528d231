"""The posterior and the transitions against DDPM's published coefficients and against Bayes' rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion import variance
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import (
    diffuse,
    diffusion_kernel,
    forward_process,
    forward_transition,
    posterior,
    posterior_coefficients,
    transition,
    warn_of_signal,
)
from sfumato.diffusion.level import Level
from sfumato.diffusion.parameterization import eps
from sfumato.errors import InputError, SfumatoWarning
from sfumato.sampling import grids
from sfumato.sampling.sample import seeded_noise


def test_neighbouring_steps_are_those_of_ddpm() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    alphas = 1.0 - betas
    bars = np.cumprod(alphas)
    before = np.append(1.0, bars[:-1])
    schedule = schedules.linear(1000)
    for i in (1, 2, 500, 999, 1000):
        k0, kt, tilde = posterior_coefficients(schedule(i / 1000), schedule((i - 1) / 1000))
        n = i - 1
        assert k0 == pytest.approx(np.sqrt(before[n]) * betas[n] / (1 - bars[n]), abs=1e-10)
        assert kt == pytest.approx(np.sqrt(alphas[n]) * (1 - before[n]) / (1 - bars[n]), abs=1e-10)
        assert tilde == pytest.approx((1 - before[n]) / (1 - bars[n]) * betas[n], abs=1e-12)
        scale, beta = transition(schedule(i / 1000), schedule((i - 1) / 1000))
        assert scale == pytest.approx(np.sqrt(alphas[n]), abs=1e-12)
        assert beta == pytest.approx(betas[n], abs=1e-12)


@pytest.mark.parametrize("schedule", [schedules.cosine(1000), schedules.ContinuousLinear(), schedules.Karras(20.0)])
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.2), (0.5, 0.49), (1.0, 0.01)])
def test_any_pair_obeys_bayes(schedule: schedules.Schedule, t: float, s: float) -> None:
    """Precision-weighted product of q(x_t | x_s) as a function of x_s and q(x_s | x_0)."""
    at, to = schedule(t), schedule(s)
    scale, noise = transition(at, to)
    x0, x_t = 0.3, -1.1
    precision = scale**2 / noise + 1 / to.sigma**2
    mean = (scale * x_t / noise + to.alpha * x0 / to.sigma**2) / precision
    found = posterior(torch.full((1, 1), x0, dtype=torch.float64), torch.full((1, 1), x_t, dtype=torch.float64), at, to)
    assert float(found.mean) == pytest.approx(mean, abs=1e-10)
    assert float(found.variance) == pytest.approx(1 / precision, rel=1e-9)


def test_the_posterior_ends_at_the_data() -> None:
    schedule = schedules.linear(100)
    x0, x = torch.randn(2, 3), torch.randn(2, 3)
    found = posterior(x0, x, schedule(0.01), schedule(0.0))
    assert torch.allclose(found.mean, x0) and float(found.variance) == 0.0


def test_transitions_compose() -> None:
    schedule = schedules.cosine(1000)
    t, s, r = schedule(0.8), schedule(0.5), schedule(0.1)
    (ts, vts), (sr, vsr), (tr, vtr) = transition(t, s), transition(s, r), transition(t, r)
    assert tr == pytest.approx(ts * sr, rel=1e-12)
    assert vtr == pytest.approx(ts**2 * vsr + vts, rel=1e-12)


def test_a_batch_of_levels_is_the_single_levels() -> None:
    schedule = schedules.linear(1000)
    x0, x = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    times, earlier = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.tensor([0.1, 0.4, 0.1]).double()
    many = posterior(x0, x, schedule(times), schedule(earlier))
    for i in range(3):
        one = posterior(x0[i : i + 1], x[i : i + 1], schedule(float(times[i])), schedule(float(earlier[i])))
        assert torch.allclose(many.mean[i], one.mean[0], atol=1e-13)


def test_the_kernel_has_the_moments_it_should() -> None:
    level = schedules.linear(1000)(0.5)
    x0 = torch.full((200_000, 1), 0.7)
    x = diffuse(x0, level, torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)))
    assert float(x.mean()) == pytest.approx(0.7 * level.alpha, abs=5 * level.sigma / 447)
    assert float(x.std()) == pytest.approx(level.sigma, rel=0.01)


def test_small_and_large_variance() -> None:
    schedule = schedules.linear(1000)
    t, s = schedule(0.5), schedule(0.499)
    prediction = Prediction(torch.zeros(1, 1), torch.zeros(1, 1), eps(t))
    beta = float(schedule.betas[499])
    assert variance.large(prediction, t, s) == pytest.approx(beta, rel=1e-10)
    assert variance.small(prediction, t, s) == pytest.approx(beta * s.sigma**2 / t.sigma**2, rel=1e-10)
    assert variance.large(prediction, schedule(0.001), schedule(0.0)) == 0.0


@pytest.mark.parametrize("schedule", [schedules.linear(50), schedules.cosine(50), schedules.Karras(20.0)])
def test_the_forward_kernels_are_gaussians_that_compose(schedule: schedules.Schedule) -> None:
    """q(x_t | x_0) is q(x_t | x_s) averaged over q(x_s | x_0)."""
    x0 = torch.randn(3, 2, dtype=torch.float64)
    t, s = schedule(0.8), schedule(0.3)
    before, whole = diffusion_kernel(x0, s), diffusion_kernel(x0, t)
    step = forward_transition(before.mean, t, s)
    assert torch.allclose(step.mean, whole.mean, atol=1e-13)
    scale = t.alpha / s.alpha
    assert step.variance + scale**2 * before.variance == pytest.approx(whole.variance, rel=1e-12)
    noise = torch.randn(3, 2, dtype=torch.float64)
    assert torch.allclose(whole.sample(noise), diffuse(x0, t, noise), atol=1e-14)


def test_the_one_step_kernel_is_that_of_ddpm() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    schedule, x = schedules.linear(1000), torch.randn(4, 3, dtype=torch.float64)
    for i in (1, 2, 500, 1000):
        found = forward_transition(x, schedule(i / 1000), schedule((i - 1) / 1000))
        assert torch.allclose(found.mean, math.sqrt(1.0 - betas[i - 1]) * x, atol=1e-12)
        assert found.variance == pytest.approx(betas[i - 1], abs=1e-12)


def test_kernels_of_a_level_per_sample() -> None:
    schedule, x = schedules.cosine(1000), torch.randn(2, 3, 4, dtype=torch.float64)
    times, earlier = torch.tensor([0.5, 0.9]).double(), torch.tensor([0.0, 0.7]).double()
    noise = torch.randn(2, 3, 4, dtype=torch.float64)
    many = forward_transition(x, schedule(times), schedule(earlier)).sample(noise)
    kernels = diffusion_kernel(x, schedule(times)).sample(noise)
    for i in range(2):
        t, s, at = schedule(float(times[i])), schedule(float(earlier[i])), slice(i, i + 1)
        assert torch.allclose(many[at], forward_transition(x[at], t, s).sample(noise[at]), atol=1e-14)
        assert torch.allclose(kernels[at], diffusion_kernel(x[at], t).sample(noise[at]), atol=1e-14)


@pytest.mark.parametrize(
    "schedule", [schedules.linear(20), schedules.cosine(20), schedules.ContinuousLinear(), schedules.Karras()]
)
def test_the_marginals_of_the_chain_are_the_kernel(schedule: schedules.Schedule) -> None:
    """The joint is Gaussian with Cov[x_s, x_t] = alpha_{t|s} sigma_s^2, which no set of marginals shows."""
    count, x0 = 40_000, 0.75
    chain = list(forward_process(torch.full((count, 1), x0).double(), grids.uniform(schedule, 20), seeded_noise(3)))
    assert [level.t for level, _ in chain] == pytest.approx([i / 20 for i in range(1, 21)])
    for level, x in chain:
        assert float(x.mean()) == pytest.approx(level.alpha * x0, abs=5 * level.sigma / math.sqrt(count))
        assert float(x.std()) == pytest.approx(level.sigma, rel=0.02)
    (s, x_s), (t, x_t) = chain[4], chain[9]
    covariance = float(torch.cov(torch.cat([x_s, x_t], 1).T)[0, 1])
    tolerance = 6 * s.sigma * t.sigma / math.sqrt(count)
    assert covariance == pytest.approx(t.alpha / s.alpha * s.sigma**2, abs=tolerance)


def test_a_chain_walks_a_grid_either_way_and_from_any_level() -> None:
    schedule, x0 = schedules.linear(100), torch.randn(2, 3)
    up = schedule(torch.arange(11, dtype=torch.float64) / 10)
    one = list(forward_process(x0, up, seeded_noise(0)))
    two = list(forward_process(x0, grids.uniform(schedule, 10), seeded_noise(0)))
    assert len(one) == 10 and all(torch.equal(a[1], b[1]) for a, b in zip(one, two, strict=True))
    level, x = next(forward_process(x0, schedule(0.4), seeded_noise(0)))
    assert torch.allclose(x, diffuse(x0, level, seeded_noise(0)(x0)), atol=1e-6)


@pytest.mark.parametrize("grid", [[0.0], [0.5, 0.2, 0.8], [0.1, 0.1], [0.0, 0.0]])
def test_a_chain_needs_a_grid(grid: list[float]) -> None:
    with pytest.raises(InputError, match="at least one noisy level"):
        list(forward_process(torch.zeros(1, 1), schedules.linear(10)(torch.tensor(grid).double()), seeded_noise(0)))


def test_signal_that_is_left_at_the_end_is_named() -> None:
    schedule = schedules.Discrete(np.linspace(1e-4, 0.012, 1000))
    left = np.prod(1.0 - np.linspace(1e-4, 0.012, 1000))
    with pytest.warns(SfumatoWarning, match=rf"alpha_bar_T = {left:.3g} is not near zero"):
        list(forward_process(torch.zeros(1, 1), grids.uniform(schedule, 5), seeded_noise(0)))
    with pytest.warns(SfumatoWarning, match=r"alpha_bar_T = 0\.9 "):
        warn_of_signal(schedules.Discrete([0.1])(1.0))
    # of two steps only, the second is clipped at 0.999 and the first is 0.05
    with pytest.warns(SfumatoWarning, match=r"alpha_bar_T = 0\.00095 "):
        warn_of_signal(schedules.linear(2)(1.0))


@pytest.mark.parametrize("steps", [5, 10, 50, 250, 1000, 4000])
def test_published_tables_end_in_noise(steps: int) -> None:
    """No warning, which tests make an error, from the linear table at any rescaling, nor from the others."""
    for schedule in (
        schedules.linear(steps),
        schedules.cosine(steps),
        schedules.ContinuousLinear(),
        schedules.ContinuousCosine(),
        schedules.Karras(),
    ):
        warn_of_signal(schedule(1.0))
    # half way there is signal, as there should be
    warn_of_signal(schedules.linear(steps)(0.5))
    warn_of_signal(Level(1.0, 0.0, 1.0))
