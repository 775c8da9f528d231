"""Formulas of the lecture that join several parts of the package, each against an independent computation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from tests.oracles import gaussian
from torch import Tensor, nn

from sfumato import random
from sfumato.diffusion import objective, parameterization, weighting
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.bound import discretized_gaussian, variational_bound
from sfumato.diffusion.denoiser import Denoiser, embed_index
from sfumato.diffusion.gaussian import diffuse, forward_process, posterior, posterior_coefficients
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, MixtureOracle
from sfumato.diffusion.variance import floor, large
from sfumato.sampling import grids
from sfumato.sampling.sample import seeded_noise

STEPS = 1000
TABLE = schedules.linear(STEPS)
MEANS, STDS, WEIGHTS = (-0.9, 0.6), (0.15, 0.3), (0.4, 0.6)


def bumps() -> MixtureOracle:
    variances = torch.tensor(STDS, dtype=torch.float64).square()
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    return MixtureOracle(
        torch.tensor(MEANS, dtype=torch.float64)[:, None], Covariances.isotropic(variances, 1), weights
    )


def parts(level: Level) -> list[tuple[float, float, float]]:
    """The weights, means and standard deviations of the diffused bumps."""
    return [
        (w, level.alpha * m, math.hypot(level.alpha * s, level.sigma))
        for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True)
    ]


@pytest.mark.parametrize("t", [0.05, 0.3, 1.0])
def test_data_and_then_the_kernel_sample_the_diffused_density(t: float) -> None:
    """x_0 of q(x_0), then x_t of q(x_t | x_0): the Kolmogorov-Smirnov distance to q(x_t) is that of chance."""
    level, x0 = TABLE(t), bumps().sample(4000, 0, dtype=torch.float64)
    x = diffuse(x0, level, random.normal(1, "lecture", 0, 4000, (1,)).double())

    def distribution(value: np.ndarray) -> np.ndarray:
        return sum(w * stats.norm.cdf(value, m, s) for w, m, s in parts(level))

    assert stats.kstest(x[:, 0].numpy(), distribution).pvalue > 0.01


def true_step(x_t: float, t: Level, s: Level) -> tuple[float, float, float]:
    """Mean and variance of q(x_s | x_t), and its divergence from the normal distribution with these, by quadrature."""
    scale = t.alpha / s.alpha
    width = math.sqrt(t.sigma**2 - scale**2 * s.sigma**2)
    reach = 12.0 * width / scale
    around = (x_t / scale - reach, x_t / scale + reach)

    def joint(x: float) -> float:
        return stats.norm.pdf(x_t, scale * x, width) * sum(w * stats.norm.pdf(x, m, d) for w, m, d in parts(s))

    def integral(f: object) -> float:
        return integrate.quad(f, *around, epsabs=0.0, epsrel=1e-9, limit=400)[0]

    mass = integral(joint)
    mean = integral(lambda x: x * joint(x)) / mass
    variance = integral(lambda x: (x - mean) ** 2 * joint(x)) / mass
    normal = stats.norm(mean, math.sqrt(variance))

    def apart(x: float) -> float:
        density = joint(x) / mass
        return density * (math.log(density) - normal.logpdf(x)) if density > 0.0 else 0.0

    return mean, variance, integral(apart)


@pytest.mark.parametrize(("t", "s"), [(0.3, 0.299), (0.3, 0.2), (0.6, 0.1)])
@pytest.mark.parametrize("x_t", [-0.4, 0.1, 0.8])
def test_the_mean_and_the_variance_of_the_true_denoising_distribution(t: float, s: float, x_t: float) -> None:
    r"""q(x_s | x_t) is proportional to q(x_t | x_s) q(x_s); its mean is that of the posterior at E[x_0 | x_t], and
    its variance the optimal one, :math:`\tilde\beta + k_0^2 Var[x_0 | x_t]`."""
    now, before, x = TABLE(t), TABLE(s), torch.tensor([[x_t]], dtype=torch.float64)
    mean, variance, _ = true_step(x_t, now, before)
    oracle, (k0, _, tilde) = bumps(), posterior_coefficients(now, before)
    assert float(posterior(oracle(x, now).x0, x, now, before).mean) == pytest.approx(mean, abs=1e-8)
    optimal = tilde + k0**2 * float(oracle.posterior_covariance_trace(x, now))
    assert optimal == pytest.approx(variance, rel=1e-7)


def test_the_true_denoising_distribution_is_normal_where_beta_is_small() -> None:
    """Its divergence from the normal distribution of equal moments falls with the size of the step."""
    now = TABLE(0.3)
    found = [true_step(0.05, now, TABLE(s))[2] for s in (0.1, 0.2, 0.25, 0.275)]
    assert all(a > 2.0 * b > 0.0 for a, b in itertools.pairwise(found))
    assert found[-1] < 1e-3


@pytest.mark.parametrize("i", [1, 2, 300, STEPS])
def test_the_posterior_mean_by_the_noise(i: int) -> None:
    """mu-tilde(x_t, x_0) = (x_t - beta / sqrt(1 - alpha_bar) eps) / sqrt(1 - beta), for the true noise."""
    beta, bar = np.linspace(1e-4, 0.02, STEPS)[i - 1], np.cumprod(1.0 - np.linspace(1e-4, 0.02, STEPS))[i - 1]
    x0, eps = (random.normal(k, "lecture", 0, 5, (3,)).double() for k in range(2))
    t, s = TABLE(i / STEPS), TABLE((i - 1) / STEPS)
    x = math.sqrt(bar) * x0 + math.sqrt(1.0 - bar) * eps
    expected = (x - beta / math.sqrt(1.0 - bar) * eps) / math.sqrt(1.0 - beta)
    assert (posterior(x0, x, t, s).mean - expected).abs().max() < 1e-9


def test_the_bound_is_the_expectation_of_the_logarithm_of_the_ratio() -> None:
    """L = E[-log p(x_{0:T}) / q(x_{1:T} | x_0)] over chains of the forward process, joint density by joint density."""
    schedule, oracle, count, bins = schedules.linear(6), gaussian(0.1, 0.4), 60_000, 17
    levels = grids.uniform(schedule, 6)
    x0 = (random.normal(0, "lecture", 0, count, (1,)).double() * 0.4 + 0.1).clamp(-1.0, 1.0)
    x0 = ((x0 + 1.0) * 8.0).round() / 8.0 - 1.0
    chain = [(Level(0.0, 1.0, 0.0), x0), *forward_process(x0, levels, seeded_noise(5))]
    ratio = torch.from_numpy(stats.norm.logpdf(chain[-1][1].numpy()))
    for (s, x_s), (t, x_t) in itertools.pairwise(chain):
        beta = 1.0 - (t.alpha / s.alpha) ** 2
        mean = (x_t - beta / t.sigma * oracle(x_t, t).eps) / math.sqrt(1.0 - beta)
        if s.sigma == 0.0:
            ratio = ratio + discretized_gaussian(x0, mean, floor(levels), bins)
        else:
            ratio = ratio + torch.from_numpy(stats.norm.logpdf(x_s.numpy(), mean.numpy(), math.sqrt(beta)))
        forward = stats.norm.logpdf(x_t.numpy(), math.sqrt(1.0 - beta) * x_s.numpy(), math.sqrt(beta))
        ratio = ratio - torch.from_numpy(forward)
    by_chains = -ratio[:, 0] / math.log(2.0)
    ledger = variational_bound(oracle, x0, levels, large, bins=bins).total
    difference = by_chains - ledger
    error = float(difference.std()) / math.sqrt(count)
    assert error < 0.02
    assert abs(float(difference.mean())) < 4.0 * error


def test_the_weight_of_likelihood_is_large_near_the_data() -> None:
    """Of the linear schedule with variance beta: 1 / (2 (1 - beta_1)) in the first step, 49 times less in the last."""
    weight = weighting.vlb(TABLE, "large")
    found = [float(weight(TABLE(i / STEPS))) for i in (1, 10, 100, STEPS)]
    assert found[0] == pytest.approx(0.5 / (1.0 - 1e-4), rel=1e-9)
    assert found[-1] == pytest.approx(0.5 * 0.02 / 0.98, rel=1e-4)
    assert found[0] > 6.0 * found[1] > 36.0 * max(found[2:])


class Gain(nn.Module):
    """The network w x, whose gradients are known by hand."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.w * x


