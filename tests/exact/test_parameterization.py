"""Parameterizations against their defining equations, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import parameterization as p
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior
from sfumato.diffusion.level import Level
from sfumato.errors import InputError

SCHEDULES = [
    schedules.linear(1000),
    schedules.cosine(50),
    schedules.ContinuousLinear(),
    schedules.ContinuousCosine(),
    schedules.Karras(),
    schedules.RectifiedFlow(),
]
TABLE = schedules.linear(50)


def before(level: Level) -> Level:
    """A level nearer to the data, for any schedule."""
    return Level(level.t, level.alpha + 0.2 * (1.0 - level.alpha), level.sigma * 0.9)


KINDS = {
    "eps": p.eps,
    "x0": p.x0,
    "v": p.v,
    "edm": p.edm(0.7),
    "score": p.score,
    "velocity": p.velocity,
    "mean": p.mean(before),
}


def target(kind: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What a perfect network of each kind returns, from the papers' own definitions."""
    alpha, sigma = level.alpha, level.sigma
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind == "score":
        # the gradient of log N(x; alpha x0, sigma^2)
        return -(alpha * x0 + sigma * eps - alpha * x0) / sigma**2
    if kind == "velocity":
        return eps - x0
    if kind == "mean":
        s = before(level)
        return posterior(x0, alpha * x0 + sigma * eps, level, s).mean
    s, sd = sigma / alpha, 0.7
    noisy = x0 + s * eps
    skip, out = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2) ** 0.5
    return (x0 - skip * noisy) / out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 0.97])
def test_a_perfect_network_gives_the_data_and_the_noise(kind: str, schedule: schedules.Schedule, t: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=generator)
    eps = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=generator)
    level = schedule(t)
    x = level.alpha * x0 + level.sigma * eps
    prediction = Prediction(x, target(kind, x0, eps, level), KINDS[kind](level))
    # noise prediction finds x0 by a division by alpha, and data prediction the noise by one by sigma
    scale = max(1.0, level.sigma / level.alpha, level.alpha / level.sigma)
    assert (prediction.x0 - x0).abs().max() < 1e-12 * scale * max(1.0, float(level.sigma))
    assert (prediction.eps - eps).abs().max() < 1e-12 * scale
    mixed = prediction.mix(0.3, -1.7)
    assert (mixed - (0.3 * x0 - 1.7 * eps)).abs().max() < 1e-11 * scale * max(1.0, float(level.sigma))


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_estimates_always_add_up_to_x(kind: str) -> None:
    for schedule in SCHEDULES:
        t = torch.linspace(0.01, 0.99, 6, dtype=torch.float64)
        level = schedule(t)
        x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        f = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        prediction, at = Prediction(x, f, KINDS[kind](level)), level.like(x)
        again = at.alpha * prediction.x0 + at.sigma * prediction.eps
        scale = max(1.0, float(torch.as_tensor(level.sigma).max()), float((1 / torch.as_tensor(level.sigma)).max()))
        assert (again - x).abs().max() < 1e-12 * scale


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_cycles(one: str, other: str) -> None:
    """From one kind of output to another and back: the network's number returns."""
    level = schedules.cosine(1000)(0.4)
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    f = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    first = Prediction(x, f, KINDS[one](level))
    second = Prediction(x, target(other, first.x0, first.eps, level), KINDS[other](level))
    back = target(one, second.x0, second.eps, level)
    assert (back - f).abs().max() < 1e-11


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_cycles_on_every_schedule(one: str, other: str, schedule: schedules.Schedule) -> None:
    for t in (0.4, 0.6, 0.8):
        level = schedule(t)
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        f = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        first = Prediction(x, f, KINDS[one](level))
        second = Prediction(x, target(other, first.x0, first.eps, level), KINDS[other](level))
        back = target(one, second.x0, second.eps, level)
        assert (back - f).abs().max() < 1e-10


