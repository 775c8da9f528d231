"""The learned schedule and its training rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from sfumato.diffusion import objective
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.learned_schedule import LearnedSchedule
from sfumato.diffusion.level import Level
from sfumato.errors import InputError

STD = 0.5


def oracle(x: torch.Tensor, level: Level, **cond: torch.Tensor) -> Prediction:
    """The exact denoiser of N(0, STD^2), at a level per sample."""
    at = level.like(x)
    gain = at.alpha * STD**2 / (at.alpha**2 * STD**2 + at.sigma**2)
    return Prediction.of_x0(x, gain * x, level)


def bent() -> LearnedSchedule:
    """A schedule with some curvature, in float64."""
    torch.manual_seed(0)
    schedule = LearnedSchedule(9.0, -5.0, 8).double()
    with torch.no_grad():
        for p in (schedule.linear, schedule.shifts, schedule.heights):
            p.add_(torch.randn_like(p))
    return schedule


def draws(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    grey = (STD * torch.randn(count, 6, dtype=torch.float64, generator=generator)).clamp(-1, 1)
    x0 = ((grey + 1.0) * 127.5).round() / 127.5 - 1.0
    t = LearnedSchedule.start + (1.0 - LearnedSchedule.start) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return x0, torch.randn(count, 6, dtype=torch.float64, generator=generator), t


def between(schedule: LearnedSchedule) -> list[torch.Tensor]:
    return [schedule.linear, schedule.rates, schedule.shifts, schedule.heights]


def test_its_shape_rises_from_0_to_1_with_its_derivative() -> None:
    schedule = bent()
    t = torch.linspace(LearnedSchedule.start, 1.0, 400, dtype=torch.float64, requires_grad=True)
    value, slope = schedule.shape(t)
    (derivative,) = torch.autograd.grad(value.sum(), t)
    assert float(value[0].detach()) == 0.0 and float(value[-1].detach()) == pytest.approx(1.0, abs=1e-14)
    assert (derivative - slope).abs().max() < 1e-10 and bool((slope > 0).all())


def test_its_ends_and_the_data() -> None:
    schedule = bent()
    assert schedule(LearnedSchedule.start).log_snr == pytest.approx(9.0, abs=1e-9)
    assert schedule(1.0).log_snr == pytest.approx(-5.0, abs=1e-9)
    half = schedule(LearnedSchedule.start / 2)
    # sigma / alpha is proportional to t before the first level
    assert half.noise_to_signal == pytest.approx(0.5 * math.exp(-4.5), rel=1e-9)
    level = schedule(torch.linspace(0, 1, 50, dtype=torch.float64))
    norm_ = torch.as_tensor(level.alpha).square() + torch.as_tensor(level.sigma).square()
    assert (norm_ - 1.0).abs().max() < 1e-12
    back = schedule.at(torch.as_tensor(level.log_snr)[1:])
    assert (torch.as_tensor(back.t) - torch.as_tensor(level.t)[1:]).abs().max() < 1e-9


def test_the_kernel_carries_gradients_and_levels_do_not() -> None:
    schedule = bent()
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    sigma = schedule.kernel(t)[1]
    gradients = torch.autograd.grad(sigma[1:].sum(), list(schedule.parameters()))
    assert all(bool(g.isfinite().all()) and bool((g != 0).any()) for g in gradients)
    plain = torch.as_tensor(schedule(t).sigma)
    assert not plain.requires_grad and torch.equal(plain, sigma.detach())


def test_at_first_it_is_nearly_linear() -> None:
    schedule = LearnedSchedule()
    t = torch.linspace(LearnedSchedule.start, 1.0, 50, dtype=torch.float64)
    straight = 13.3 - 18.3 * (t - LearnedSchedule.start) / (1.0 - LearnedSchedule.start)
    assert (torch.as_tensor(schedule(t).log_snr) - straight).abs().max() < 0.5


def bound(
    schedule: LearnedSchedule, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, bins: int = 256
) -> tuple[torch.Tensor, ...]:
    """The three terms from the definitions: torch's KL, SciPy's bins and autograd's derivative of the log-SNR."""
    time = t.clone().requires_grad_()
    alpha, sigma = schedule.kernel(time)
    log_snr = 2 * (alpha.log() - sigma.log())
    (slope,) = torch.autograd.grad(log_snr.sum(), time, create_graph=True)
    x = alpha[:, None] * x0 + sigma[:, None] * noise
    error = (oracle(x, Level(t, alpha, sigma)).eps - noise).square().mean(1)
    diffusion = 0.5 * (1.0 - LearnedSchedule.start) * -slope * error
    last, first = schedule(torch.ones(1, dtype=torch.float64)), schedule(torch.tensor([LearnedSchedule.start]).double())
    prior = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.as_tensor(last.alpha) * x0, torch.as_tensor(last.sigma).expand_as(x0)),
        torch.distributions.Normal(torch.zeros_like(x0), torch.ones_like(x0)),
    ).mean(1)
    std = float(torch.as_tensor(first.sigma) / torch.as_tensor(first.alpha))
    mean = (x0 + std * noise).numpy()
    upper = np.where(x0 > 0.999, np.inf, (x0.numpy() + 1 / (bins - 1) - mean) / std)
    lower = np.where(x0 < -0.999, -np.inf, (x0.numpy() - 1 / (bins - 1) - mean) / std)
    decoder = torch.from_numpy(-np.log(norm.cdf(upper) - norm.cdf(lower)).mean(1))
    return diffusion, prior, decoder


