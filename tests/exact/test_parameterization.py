"""Parameterizations against their defining equations, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import parameterization as p
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level

SCHEDULES = [
    schedules.linear(1000),
    schedules.cosine(50),
    schedules.ContinuousLinear(),
    schedules.ContinuousCosine(),
    schedules.Karras(),
]
KINDS = {"eps": p.eps, "x0": p.x0, "v": p.v, "edm": p.edm(0.7)}


def target(kind: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What a perfect network of each kind returns, from the papers' own definitions."""
    alpha, sigma = level.alpha, level.sigma
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * eps - sigma * x0
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


def test_edm_is_table_1_at_alpha_one() -> None:
    sigma, sd = 2.5, 0.5
    out = p.edm(sd)(Level(0.5, 1.0, sigma))
    assert out.c_in == pytest.approx(1 / math.sqrt(sigma**2 + sd**2), rel=1e-14)
    assert out.a == pytest.approx(sd**2 / (sigma**2 + sd**2), rel=1e-14)
    assert out.b == pytest.approx(sigma * sd / math.sqrt(sigma**2 + sd**2), rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_network_sees_inputs_of_about_unit_scale(kind: str, schedule: schedules.Schedule) -> None:
    for t in (0.05, 0.5, 1.0):
        level = schedule(t)
        seen = KINDS[kind](level).c_in * (level.alpha**2 + level.sigma**2) ** 0.5
        assert 0.9 < seen < 1.5


def test_a_prediction_of_x0() -> None:
    level = schedules.cosine(1000)(0.4)
    x, x0 = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    prediction = Prediction.of_x0(x, x0, level)
    assert torch.equal(prediction.x0, x0)
    assert torch.allclose(prediction.eps, (x - level.alpha * x0) / level.sigma, atol=1e-13)
