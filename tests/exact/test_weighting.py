"""Weightings against the published formulas, computed here from the papers' own symbols."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.diffusion import objective, parameterization, weighting
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoiser, Prediction, embed_thousand
from sfumato.diffusion.gaussian import diffuse, posterior
from sfumato.diffusion.level import Level
from sfumato.errors import InputError

STEPS = 40
BETAS = np.linspace(1000 / STEPS * 1e-4, 1000 / STEPS * 0.02, STEPS)
BARS = np.cumprod(1.0 - BETAS)
TABLE = schedules.linear(STEPS)


class Scaled(nn.Module):
    """A network that is wrong, by a known amount."""

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return 0.3 * x + 0.1


def numbers(weight: weighting.Weight, schedule: schedules.Schedule, t: list[float]) -> list[float]:
    found = torch.as_tensor(weight(schedule(torch.tensor(t, dtype=torch.float64)))).expand(len(t))
    # a level of floats gives the same number
    assert [float(weight(schedule(one))) for one in t] == pytest.approx(found.tolist(), rel=1e-12)
    return found.tolist()


@pytest.mark.parametrize("large", [False, True])
def test_vlb_is_lambda_of_the_lecture(large: bool) -> None:
    """lambda_t = beta^2 / (2 sigma^2 (1 - beta)(1 - alpha_bar)), the first small variance that of the second step."""
    before = np.append(1.0, BARS[:-1])
    tilde = BETAS * (1 - before) / (1 - BARS)
    tilde[0] = tilde[1]
    variance = BETAS if large else tilde
    published = BETAS**2 / (2 * variance * (1 - BETAS) * (1 - BARS))
    found = numbers(
        weighting.vlb(TABLE, "large" if large else "small"), TABLE, [i / STEPS for i in range(1, STEPS + 1)]
    )
    assert found == pytest.approx(published.tolist(), rel=1e-10)


@pytest.mark.parametrize("large", [False, True])
def test_the_vlb_loss_is_the_distance_of_the_means(large: bool) -> None:
    """L_{t-1} = |mu_tilde - mu_theta|^2 / (2 sigma^2), from the posteriors themselves (Ho et al. 2020, eq. 8)."""
    denoiser = Denoiser(Scaled(), TABLE, parameterization.v, embed_thousand)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    for i in (2, 20, STEPS):
        t, s = TABLE(i / STEPS), TABLE((i - 1) / STEPS)
        x = diffuse(x0, t, noise)
        true, guess = posterior(x0, x, t, s), posterior(denoiser(x, t).x0, x, t, s)
        spread = float(BETAS[i - 1]) if large else float(true.variance)
        expected = ((true.mean - guess.mean) ** 2 / (2 * spread)).flatten(1).mean(1)
        found = objective.denoising_loss(denoiser, x0, t, noise, weighting.vlb(TABLE, "large" if large else "small"))
        assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("large", [False, True])
def test_the_continuous_bound_is_the_limit_of_many_steps(t: float, large: bool) -> None:
    schedule = schedules.ContinuousLinear()
    limit = numbers(weighting.vlb_continuous(schedule), schedule, [t])[0]
    errors: list[float] = []
    for steps in (1000, 4000):
        table = schedules.linear(steps)
        # the same level: the weight is a function of it
        errors.append(abs(steps * float(weighting.vlb(table, "large" if large else "small")(table(t))) / limit - 1.0))
    assert errors[1] < 0.3 * errors[0] + 1e-3 and errors[1] < 0.01


def test_the_continuous_bound_of_known_schedules() -> None:
    """EDM: lambda = -2 log sigma_max t^rho; flow: lambda = 2 log((1 - t) / t); VP: d log alpha_bar = -beta dt."""
    times = [0.1, 0.5, 0.8]
    found = numbers(weighting.vlb_continuous(schedules.Karras(rho=7.0)), schedules.Karras(), times)
    assert found == pytest.approx([7.0 / t for t in times], rel=1e-10)
    found = numbers(weighting.vlb_continuous(schedules.RectifiedFlow()), schedules.RectifiedFlow(), times)
    assert found == pytest.approx([1.0 / (t * (1 - t)) for t in times], rel=1e-10)
    schedule = schedules.ContinuousLinear(0.1, 20.0)
    expected = [(0.1 + 19.9 * t) / (2.0 * (1.0 - math.exp(-0.1 * t - 9.95 * t**2))) for t in times]
    assert numbers(weighting.vlb_continuous(schedule), schedule, times) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("k", "gamma"), [(1.0, 1.0), (1.0, 0.5), (2.0, 0.0)])
def test_p2(k: float, gamma: float) -> None:
    """Choi et al. 2022, relative to L_simple: 1 / (k + SNR)^gamma with SNR = alpha_bar / (1 - alpha_bar)."""
    expected = 1.0 / (k + BARS / (1 - BARS)) ** gamma
    found = numbers(weighting.p2(k, gamma), TABLE, [i / STEPS for i in range(1, STEPS + 1)])
    assert found == pytest.approx(expected.tolist(), rel=1e-10)


@pytest.mark.parametrize("kind", ["min", "soft"])
def test_min_snr_on_the_error_of_the_data(kind: str) -> None:
    gamma, snr = 5.0, BARS / (1 - BARS)
    on_data = np.minimum(snr, gamma) if kind == "min" else 1.0 / (1.0 / snr + 1.0 / gamma)
    weight = weighting.min_snr(gamma) if kind == "min" else weighting.soft_min_snr(gamma)
    denoiser = Denoiser(Scaled(), TABLE, parameterization.x0, embed_thousand)
    x0, noise = torch.randn(STEPS, 6, dtype=torch.float64), torch.randn(STEPS, 6, dtype=torch.float64)
    level = TABLE(torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS)
    found = objective.denoising_loss(denoiser, x0, level, noise, weight)
    error = (denoiser(diffuse(x0, level, noise), level).x0 - x0).square().mean(1)
    assert torch.allclose(found, torch.from_numpy(on_data) * error, rtol=1e-9)


def test_sigmoid_weights_the_bound() -> None:
    schedule, times = schedules.ContinuousCosine(), [0.1, 0.5, 0.95]
    bound = numbers(weighting.vlb_continuous(schedule), schedule, times)
    found = numbers(weighting.sigmoid_weight(schedule, 2.0), schedule, times)
    logistic = [0.5 * (1.0 + math.tanh(0.5 * (2.0 - float(schedule(t).log_snr)))) for t in times]
    assert found == pytest.approx([b * s for b, s in zip(bound, logistic, strict=True)], rel=1e-9)
    # at the log-SNR of the bias it is half
    level = schedule.at(2.0)
    ratio = weighting.sigmoid_weight(schedule, 2.0)(level) / weighting.vlb_continuous(schedule)(level)
    assert ratio == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("kind", ["v", "velocity", "edm", "x0", "score"])
def test_the_output_weight_is_the_error_of_the_output(kind: str) -> None:
    made = {
        "v": parameterization.v,
        "velocity": parameterization.velocity,
        "edm": parameterization.edm(0.5),
        "x0": parameterization.x0,
        "score": parameterization.score,
    }[kind]
    schedule = schedules.RectifiedFlow()
    denoiser = Denoiser(Scaled(), schedule, made, embed_thousand)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    level = schedule(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64))
    weight = weighting.OutputWeight(made)
    found = objective.denoising_loss(denoiser, x0, level, noise, weight)
    # as a weight of the noise error it is the same
    as_noise = objective.denoising_loss(denoiser, x0, level, noise, lambda level: weight(level))
    assert torch.allclose(found, as_noise, rtol=1e-9)
    if kind == "velocity":
        x = diffuse(x0, level, noise)
        assert torch.allclose(found, (0.3 * x + 0.1 - (noise - x0)).square().mean(1), rtol=1e-9)
    if kind == "edm":
        published = objective.denoising_loss(denoiser, x0, level, noise, weighting.edm_weight(0.5))
        assert torch.allclose(found, published, rtol=1e-9)


def test_the_output_weight_trains_the_last_step_without_signal() -> None:
    table = schedules.zero_terminal_snr(TABLE)
    denoiser = Denoiser(Scaled(), table, parameterization.v, embed_thousand)
    x0, noise = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    found = objective.denoising_loss(denoiser, x0, table(1.0), noise, weighting.OutputWeight(parameterization.v))
    # v = alpha eps - sigma x0 = -x0 at alpha = 0
    assert torch.allclose(found, (0.3 * noise + 0.1 + x0).square().mean(1), rtol=1e-9)


@pytest.mark.parametrize(
    "weight",
    [weighting.simple, weighting.p2(), weighting.min_snr(), weighting.soft_min_snr()],
    ids=["simple", "p2", "min_snr", "soft_min_snr"],
)
def test_weights_are_finite_without_signal(weight: weighting.Weight) -> None:
    assert math.isfinite(float(weight(Level(1.0, 0.0, 1.0))))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: weighting.vlb(schedules.Karras()), "vlb_continuous"),
        (lambda: weighting.vlb(schedules.zero_terminal_snr(TABLE))(Level(1.0, 0.0, 1.0)), "alpha = 0"),
        (lambda: weighting.vlb_continuous(schedules.RectifiedFlow())(Level(1.0, 0.0, 1.0)), "alpha = 0"),
        (lambda: weighting.p2(0.0), "k > 0"),
        (lambda: weighting.p2(1.0, -1.0), "gamma >= 0"),
        (lambda: weighting.min_snr(0.0), "above 0"),
        (lambda: weighting.soft_min_snr(-1.0), "above 0"),
    ],
)
def test_bad_input(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]


def test_one_and_two_steps() -> None:
    for steps in (1, 2):
        table = schedules.cosine(steps)
        weights = numbers(weighting.vlb(table), table, [i / steps for i in range(1, steps + 1)])
        assert all(math.isfinite(w) and w > 0 for w in weights)


def test_a_prediction_keeps_what_it_is(unchecked: None) -> None:
    x = torch.zeros(2, 3)
    assert Prediction.of_x0(x, x, TABLE(0.5), x).variance_fraction is x
