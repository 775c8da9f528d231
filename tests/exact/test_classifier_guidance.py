"""Both rules of classifier guidance against the published updates, on classes whose exact classifier is known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, MixtureOracle
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.variance import large, learned, small
from sfumato.sampling import grids
from sfumato.sampling.guidance import ClassifierGuided, Clipped
from sfumato.sampling.sample import Memory, initial, sample, seeded_noise
from sfumato.sampling.steps import ancestral, ddim, heun

MEANS = torch.tensor([[0.8, 0.3], [-0.5, 0.6], [0.1, -0.9]], dtype=torch.float64)
STDS = torch.tensor([0.15, 0.25, 0.2], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
ALL = MixtureOracle(MEANS, Covariances.isotropic(STDS**2, 2), WEIGHTS)


def scores(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The log-densities of the classes in ``x``, by the formula of a normal distribution."""
    variance = alpha**2 * STDS**2 + sigma**2
    apart = (x[:, None] - alpha * MEANS).square().sum(2)
    return WEIGHTS.log() - 0.5 * apart / variance - variance.log()


def log_class(x: Tensor, level: Level, *, label: Tensor) -> Tensor:
    """The exact classifier, by Bayes' rule."""
    logs = scores(x, float(level.alpha), float(level.sigma)).log_softmax(1)
    return torch.where(label >= 0, logs.gather(1, label.clamp(min=0)[:, None])[:, 0], 0.0)


def gradient(x: Tensor, level: Level, label: Tensor) -> Tensor:
    """The gradient of the exact classifier, in closed form: the score of the class less that of all."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    share = scores(x, alpha, sigma).softmax(1)
    each = -(x[:, None] - alpha * MEANS) / (alpha**2 * STDS**2 + sigma**2)[:, None]
    return each[torch.arange(len(x)), label] - (share[:, :, None] * each).sum(1)


def predicted(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """The estimates of the data and of the noise without a class, in closed form."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    share = scores(x, alpha, sigma).softmax(1)
    variance = (alpha**2 * STDS**2 + sigma**2)[:, None]
    each = MEANS + alpha * STDS[:, None] ** 2 / variance * (x[:, None] - alpha * MEANS)
    x0 = (share[:, :, None] * each).sum(1)
    return x0, (x - alpha * x0) / sigma


LABEL = torch.tensor([0, 1, 2, 2])
POINTS = torch.tensor([[0.3, -0.2], [0.9, 0.4], [-0.7, 0.1], [0.0, 1.1]], dtype=torch.float64)
STEP = torch.linspace(-0.6, 0.9, 8, dtype=torch.float64).reshape(4, 2)


def guided(scale: float, rule: str, denoiser: Denoise = ALL) -> ClassifierGuided:
    return ClassifierGuided(denoiser, log_class, scale, rule=rule, only=("label",))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["small", "large", "learned"])