def test_the_loss_is_the_bound() -> None:
    schedule = bent()
    x0, noise, t = draws(64)
    found = objective.learned_schedule_loss(oracle, schedule, x0, schedule(t), noise)
    assert torch.allclose(found, sum(bound(schedule, x0, noise, t)), rtol=1e-9)  # type: ignore[arg-type]


def test_its_decoder_is_that_of_the_bins_of_the_data() -> None:
    schedule = bent()
    _, noise, t = draws(64)
    x0 = (torch.rand(64, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 16).round() / 8 - 1
    found = objective.learned_schedule_loss(oracle, schedule, x0, schedule(t), noise, bins=17)
    assert torch.allclose(found, sum(bound(schedule, x0, noise, t, 17)), rtol=1e-9)  # type: ignore[arg-type]


def test_between_the_ends_it_descends_the_square() -> None:
    schedule = bent()
    x0, noise, t = draws(64)
    diffusion = bound(schedule, x0, noise, t)[0]
    expected = torch.autograd.grad(diffusion.square().mean(), between(schedule))
    loss = objective.learned_schedule_loss(oracle, schedule, x0, schedule(t), noise).mean()
    found = torch.autograd.grad(loss, between(schedule))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_its_ends_descend_the_bound() -> None:
    schedule = bent()
    x0, noise, t = draws(64)
    loss = objective.learned_schedule_loss(oracle, schedule, x0, schedule(t), noise).mean()
    (found,) = torch.autograd.grad(loss, [schedule.ends])
    numeric: list[float] = []
    for i in (0, 1):
        sides: list[float] = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                schedule.ends[i] += h
            sides.append(float(sum(part.detach().mean() for part in bound(schedule, x0, noise, t))))
            with torch.no_grad():
                schedule.ends[i] -= h
        numeric.append((sides[0] - sides[1]) / 2e-5)
    assert found.tolist() == pytest.approx(numeric, rel=1e-5)


def test_its_mean_does_not_depend_on_what_is_between() -> None:
    r"""The diffusion term is an integral over the log-SNR; of the Gaussian oracle it is known."""
    exact = 0.5 * (math.log1p(STD**2 * math.exp(9.0)) - math.log1p(STD**2 * math.exp(-5.0)))
    for schedule in (bent(), LearnedSchedule(9.0, -5.0, 8).double()):
        t = (
            LearnedSchedule.start
            + (1.0 - LearnedSchedule.start) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        )
        snr = torch.as_tensor(schedule(t).log_snr).exp()
        error = STD**2 * snr / (1.0 + STD**2 * snr)
        mean = (0.5 * (1.0 - LearnedSchedule.start) * -torch.as_tensor(schedule.slope(t)) * error).mean()
        assert float(mean) == pytest.approx(exact, rel=1e-4)


def test_training_lowers_the_variance() -> None:
    torch.manual_seed(0)
    schedule = LearnedSchedule(9.0, -5.0, 16).double()

    def spread() -> tuple[float, float]:
        x0, noise, t = draws(4096)
        with torch.no_grad():
            terms = bound_of(schedule, x0, noise, t)
        return float(terms.mean()), float(terms.var())

    def bound_of(schedule: LearnedSchedule, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return bound(schedule, x0, noise, t)[0].detach()

    mean, before = spread()
    optimizer = torch.optim.Adam(between(schedule), lr=0.03)
    generator = torch.Generator().manual_seed(3)
    for _ in range(150):
        x0 = STD * torch.randn(256, 6, dtype=torch.float64, generator=generator)
        noise = torch.randn(256, 6, dtype=torch.float64, generator=generator)
        t = LearnedSchedule.start + (1 - LearnedSchedule.start) * torch.rand(
            256, dtype=torch.float64, generator=generator
        )
        optimizer.zero_grad()
        objective.learned_schedule_loss(oracle, schedule, x0, schedule(t), noise).mean().backward()
        optimizer.step()
    after_mean, after = spread()
    assert after < 0.5 * before
    assert after_mean == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("options", [(1.0, 2.0, 8), (5.0, -5.0, 0)])
def test_bad_input(options: tuple[float, float, int]) -> None:
    with pytest.raises(InputError, match="log_snr_min < log_snr_max"):
        LearnedSchedule(*options)