def test_the_mean_of_a_table_is_that_of_ddpm() -> None:
    """mu = (x - beta / sqrt(1 - alpha_bar) eps) / sqrt(1 - beta), Ho et al. 2020, eq. 11."""
    parameterization = p.mean(TABLE.previous)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    eps = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    for i in (1, 2, 30, 50):
        beta, bar = float(TABLE.betas[i - 1]), float(TABLE.alpha_bars[i - 1])
        published = (x - beta / math.sqrt(1 - bar) * eps) / math.sqrt(1 - beta)
        prediction = Prediction(x, published, parameterization(TABLE(i / 50)))
        assert (prediction.eps - eps).abs().max() < 1e-10
    # in the first step the mean is the data themselves
    out = parameterization(TABLE(1 / 50))
    assert (out.a, out.b) == (0.0, pytest.approx(1.0))


def test_velocity_is_the_time_derivative_of_the_flow() -> None:
    schedule, h = schedules.RectifiedFlow(), 1e-6
    x0, eps = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    low, high = schedule(0.4 - h), schedule(0.4 + h)
    derivative = (high.alpha * x0 + high.sigma * eps - low.alpha * x0 - low.sigma * eps) / (2 * h)
    assert (derivative - target("velocity", x0, eps, schedule(0.4))).abs().max() < 1e-8


@pytest.mark.parametrize("kind", ["v", "x0", "velocity", "mean", "edm"])
@pytest.mark.parametrize("name", ["flow", "zero snr"])
def test_without_signal_the_coefficients_are_finite(kind: str, name: str) -> None:
    schedule = schedules.RectifiedFlow() if name == "flow" else schedules.zero_terminal_snr(TABLE)
    parameterization = p.mean(schedules.zero_terminal_snr(TABLE).previous) if kind == "mean" else KINDS[kind]
    t = torch.tensor([0.02, 0.5, 1.0], dtype=torch.float64)
    for level in (schedule(1.0), schedule(t)):
        out = parameterization(level)
        assert all(math.isfinite(float(torch.as_tensor(k).sum())) for k in (out.c_in, out.a, out.b, out.c, out.d))


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_without_signal_noise_and_score_are_refused(kind: str) -> None:
    schedule = schedules.RectifiedFlow()
    for level in (schedule(1.0), schedule(torch.tensor([0.5, 1.0], dtype=torch.float64))):
        with pytest.raises(InputError, match="alpha = 0"):
            KINDS[kind](level)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_error_of_the_output(kind: str, t: float) -> None:
    level = schedules.RectifiedFlow()(t)
    generator = torch.Generator().manual_seed(0)
    x0, eps, wrong = (torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    right = target(kind, x0, eps, level)
    prediction = Prediction(level.alpha * x0 + level.sigma * eps, right + wrong, KINDS[kind](level))
    assert (prediction.output_error(x0, eps) - wrong).abs().max() < 1e-10


def test_edm_is_table_1_at_alpha_one() -> None:
    sigma, sd = 2.5, 0.5
    out = p.edm(sd)(Level(0.5, 1.0, sigma))
    assert out.c_in == pytest.approx(1 / math.sqrt(sigma**2 + sd**2), rel=1e-14)
    assert out.a == pytest.approx(sd**2 / (sigma**2 + sd**2), rel=1e-14)
    assert out.b == pytest.approx(sigma * sd / math.sqrt(sigma**2 + sd**2), rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_network_sees_inputs_of_about_unit_scale(kind: str, schedule: schedules.Schedule) -> None:
    for t in (0.05, 0.5, 0.97):
        level = schedule(t)
        seen = KINDS[kind](level).c_in * (level.alpha**2 + level.sigma**2) ** 0.5
        assert 0.7 < seen < 1.5


def test_a_prediction_of_x0() -> None:
    level = schedules.cosine(1000)(0.4)
    x, x0 = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    prediction = Prediction.of_x0(x, x0, level)
    assert torch.equal(prediction.x0, x0)
    assert torch.allclose(prediction.eps, (x - level.alpha * x0) / level.sigma, atol=1e-13)
