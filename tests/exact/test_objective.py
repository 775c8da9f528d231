"""The denoising loss, and the distributions of the noise levels."""

from __future__ import annotations

import math

import pytest
import torch
from tests.oracles import MEAN, STD, gaussian
from torch import nn

from sfumato.diffusion import objective, parameterization, weighting
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoiser, embed_index, embed_log_sigma, embed_thousand
from sfumato.diffusion.level import Level
from sfumato.diffusion.times import LogNormal, Uniform
from sfumato.errors import InputError


class Zero(nn.Module):
    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def stratified(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_the_loss_of_the_optimal_denoiser_is_the_posterior_variance() -> None:
    """E|eps_hat - eps|^2 = (alpha/sigma)^2 Var[x_0 | x_t] = alpha^2 s^2 / (alpha^2 s^2 + sigma^2) for Gaussian data."""
    oracle, schedule = gaussian(), schedules.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    for t in (0.1, 0.4, 0.8):
        level = schedule(t)
        found = objective.denoising_loss(oracle, x0, level, noise).mean()
        signal = level.alpha**2 * STD**2
        assert float(found) == pytest.approx(signal / (signal + level.sigma**2), rel=0.01)


@pytest.mark.parametrize("schedule", [schedules.Karras(), schedules.linear(1000)])
def test_the_edm_weight_is_that_of_the_paper_on_the_data_error(schedule: schedules.Schedule) -> None:
    sd = 0.5
    weight = weighting.edm_weight(sd)
    x0, noise = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    denoiser = Denoiser(Zero(), schedule, parameterization.edm(sd), embed_log_sigma)
    level = schedule(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64))
    found = objective.denoising_loss(denoiser, x0, level, noise, weight)
    sigma = torch.as_tensor(level.noise_to_signal)
    at = level.like(x0)
    error = (denoiser(at.alpha * x0 + at.sigma * noise, level).x0 - x0).square().mean(1)
    published = (sigma**2 + sd**2) / (sigma * sd) ** 2
    assert torch.allclose(found, published * error, rtol=1e-9)
    # at the start, where the network returns 0, it makes every level count alike
    expected = (x0 * sigma[:, None] - noise * sd**2).square().mean(1) / (sigma**2 + sd**2) / sd**2
    assert torch.allclose(found, expected, rtol=1e-9)


def test_uniform_times_of_a_table_are_its_steps() -> None:
    times = Uniform(schedules.linear(10))
    steps = torch.as_tensor(times.sample(stratified(1000)).t).mul(10).round()
    assert torch.equal(steps.unique(), torch.arange(1, 11).double())
    assert torch.equal(steps.long().bincount(), torch.tensor([0, *[100] * 10]))


def test_uniform_times_never_reach_the_data() -> None:
    times = Uniform(schedules.ContinuousLinear())
    assert (
        float(torch.as_tensor(times.sample(torch.tensor([0.0, 1.0 - 2**-33], dtype=torch.float64)).sigma).min()) > 0.0
    )


@pytest.mark.parametrize("schedule", [schedules.Karras(), schedules.ContinuousCosine()])
def test_log_normal_sigma(schedule: schedules.Schedule) -> None:
    times = LogNormal(schedule, -1.2, 1.2)
    logs = torch.as_tensor(times.sample(stratified(20_000)).noise_to_signal).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=1e-3)
    assert float(logs.std()) == pytest.approx(1.2, rel=1e-3)


def test_log_normal_sigma_is_cut_at_the_end_of_the_schedule() -> None:
    times = LogNormal(schedules.Karras(2.0), 3.0, 2.0)
    assert float(torch.as_tensor(times.sample(stratified(100)).sigma).max()) == pytest.approx(2.0)


def test_a_loss_per_sample_with_its_own_level() -> None:
    schedule = schedules.linear(1000)
    denoiser = Denoiser(Zero(), schedule, parameterization.v, embed_index(1000))
    x0, noise = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 3, 3)
    times = torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    together = objective.denoising_loss(denoiser, x0, schedule(times), noise)
    for i in range(4):
        one = objective.denoising_loss(denoiser, x0[i : i + 1], schedule(float(times[i])), noise[i : i + 1])
        assert float(together[i]) == pytest.approx(float(one[0]), rel=1e-5)


def test_what_the_network_is_told() -> None:
    level = Level(0.25, 0.8, 0.6)
    assert embed_index(1000)(level) == 249.0
    assert embed_thousand(level) == 250.0
    assert embed_log_sigma(level) == pytest.approx(0.25 * math.log(0.75))


def test_bad_input() -> None:
    denoiser = Denoiser(Zero(), schedules.linear(10), parameterization.eps, embed_index(10))
    with pytest.raises(InputError, match="sigma = 0"):
        denoiser(torch.zeros(1, 1), schedules.linear(10)(0.0))
    with pytest.raises(InputError, match="must be positive"):
        parameterization.edm(0.0)
    with pytest.raises(InputError, match="must be positive"):
        LogNormal(schedules.Karras(), std=0.0)
