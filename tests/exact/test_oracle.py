"""Oracles against SciPy's densities, quadrature, Tweedie's formula and each other, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from tests.four_dimensions import (
    DIMENSIONS,
    MEANS,
    ORACLES,
    SCHEDULES,
    SHAPE,
    components,
    every,
    levels,
    matrices,
    noisy,
    randn,
)
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, MixtureOracle, Oracle


@every
@levels
def test_the_density_is_that_of_scipy(name: str, level: Level) -> None:
    x, signal, noise = noisy(5, level), level.alpha**2, level.sigma**2 * np.eye(DIMENSIONS)
    logs = [
        math.log(w) + stats.multivariate_normal(level.alpha * m, signal * c + noise).logpdf(x.flatten(1))
        for w, m, c in components(name)
    ]
    found = ORACLES[name]().marginal_log_prob(x, level)
    assert found.numpy() == pytest.approx(special.logsumexp(logs, axis=0), rel=1e-9)


@every
@levels
def test_the_posterior_is_bayes_rule_written_with_inverses(name: str, level: Level) -> None:
    """Precision form, which needs an invertible covariance: points and planes are those of a tiny variance."""
    x = noisy(5, level).flatten(1).numpy()
    alpha, sigma = level.alpha, level.sigma
    means, traces, logs = [], [], []
    singular = name in ("singular", "empirical")
    tolerance = 2e-5 if singular else 1e-9
    for w, m, c in components(name):
        c = c + (1e-9 if singular else 0.0) * np.eye(DIMENSIONS)
        precision = np.linalg.inv(c) + alpha**2 / sigma**2 * np.eye(DIMENSIONS)
        covariance = np.linalg.inv(precision)
        means.append((np.linalg.solve(c, m) + alpha / sigma**2 * x) @ covariance)
        traces.append(np.trace(covariance))
        s = alpha**2 * c + sigma**2 * np.eye(DIMENSIONS)
        logs.append(math.log(w) + stats.multivariate_normal(alpha * m, s).logpdf(x))
    logs = np.array(logs)
    gamma = np.exp(logs - logs.max(0))
    gamma /= gamma.sum(0)
    mean = np.einsum("kb,kbd->bd", gamma, np.array(means))
    trace = (gamma * (np.array(traces)[:, None] + np.square(np.array(means) - mean).sum(2))).sum(0)
    oracle = ORACLES[name]()
    shaped = torch.from_numpy(x).reshape(5, *SHAPE)
    assert oracle(shaped, level).x0.flatten(1).numpy() == pytest.approx(mean, abs=tolerance)
    assert oracle.posterior_covariance_trace(shaped, level).numpy() == pytest.approx(trace, abs=tolerance)


@every
@levels
def test_the_score_is_the_gradient_and_the_data_follow_from_it(name: str, level: Level) -> None:
    oracle = ORACLES[name]()
    x = noisy(5, level).requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.marginal_log_prob(x, level).sum(), x)
    x = x.detach()
    score = oracle.score(x, level)
    assert (score - gradient).abs().max() < 1e-9 * max(1.0, float(gradient.abs().max()))
    prediction = oracle(x, level)
    assert (prediction.eps + level.sigma * score).abs().max() < 1e-10
    # Tweedie: alpha E[x_0 | x_t] = x_t + sigma^2 score
    assert (level.alpha * prediction.x0 - x - level.sigma**2 * score).abs().max() < 1e-10


@every
@levels
def test_the_posterior_trace_is_the_divergence_of_the_mean(name: str, level: Level) -> None:
    oracle, x = ORACLES[name](), noisy(3, level)
    if level.alpha == 0.0:
        return
    jacobian = torch.autograd.functional.jacobian(lambda x: oracle(x, level).x0.sum(0).flatten(), x)
    divergence = torch.einsum("ibi->b", jacobian.reshape(DIMENSIONS, 3, DIMENSIONS))
    trace = oracle.posterior_covariance_trace(x, level)
    assert (divergence * level.sigma**2 / level.alpha - trace).abs().max() < 1e-9


def test_forward_mode_and_vmap() -> None:
    """The exact divergence, one direction at a time in one pass."""
    level = SCHEDULES["linear"](0.3)
    x = noisy(1, level)
    basis = torch.eye(DIMENSIONS, dtype=torch.float64).reshape(DIMENSIONS, 1, *SHAPE)
    for name in ("full", "low rank", "kernel"):
        oracle = ORACLES[name]()
        columns = torch.func.vmap(lambda v, o=oracle: torch.func.jvp(lambda x: o(x, level).x0, (x,), (v,))[1])(basis)
        divergence = torch.einsum("ii", columns.reshape(DIMENSIONS, DIMENSIONS))
        trace = oracle.posterior_covariance_trace(x, level)
        assert float(divergence * level.sigma**2 / level.alpha) == pytest.approx(float(trace), abs=1e-10)


def test_one_dimension_by_quadrature() -> None:
    """The evidence, the mean and the variance of x_0 given x_t, integrated over x_0."""
    means, variances = torch.tensor([-1.0, 0.5], dtype=torch.float64), torch.tensor([0.04, 0.3], dtype=torch.float64)
    oracle = MixtureOracle(means, Covariances.isotropic(variances, 1), torch.tensor([0.3, 0.7], dtype=torch.float64))
    level = SCHEDULES["linear"](0.35)
    for value in (-1.2, 0.1, 2.0):

        def joint(x0: float, power: int, value: float = value) -> float:
            prior = 0.3 * stats.norm.pdf(x0, -1.0, 0.2) + 0.7 * stats.norm.pdf(x0, 0.5, math.sqrt(0.3))
            return x0**power * prior * stats.norm.pdf(value, level.alpha * x0, level.sigma)

        evidence, first, second = (
            integrate.quad(joint, -6, 6, (p,), points=[-1, 0.5], epsabs=1e-12)[0] for p in range(3)
        )
        x = torch.tensor([value], dtype=torch.float64)
        assert float(oracle.marginal_log_prob(x, level)) == pytest.approx(math.log(evidence), abs=1e-9)
        assert float(oracle(x, level).x0) == pytest.approx(first / evidence, abs=1e-9)
        variance = second / evidence - (first / evidence) ** 2
        assert float(oracle.posterior_covariance_trace(x, level)) == pytest.approx(variance, abs=1e-9)


@every
def test_the_mean_trace_is_the_error_of_the_denoiser(name: str) -> None:
    """E tr Cov[x_0 | x_t] = E |x_0 - E[x_0 | x_t]|^2, by Monte Carlo over data and noise."""
    oracle, level, count = ORACLES[name](), SCHEDULES["linear"](0.3), 20_000
    x0 = oracle.sample(count, 4, dtype=torch.float64)
    x = level.alpha * x0 + level.sigma * randn(count, *SHAPE, seed=9)
    error = (oracle(x, level).x0 - x0).square().flatten(1).sum(1)
    trace = oracle.posterior_covariance_trace(x, level)
    difference = error - trace
    assert abs(float(difference.mean())) < 4.0 * float(difference.std()) / math.sqrt(count)


@every
def test_samples_have_the_moments_of_the_data(name: str) -> None:
    oracle, count = ORACLES[name](), 40_000
    x = oracle.sample(count, 7, dtype=torch.float64).flatten(1).numpy()
    parts = components(name)
    mean = sum(w * m for w, m, _ in parts)
    covariance = sum(w * (c + np.outer(m - mean, m - mean)) for w, m, c in parts)
    spread = math.sqrt(np.trace(covariance))
    assert np.abs(x.mean(0) - mean).max() < 4.0 * spread / math.sqrt(count)
    assert np.abs(np.cov(x.T) - covariance).max() < 8.0 * spread**2 / math.sqrt(count)


@every
def test_a_sample_of_a_seed_does_not_depend_on_the_count(name: str) -> None:
    oracle = ORACLES[name]()
    many = oracle.sample(9, 3)
    assert many.shape == (9, *SHAPE) and many.dtype == torch.float32
    assert torch.equal(many[4:6], oracle.sample(2, 3, first=4)) and torch.equal(many[:1], oracle.sample(1, 3))
    assert not torch.equal(many, oracle.sample(9, 4))
    assert oracle.sample(0, 3).shape == (0, *SHAPE)


@every
def test_a_level_per_sample_and_chunks_change_nothing(name: str) -> None:
    oracle, times = ORACLES[name](), torch.tensor([0.001, 0.1, 0.4, 0.8, 1.0], dtype=torch.float64)
    schedule = SCHEDULES["linear"]
    x, many = randn(5, *SHAPE), schedule(times)

    def everything(oracle: Oracle, x: Tensor, level: Level) -> Tensor:
        found = oracle(x, level)
        numbers = (oracle.marginal_log_prob(x, level), oracle.posterior_covariance_trace(x, level))
        return torch.cat([found.x0.flatten(1), found.eps.flatten(1), *(n[:, None] for n in numbers)], 1)

    together = everything(oracle, x, many)
    for i in range(5):
        one = everything(oracle, x[i : i + 1], schedule(float(times[i])))
        assert torch.allclose(one[0], together[i], rtol=1e-9, atol=1e-11)
    cut = ORACLES[name]()
    cut.elements = 8
    assert torch.allclose(everything(cut, x, many), together, rtol=1e-11, atol=1e-11)
    assert torch.allclose(everything(cut, x, schedule(0.001)), everything(oracle, x, schedule(0.001)), rtol=1e-11)
    assert torch.equal(cut.sample(6, 1), oracle.sample(6, 1))


@every
def test_answers_have_the_dtype_of_the_question(name: str) -> None:
    oracle, level = ORACLES[name](), SCHEDULES["edm"](0.4)
    x = noisy(4, level).float()
    exact = oracle(x.double(), level)
    found = oracle(x, level)
    assert found.x0.dtype == found.eps.dtype == torch.float32
    # no digits are lost to the difference of x and x_0
    for t in (0.05, 0.2, 0.5, 1.0):
        near, level = oracle(x, SCHEDULES["edm"](t)), SCHEDULES["edm"](t)
        exact = oracle(x.double(), level)
        assert (near.x0 - exact.x0).abs().max() < 2e-6 * float(1.0 + exact.x0.abs().max())
        assert (near.eps - exact.eps).abs().max() < 2e-6 * float(1.0 + exact.eps.abs().max())
    for answer in (
        oracle.score(x, level),
        oracle.marginal_log_prob(x, level),
        oracle.posterior_covariance_trace(x, level),
    ):
        assert answer.dtype == torch.float32
    assert isinstance(oracle, Denoise) and isinstance(found, Prediction)
    assert oracle(x[:0], level).x0.shape == (0, *SHAPE)
    assert torch.equal(oracle(x, level, label=torch.zeros(4)).x0, oracle(x, level).x0)


def test_an_oracle_of_ones_own() -> None:
    """Uniform on [-1, 1]: a few lines give a denoiser, its score and its density."""

    class Uniform(Oracle):
        def log_prob_rows(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            a, b = self._ends(x, alpha, sigma)
            return ((torch.special.ndtr(b) - torch.special.ndtr(a)) / (2.0 * alpha[:, None])).log().sum(1)

        def combine_rows(self, x: Tensor, alpha: Tensor, sigma: Tensor, k0: Tensor, k_eps: Tensor) -> Tensor:
            shift, _ = self._truncated(x, alpha, sigma)
            x0 = x / alpha[:, None] + (sigma / alpha)[:, None] * shift
            return k0[:, None] * x0 - k_eps[:, None] * shift

        def trace_rows(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            return ((sigma / alpha)[:, None].square() * self._truncated(x, alpha, sigma)[1]).sum(1)

        def _truncated(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            """The mean and the variance of a standard normal that is cut at both ends."""
            a, b = self._ends(x, alpha, sigma)
            at_a, at_b = ((-0.5 * end.square()).exp() / math.sqrt(2.0 * math.pi) for end in (a, b))
            mass = torch.special.ndtr(b) - torch.special.ndtr(a)
            shift = (at_a - at_b) / mass
            return shift, 1.0 + (a * at_a - b * at_b) / mass - shift.square()

        def sample(self, count: int, seed: int, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
            raise NotImplementedError

        def _ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            scale, spread = alpha[:, None], sigma[:, None]
            return (-scale - x) / spread, (scale - x) / spread

    oracle, level = Uniform((1, 2)), SCHEDULES["linear"](0.3)
    x = (0.5 * randn(4, 1, 2)).requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.marginal_log_prob(x, level).sum(), x)
    assert (gradient - oracle.score(x.detach(), level)).abs().max() < 1e-10
    x = x.detach()
    value = float(x[0, 0, 0])
    moments = [
        integrate.quad(lambda u, p=p: u**p * stats.norm.pdf(value, level.alpha * u, level.sigma), -1, 1)[0]
        for p in range(2)
    ]
    assert float(oracle(x, level).x0[0, 0, 0]) == pytest.approx(moments[1] / moments[0], abs=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda x: oracle(x, level).x0.sum(0).flatten(), x)
    trace = torch.einsum("ibi->b", jacobian.reshape(2, 4, 2)) * level.sigma**2 / level.alpha
    assert (oracle.posterior_covariance_trace(x, level) - trace).abs().max() < 1e-10


@every
def test_what_functions_take_from_a_denoiser(name: str) -> None:
    """The schedule if there is one, and the standard deviation of all numbers of the data."""
    oracle = ORACLES[name]()
    assert oracle.schedule is None
    parts = components(name)
    square = sum(w * (np.trace(c) + m @ m) for w, m, c in parts) / DIMENSIONS
    mean = sum(w * m.mean() for w, m, _ in parts)
    assert oracle.data_std == pytest.approx(math.sqrt(square - mean**2), rel=1e-9)
    assert MixtureOracle(MEANS, Covariances.full(matrices(3)), schedule=SCHEDULES["edm"]).schedule is SCHEDULES["edm"]
