"""The posterior and the transitions against DDPM's published coefficients and against Bayes' rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion import variance
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import diffuse, posterior, posterior_coefficients, transition
from sfumato.diffusion.parameterization import eps


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