@pytest.mark.parametrize("clip", [False, True])
def test_the_mean_of_an_ancestral_step_moves_as_published(kind: str, clip: bool) -> None:
    """Algorithm 1 of Dhariwal and Nichol 2021, in the numbers of a table: x_{t-1} ~ N(mu + s Sigma grad, Sigma)."""
    schedule, scale, n = schedules.linear(50), 2.5, 20
    betas = schedule.betas.double()
    bar = (1.0 - betas).cumprod(0)
    t, s = schedule(n / 50), schedule((n - 1) / 50)
    beta, now, before = float(betas[n - 1]), float(bar[n - 1]), float(bar[n - 2])
    tilde = beta * (1.0 - before) / (1.0 - now)
    fraction = torch.tensor([[0.2, 0.9], [0.5, 0.1], [0.7, 0.7], [0.0, 1.0]], dtype=torch.float64)
    sigma2 = {
        "small": torch.full((4, 2), tilde, dtype=torch.float64),
        "large": torch.full((4, 2), beta, dtype=torch.float64),
        "learned": (fraction * math.log(beta) + (1.0 - fraction) * math.log(tilde)).exp(),
    }[kind]
    x0, _ = predicted(POINTS, t)
    x0 = x0.clamp(-0.3, 0.3) if clip else x0
    mean = math.sqrt(before) * beta / (1 - now) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - now) * POINTS
    expected = mean + scale * sigma2 * gradient(POINTS, t, LABEL) + sigma2.sqrt() * STEP

    def oracle(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        assert not cond
        return Prediction.of_x0(x, ALL(x, level).x0, level, fraction)

    inner: Denoise = Clipped(oracle, -0.3, 0.3) if clip else oracle
    denoiser = guided(scale, "mean", inner)
    step = partial(ancestral, variance={"small": small, "large": large, "learned": learned}[kind])
    found = step(lambda x, level: denoiser(x, level, label=LABEL), POINTS, t, s, Memory(lambda x: STEP))
    assert (found - expected).abs().max() < 1e-9
    # a wrapper that clips what is guided keeps the shift
    again = Clipped(denoiser, -0.3, 0.3)
    same = step(lambda x, level: again(x, level, label=LABEL), POINTS, t, s, Memory(lambda x: STEP))
    assert not clip or (same - expected).abs().max() < 1e-9


def test_the_noise_of_other_steps_moves_as_published() -> None:
    """Algorithm 2: eps - s sqrt(1 - abar) grad, then DDIM with it; of EDM, the score in its own units."""
    scale, schedule = 3.0, schedules.linear(50)
    t, s = schedule(0.4), schedule(0.38)
    _, eps = predicted(POINTS, t)
    now, before = float(t.alpha) ** 2, float(s.alpha) ** 2
    eps = eps - scale * math.sqrt(1.0 - now) * gradient(POINTS, t, LABEL)
    x0 = (POINTS - math.sqrt(1.0 - now) * eps) / math.sqrt(now)
    expected = math.sqrt(before) * x0 + math.sqrt(1.0 - before) * eps
    denoiser = guided(scale, "eps")
    found = ddim(lambda x, level: denoiser(x, level, label=LABEL), POINTS, t, s, Memory(lambda x: STEP))
    assert (found - expected).abs().max() < 1e-9
    karras = schedules.Karras(30.0)
    t = karras(0.6)
    x0, _ = predicted(POINTS, t)
    sigma = float(t.sigma)
    denoised = denoiser(POINTS, t, label=LABEL).x0
    assert (denoised - (x0 + scale * sigma**2 * gradient(POINTS, t, LABEL))).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", [schedules.linear(1000), schedules.Karras(30.0)], ids=["linear", "edm"])
@pytest.mark.parametrize(("step", "rule"), [(ancestral, "mean"), (ancestral, "eps"), (heun, "eps")])
def test_with_the_exact_classifier_samples_are_of_the_class(schedule: Schedule, step: object, rule: str) -> None:
    """As those of the exact denoiser of the class by the same solver, with the same noise.

    The rule of the mean is exact in the limit of many steps only.
    """
    levels = grids.uniform(schedule, 50 if rule == "eps" else 300)
    label = torch.arange(300) % 3
    x = initial(levels, (2,), 0, count=300).double()

    def of_class(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        alpha, sigma = float(level.alpha), float(level.sigma)
        centre, variance = MEANS[cond["label"]], STDS[cond["label"], None] ** 2
        x0 = centre + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * centre)
        return Prediction.of_x0(x, x0, level)

    walk = partial(sample, x=x, levels=levels, step=step, label=label)  # type: ignore[arg-type]
    found, exact = (list(walk(d, noise=seeded_noise(1)))[-1].x for d in (guided(1.0, rule), of_class))
    # nearest to the centre of the class that was asked for
    assert ((found[:, None] - MEANS).norm(dim=2).argmin(1) == label).double().mean() > 0.97
    if rule == "eps":
        # Bayes' rule, at every step
        assert (found - exact).abs().max() < 1e-6
    else:
        for k in range(3):
            one, other = found[label == k], exact[label == k]
            assert (one.mean(0) - other.mean(0)).abs().max() < 0.05
            assert float(one.std(0).mean()) == pytest.approx(float(other.std(0).mean()), rel=0.1)


def test_both_rules_agree_in_the_limit_of_many_steps() -> None:
    """Halving the steps halves what lies between them, in a step of a given length and in a whole sampling."""
    schedule, apart = schedules.ContinuousCosine(), list[float]()
    label = torch.arange(6) % 3
    for count in (20, 40, 80):
        levels = grids.uniform(schedule, count)
        x = initial(levels, (2,), 3, count=6).double()
        # no noise but that of the start: the means alone differ
        still = partial(sample, x=x, levels=levels, step=ancestral, noise=lambda x: 0.0 * x, label=label)
        one, two = (list(still(guided(2.0, rule)))[-1].x for rule in ("mean", "eps"))
        apart.append(float((one - two).abs().mean()))
    assert apart[0] > 1e-4
    assert apart[0] / apart[1] == pytest.approx(2.0, rel=0.3) and apart[1] / apart[2] == pytest.approx(2.0, rel=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_dtype_and_no_grad(dtype: torch.dtype) -> None:
    level = schedules.Karras(30.0)(0.6)
    x = POINTS.to(dtype)

    def log_prob(x: Tensor, level: Level, *, label: Tensor) -> Tensor:
        return log_class(x.double(), level, label=label)

    with torch.no_grad():
        found = ClassifierGuided(ALL, log_prob, 1.0, only=("label",))(x, level, label=LABEL)
        # a row without a class is not guided, whatever its neighbours
        mixed = ClassifierGuided(ALL, log_prob, 1.0)(x, level, label=torch.tensor([0, -1, 2, -1]))
    assert found.x0.dtype == dtype
    exact = guided(1.0, "eps")(POINTS, level, label=LABEL).x0
    assert (found.x0.double() - exact).abs().max() < (1e-5 if dtype == torch.float32 else 0.1)
    assert torch.equal(mixed.x0[0], found.x0[0])
    assert (mixed.x0[1].double() - ALL(POINTS, level).x0[1]).abs().max() < (1e-5 if dtype == torch.float32 else 0.1)
