"""Curves of schedules, losses over time, chains and ledgers, against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate

from sfumato.analysis._gaussian import fit
from sfumato.analysis.forward import forward_chain, reverse_chain
from sfumato.analysis.hierarchy import gaussian_ledger, hierarchy, loss_ledger
from sfumato.analysis.schedules import LossCurve, curves, loss_over_time
from sfumato.diffusion import schedule as schedules
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.ddim import ddim
from tests.oracles import GaussianOracle


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(count: int, seed: int = 0) -> torch.Tensor:
    """Data whose covariance has a spread of variances, one of them zero."""
    axes, _ = torch.linalg.qr(draw(6, 6, seed=9))
    scales = torch.tensor([2.0, 1.0, 0.5, 0.1, 0.03, 0.0], dtype=torch.float64)
    return ((draw(count, 6, seed=seed) * scales) @ axes.mT + 0.3).reshape(count, 1, 2, 3)


def test_the_beta_of_a_table_is_the_table() -> None:
    view = curves(schedules.linear(500))
    assert view.beta.tolist() == pytest.approx((500 * np.linspace(2e-4, 0.04, 500)).tolist(), rel=1e-9)
    assert view.alpha.square().add(view.sigma.square()).sub(1.0).abs().max() < 1e-12


def test_the_beta_of_the_continuous_linear_schedule_is_its_rate() -> None:
    view = curves(schedules.ContinuousLinear(), 20_000)
    middle = 0.5 * (view.times[1:] + view.times[:-1])
    assert torch.allclose(view.beta, 0.1 + 19.9 * middle, rtol=2e-3)


def test_the_beta_of_edm_is_that_of_the_same_signal_to_noise_ratio() -> None:
    view = curves(schedules.Karras(), 100)
    bars = 1.0 / (1.0 + (80.0 * (np.arange(101) / 100) ** 7) ** 2)
    assert view.beta[30:].tolist() == pytest.approx((100 * (1 - bars[1:] / bars[:-1]))[30:].tolist(), rel=1e-6)


def test_a_fitted_gaussian_has_the_moments_of_the_data() -> None:
    x = correlated(50)
    found = fit(x)
    covariance = np.cov(x.flatten(1).numpy().T, bias=True)
    assert found.mean.numpy() == pytest.approx(x.flatten(1).mean(0).numpy())
    assert (found.axes.mT * found.variances @ found.axes).numpy() == pytest.approx(covariance, abs=1e-12)


def test_its_denoiser_is_the_conditional_mean_by_matrices() -> None:
    x = correlated(40)
    found, level = fit(x), schedules.linear(1000)(0.35)
    covariance = torch.from_numpy(np.cov(x.flatten(1).numpy().T, bias=True))
    noisy = draw(3, 1, 2, 3, seed=4)
    within = level.alpha**2 * covariance + level.sigma**2 * torch.eye(6, dtype=torch.float64)
    shift = noisy.flatten(1) - level.alpha * found.mean
    expected = found.mean + level.alpha * torch.linalg.solve(within, shift.mT).mT @ covariance
    assert torch.allclose(found(noisy, level).x0.flatten(1), expected, atol=1e-10)


def test_the_loss_of_a_gaussian_is_the_closed_form() -> None:
    """The posterior variance by matrices: (alpha / sigma)^2 tr(C - alpha^2 C (alpha^2 C + sigma^2)^-1 C) / D."""
    data = fit(correlated(4000))
    levels = schedules.linear(1000)(torch.tensor([0.02, 0.2, 0.5, 0.9], dtype=torch.float64))
    covariance = data.axes.mT * data.variances @ data.axes
    for level, found in zip(levels, data.loss(levels).tolist(), strict=True):
        within = level.alpha**2 * covariance + level.sigma**2 * torch.eye(6, dtype=torch.float64)
        left = covariance - level.alpha**2 * covariance @ torch.linalg.solve(within, covariance)
        assert found == pytest.approx((level.alpha / level.sigma) ** 2 * float(left.trace()) / 6, rel=1e-8)


@pytest.mark.parametrize("schedule", [schedules.linear(1000), schedules.Karras(10.0)])
def test_the_measured_loss_of_a_gaussian_is_its_closed_form(schedule: schedules.Schedule) -> None:
    data = correlated(4000)
    gaussian = fit(data)
    levels = schedule(torch.tensor([0.3, 0.5, 0.7, 1.0], dtype=torch.float64))
    view = loss_over_time(gaussian, data, levels, gaussian, batch_size=1500)
    assert bool(((view.measured - view.gaussian).abs() < 4.0 * view.error).all())
    assert bool((view.error > 0.0).all())


def test_the_loss_does_not_depend_on_the_batches() -> None:
    data = correlated(30)
    gaussian, levels = fit(data), schedules.linear(10)(torch.tensor([0.5], dtype=torch.float64))
    one, two = (loss_over_time(gaussian, data, levels, gaussian, batch_size=n) for n in (7, 100))
    assert torch.allclose(one.measured, two.measured, rtol=1e-12)


def test_a_forward_chain_has_the_marginals_and_the_memory_of_the_process() -> None:
    schedule = schedules.cosine(1000)
    times = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    x0 = torch.full((40_000, 1, 2), 0.8, dtype=torch.float64)
    chain = forward_chain(x0, schedule(times))
    assert torch.equal(chain.images[0], x0) and chain.times.tolist() == [0.0, 0.1, 0.4, 0.7, 1.0]
    for i, level in enumerate(schedule(times), start=1):
        assert float(chain.images[i].mean()) == pytest.approx(0.8 * level.alpha, abs=0.015)
        assert float(chain.images[i].std()) == pytest.approx(level.sigma, abs=0.01)
    # Cov(x_t, x_s | x_0) = (alpha_t / alpha_s) sigma_s^2
    s, t = schedule(0.1), schedule(0.4)
    one, two = chain.images[1] - 0.8 * s.alpha, chain.images[2] - 0.8 * t.alpha
    assert float((one * two).mean()) == pytest.approx(t.alpha / s.alpha * s.sigma**2, rel=0.05)


def test_a_reverse_chain_begins_with_noise_and_ends_with_the_sample() -> None:
    oracle, levels = GaussianOracle(), grids.uniform(schedules.linear(100), 10)
    x = draw(2, 1, 3, 3)
    chain = reverse_chain(oracle, x, levels, ddim, keep=6)
    assert chain.times.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert torch.equal(chain.images[0], x) and chain.x0 is not None
    assert torch.equal(chain.x0[-1], chain.images[-1])
    assert torch.allclose(chain.x0[0], oracle(x, next(iter(levels))).x0)


def test_a_hierarchy_adds_up() -> None:
    view = hierarchy([(1.0, 0.5), (0.25, 4.0), (0.5, 2.0), (0.75, 1.0)])
    assert view.times.tolist() == [0.25, 0.5, 0.75, 1.0] and view.bits.tolist() == [4.0, 2.0, 1.0, 0.5]
    assert view.below.tolist() == [7.5, 3.5, 1.5, 0.5] and view.total == 7.5 and view.half() == 0.25


def test_the_ledger_of_a_gaussian_is_the_integral_of_its_error() -> None:
    """I(x_0; x_t) = 1/2 int_0^SNR mmse (Guo, Shamai and Verdu 2005, theorem 1), by quadrature."""
    data, schedule = fit(correlated(500)), schedules.ContinuousCosine()
    levels = schedule(torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    variances = data.variances.numpy()
    found = dict(gaussian_ledger(data, levels))
    stops = list(levels)
    for s, t in itertools.pairwise(stops):
        area, _ = integrate.quad(
            lambda g: (variances / (1 + g * variances)).sum(), math.exp(t.log_snr), math.exp(s.log_snr)
        )
        assert found[t.t] == pytest.approx(0.5 * area / math.log(2) / 6, rel=1e-6)


def test_the_ledger_of_the_losses_is_that_of_the_gaussian_on_a_fine_grid() -> None:
    data = fit(correlated(500))
    levels = schedules.ContinuousCosine()(torch.linspace(0.05, 0.95, 4000, dtype=torch.float64))
    loss = data.loss(levels)
    curve = LossCurve(torch.as_tensor(levels.t), torch.as_tensor(levels.log_snr), loss, torch.zeros_like(loss), loss)
    one, two = hierarchy(loss_ledger(curve)), hierarchy(gaussian_ledger(data, levels))
    assert one.total == pytest.approx(two.total, rel=2e-3)
    # the variance of the posterior is the best one only in the limit of small steps: it never costs less
    coarse = schedules.ContinuousCosine()(torch.linspace(0.05, 0.95, 20, dtype=torch.float64))
    loss = data.loss(coarse)
    curve = LossCurve(torch.as_tensor(coarse.t), torch.as_tensor(coarse.log_snr), loss, torch.zeros_like(loss), loss)
    assert hierarchy(loss_ledger(curve)).total > hierarchy(gaussian_ledger(data, coarse)).total


def test_bad_input() -> None:
    data, schedule = fit(correlated(10)), schedules.linear(10)
    clean, steps = schedule(torch.tensor([0.0, 0.5]).double()), schedule(torch.tensor([0.5, 0.2]).double())
    with pytest.raises(InputError, match="at least 2 data"):
        fit(torch.zeros(1, 3))
    with pytest.raises(InputError, match="at least 1 step"):
        curves(schedules.Karras(), 0)
    with pytest.raises(InputError, match="leave t = 0 out"):
        loss_over_time(data, correlated(5), clean, data)
    with pytest.raises(InputError, match="at least 2 data"):
        loss_over_time(data, correlated(1), steps, data)
    with pytest.raises(InputError, match="leave t = 0 out"):
        gaussian_ledger(data, clean)
    with pytest.raises(InputError, match="rise strictly"):
        forward_chain(correlated(2), steps)
    with pytest.raises(InputError, match="leave t = 0 out"):
        forward_chain(correlated(2), clean)
    with pytest.raises(InputError, match="at least 2 levels"):
        reverse_chain(data, correlated(2), grids.uniform(schedule, 5), ddim, keep=1)
    with pytest.raises(InputError, match="at least one term"):
        hierarchy([])
    with pytest.raises(InputError, match="not finite"):
        hierarchy([(0.5, math.inf)])
