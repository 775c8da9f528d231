"""Curves of schedules, losses over time and chains, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.analysis import processes
from sfumato.analysis.processes import (
    forward_strip,
    gaussian_loss,
    loss_over_time,
    reverse_strip,
    schedule_curves,
)
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.steps import ddim
from tests.oracles import gaussian as make_gaussian


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(count: int, seed: int = 0) -> torch.Tensor:
    """Data whose covariance has a spread of variances, one of them zero."""
    axes, _ = torch.linalg.qr(normal(6, 6, seed=9))
    scales = torch.tensor([2.0, 1.0, 0.5, 0.1, 0.03, 0.0], dtype=torch.float64)
    return ((normal(count, 6, seed=seed) * scales) @ axes.mT + 0.3).reshape(count, 1, 2, 3)


def test_the_beta_of_a_table_is_the_table() -> None:
    levels, beta = schedule_curves(schedules.linear(500))
    assert beta.tolist() == pytest.approx((500 * np.linspace(2e-4, 0.04, 500)).tolist(), rel=1e-9)
    assert levels.alpha.square().add(levels.sigma.square()).sub(1.0).abs().max() < 1e-12


def test_the_beta_of_the_continuous_linear_schedule_is_its_rate() -> None:
    levels, beta = schedule_curves(schedules.ContinuousLinear(), 20_000)
    middle = 0.5 * (levels.t[1:] + levels.t[:-1])
    assert torch.allclose(beta, 0.1 + 19.9 * middle, rtol=2e-3)


def test_the_beta_of_edm_is_that_of_the_same_signal_to_noise_ratio() -> None:
    _, beta = schedule_curves(schedules.Karras(), 100)
    bars = 1.0 / (1.0 + (80.0 * (np.arange(101) / 100) ** 7) ** 2)
    assert beta[30:].tolist() == pytest.approx((100 * (1 - bars[1:] / bars[:-1]))[30:].tolist(), rel=1e-6)


def test_the_loss_of_a_gaussian_is_the_closed_form() -> None:
    """The posterior variance by matrices: (alpha / sigma)^2 tr(C - alpha^2 C (alpha^2 C + sigma^2)^-1 C) / D."""
    x = correlated(4000)
    data = GaussianOracle.fit(x)
    levels = schedules.linear(1000)(torch.tensor([0.02, 0.2, 0.5, 0.9], dtype=torch.float64))
    covariance = torch.from_numpy(np.cov(x.flatten(1).numpy().T, bias=True))
    for level, found in zip(levels, gaussian_loss(data, levels).tolist(), strict=True):
        within = level.alpha**2 * covariance + level.sigma**2 * torch.eye(6, dtype=torch.float64)
        left = covariance - level.alpha**2 * covariance @ torch.linalg.solve(within, covariance)
        assert found == pytest.approx((level.alpha / level.sigma) ** 2 * float(left.trace()) / 6, rel=1e-8)


@pytest.mark.parametrize("schedule", [schedules.linear(1000), schedules.Karras(10.0)])
def test_the_measured_loss_of_a_gaussian_is_its_closed_form(schedule: schedules.Schedule) -> None:
    data = correlated(4000)
    gaussian = GaussianOracle.fit(data)
    levels = schedule(torch.tensor([0.3, 0.5, 0.7, 1.0], dtype=torch.float64))
    view = loss_over_time(gaussian, data, levels, gaussian)
    assert bool(((view.measured - view.gaussian).abs() < 4.0 * view.error).all())
    assert bool((view.error > 0.0).all())


def test_the_loss_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data = correlated(30)
    gaussian, levels = GaussianOracle.fit(data), schedules.linear(10)(torch.tensor([0.5], dtype=torch.float64))
    one = loss_over_time(gaussian, data, levels, gaussian)
    monkeypatch.setattr(processes, "BATCH", 7)
    two = loss_over_time(gaussian, data, levels, gaussian)
    assert torch.allclose(one.measured, two.measured, rtol=1e-12)


def test_a_forward_strip_has_the_marginals_and_the_memory_of_the_process() -> None:
    schedule = schedules.cosine(1000)
    times = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    x0 = torch.full((40_000, 1, 2), 0.8, dtype=torch.float64)
    chain = forward_strip(x0, schedule(times))
    assert torch.equal(chain.images[0], x0) and chain.times.tolist() == [0.0, 0.1, 0.4, 0.7, 1.0]
    for i, level in enumerate(schedule(times), start=1):
        assert float(chain.images[i].mean()) == pytest.approx(0.8 * level.alpha, abs=0.015)
        assert float(chain.images[i].std()) == pytest.approx(level.sigma, abs=0.01)
    # Cov(x_t, x_s | x_0) = (alpha_t / alpha_s) sigma_s^2
    s, t = schedule(0.1), schedule(0.4)
    one, two = chain.images[1] - 0.8 * s.alpha, chain.images[2] - 0.8 * t.alpha
    assert float((one * two).mean()) == pytest.approx(t.alpha / s.alpha * s.sigma**2, rel=0.05)


def test_a_reverse_strip_begins_with_noise_and_ends_with_the_sample() -> None:
    oracle, levels = make_gaussian(shape=(1, 3, 3)), grids.uniform(schedules.linear(100), 10)
    x = normal(2, 1, 3, 3)
    chain = reverse_strip(oracle, x, levels, ddim, keep=6)
    assert chain.times.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert torch.equal(chain.images[0], x) and chain.x0 is not None
    assert torch.equal(chain.x0[-1], chain.images[-1])
    assert torch.allclose(chain.x0[0], oracle(x, next(iter(levels))).x0)


def test_bad_input() -> None:
    data, schedule = GaussianOracle.fit(correlated(10)), schedules.linear(10)
    clean, steps = schedule(torch.tensor([0.0, 0.5]).double()), schedule(torch.tensor([0.5, 0.2]).double())
    with pytest.raises(InputError, match="leave t = 0 out"):
        loss_over_time(data, correlated(5), clean, data)
    with pytest.raises(InputError, match="at least 2 images"):
        loss_over_time(data, correlated(1), steps, data)
    with pytest.raises(InputError, match="strictly"):
        forward_strip(correlated(2), schedule(torch.tensor([0.5, 0.2, 0.7]).double()))