def test_the_gradient_is_that_of_algorithm_1() -> None:
    r""":math:`\nabla_w \frac1D |\epsilon - w x_t|^2 = -\frac2D x_t \cdot (\epsilon - w x_t)`, at each of some steps."""
    network = Gain(0.3)
    denoiser = Denoiser(network, TABLE, parameterization.eps, embed_index(STEPS))
    x0, eps = (random.normal(k, "lecture", 0, 4, (2, 3)).double() for k in range(2))
    steps = torch.tensor([1, 40, 500, STEPS], dtype=torch.float64)
    loss = objective.training_loss(denoiser, x0, TABLE(steps / STEPS), eps, weighting.simple)
    bars = np.cumprod(1.0 - np.linspace(1e-4, 0.02, STEPS))[steps.long().numpy() - 1]
    for i, bar in enumerate(bars):
        x = math.sqrt(bar) * x0[i] + math.sqrt(1.0 - bar) * eps[i]
        assert float(loss[i].detach()) == pytest.approx(float((eps[i] - 0.3 * x).square().mean()), rel=1e-9)
        (found,) = torch.autograd.grad(loss[i], [network.w], retain_graph=True)
        assert float(found) == pytest.approx(-2.0 * float((x * (eps[i] - 0.3 * x)).mean()), rel=1e-9)
