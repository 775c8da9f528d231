"""Oracles against SciPy's densities, quadrature, Tweedie's formula and each other, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, EmpiricalOracle, GaussianOracle, MixtureOracle, Oracle
from sfumato.errors import InputError, SfumatoWarning
from sfumato.sampling import grids
from sfumato.sampling.dpm_solver import dpm_solver_pp_2m
from sfumato.sampling.heun import heun
from sfumato.sampling.sample import initial, sample

SCHEDULES = {"linear": schedules.linear(1000), "cosine": schedules.ContinuousCosine(), "edm": schedules.Karras()}
SHAPE = (2, 2)
DIMENSIONS = 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrices(count: int, rank: int = DIMENSIONS, floor: float = 0.05) -> Tensor:
    root = 0.6 * randn(count, DIMENSIONS, rank, seed=3)
    return root @ root.mT + floor * torch.eye(DIMENSIONS, dtype=torch.float64)


WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = randn(3, *SHAPE, seed=1)
DATA = randn(7, *SHAPE, seed=2)

ORACLES: dict[str, Callable[[], Oracle]] = {
    "gaussian": lambda: GaussianOracle(MEANS[0], matrices(1)[0]),
    "full": lambda: MixtureOracle(MEANS, Covariances.full(matrices(3)), WEIGHTS),
    "diagonal": lambda: MixtureOracle(MEANS, Covariances.diagonal(randn(3, *SHAPE).abs()), WEIGHTS),
    "low rank": lambda: MixtureOracle(
        MEANS,
        Covariances.low_rank(randn(3, DIMENSIONS, 2), torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64)),
        WEIGHTS,
    ),
    "low rank, diagonal": lambda: MixtureOracle(
        MEANS, Covariances.low_rank(randn(3, DIMENSIONS, 2), 0.1 + randn(3, DIMENSIONS).abs()), WEIGHTS
    ),
    "singular": lambda: MixtureOracle(MEANS, Covariances.full(matrices(3, 2, 0.0)), WEIGHTS),
    "empirical": lambda: EmpiricalOracle(DATA),
    "kernel": lambda: EmpiricalOracle(DATA, std=0.3),
}
every = pytest.mark.parametrize("name", ORACLES)
levels = pytest.mark.parametrize(
    "level",
    [SCHEDULES["linear"](0.02), SCHEDULES["cosine"](0.6), SCHEDULES["edm"](0.55), Level(1.0, 0.0, 1.0)],
    ids=["near", "cosine", "edm", "noise"],
)


def components(name: str) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """The weights, means and covariances of an oracle, written out independently."""
    eye = np.eye(DIMENSIONS)
    means = MEANS.reshape(3, -1).numpy()
    if name in ("empirical", "kernel"):
        variance = 0.3**2 if name == "kernel" else 0.0
        return [(1 / 7, row, variance * eye) for row in DATA.reshape(7, -1).numpy()]
    factors = randn(3, DIMENSIONS, 2).numpy()
    covariances = {
        "gaussian": matrices(1).numpy(),
        "full": matrices(3).numpy(),
        "diagonal": [np.diag(row) for row in randn(3, DIMENSIONS).abs().numpy()],
        "low rank": [f @ f.T + d * eye for f, d in zip(factors, (0.3, 0.1, 0.2), strict=True)],
        "low rank, diagonal": [
            f @ f.T + np.diag(d) for f, d in zip(factors, 0.1 + randn(3, DIMENSIONS).abs().numpy(), strict=True)
        ],
        "singular": matrices(3, 2, 0.0).numpy(),
    }[name]
    weights = [1.0] if name == "gaussian" else WEIGHTS.tolist()
    return list(zip(weights, means, covariances, strict=False))


def noisy(count: int, level: Level, seed: int = 5) -> Tensor:
    """Samples of about the size of the diffused data."""
    return randn(count, *SHAPE, seed=seed) * math.sqrt(level.alpha**2 + level.sigma**2)


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


def test_the_forms_of_a_covariance_agree() -> None:
    factors, x = randn(3, DIMENSIONS, 2), randn(5, *SHAPE)
    number, diagonal = torch.tensor([0.3, 0.0, 0.2], dtype=torch.float64), randn(3, DIMENSIONS).abs()
    eye = torch.eye(DIMENSIONS, dtype=torch.float64)
    wide = randn(3, DIMENSIONS, 6)
    pairs = [
        (Covariances.low_rank(factors, number), Covariances.full(factors @ factors.mT + number[:, None, None] * eye)),
        (Covariances.low_rank(factors, diagonal), Covariances.full(factors @ factors.mT + torch.diag_embed(diagonal))),
        (Covariances.low_rank(wide, number), Covariances.full(wide @ wide.mT + number[:, None, None] * eye)),
        (Covariances.diagonal(diagonal), Covariances.full(torch.diag_embed(diagonal))),
        (Covariances.isotropic(number, DIMENSIONS), Covariances.diagonal(number[:, None].expand(3, DIMENSIONS))),
    ]
    for one, two in pairs:
        a, b = MixtureOracle(MEANS, one, WEIGHTS), MixtureOracle(MEANS, two, WEIGHTS)
        for level in (SCHEDULES["linear"](0.05), SCHEDULES["edm"](0.8)):
            assert torch.allclose(a(x, level).x0, b(x, level).x0, rtol=1e-9, atol=1e-11)
            assert torch.allclose(a(x, level).eps, b(x, level).eps, rtol=1e-9, atol=1e-11)
            for key in ("marginal_log_prob", "posterior_covariance_trace", "score"):
                assert torch.allclose(getattr(a, key)(x, level), getattr(b, key)(x, level), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_a_data_set_is_a_mixture_of_points(std: float) -> None:
    points = MixtureOracle(DATA, Covariances.isotropic(torch.full((7,), std**2, dtype=torch.float64), DIMENSIONS))
    empirical, x = EmpiricalOracle(DATA, std), randn(5, *SHAPE)
    # from far within the noise to where each point stands alone
    for t in (1e-4, 0.01, 0.3, 0.9):
        level = SCHEDULES["linear"](t)
        for key in ("marginal_log_prob", "posterior_covariance_trace", "score"):
            assert torch.allclose(
                getattr(points, key)(x, level), getattr(empirical, key)(x, level), rtol=1e-9, atol=1e-12
            )
        assert torch.allclose(points(x, level).x0, empirical(x, level).x0, rtol=1e-12, atol=1e-12)


def test_a_data_set_at_tiny_noise() -> None:
    """Far below the distances in the data, each point is its own world: the density is that of one Gaussian."""
    data = torch.cat([DATA, DATA[:1]])  # one of them twice
    oracle = EmpiricalOracle(data)
    for sigma in (1e-3, 1e-6, 1e-9):
        level, noise = Level(0.5, 1.0, sigma), randn(7, *SHAPE)
        x = DATA + sigma * noise
        found = oracle(x, level)
        assert (found.x0 - DATA).abs().max() < 1e-14
        assert (found.eps - noise).abs().max() < 1e-15 / sigma + 1e-12
        share = torch.tensor([2.0, 1, 1, 1, 1, 1, 1], dtype=torch.float64) / 8.0
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum((1, 2))
        expected = share.log() + normal - DIMENSIONS * math.log(sigma)
        assert torch.allclose(oracle.marginal_log_prob(x, level), expected, rtol=0.0, atol=1e-14 / sigma + 1e-12)
        assert oracle.posterior_covariance_trace(x, level).max() < 1e-14 * sigma**2 * DIMENSIONS + 1e-28


def test_two_data_points_as_close_as_the_noise_is_small() -> None:
    """Half way between two at a distance d, both weigh 1/2: the variance is d^2 / 4, far below rounding of the data."""
    d = 1e-7
    oracle = EmpiricalOracle(torch.tensor([[1.0 - d / 2, 2.0], [1.0 + d / 2, 2.0], [-5.0, 0.0]], dtype=torch.float64))
    x, level = torch.tensor([[1.0, 2.0]], dtype=torch.float64), Level(0.1, 1.0, d)
    assert float(oracle.posterior_covariance_trace(x, level)) == pytest.approx(d**2 / 4, rel=1e-6, abs=0.0)
    assert (oracle(x, level).x0 - x).abs().max() < 1e-15
    expected = math.log(2 / 3) - 1 / 8 - math.log(2 * math.pi * d**2)
    assert float(oracle.marginal_log_prob(x, level)) == pytest.approx(expected, abs=1e-7)


@every
def test_the_ends_of_the_noise(name: str) -> None:
    oracle, parts = ORACLES[name](), components(name)
    mean = torch.from_numpy(sum(w * m for w, m, _ in parts)).reshape(SHAPE)
    total = sum(w * (np.trace(c) + np.square(m - mean.numpy().reshape(-1)).sum()) for w, m, c in parts)
    x = randn(4, *SHAPE)
    for far, scale in ((Level(1.0, 0.0, 1.0), 1.0), (Level(1.0, 1.0, 1e8), 1e8)):
        assert (oracle(scale * x, far).x0 - mean).abs().max() < 1e-6
        assert oracle.posterior_covariance_trace(scale * x, far).numpy() == pytest.approx(total, rel=1e-6)
        assert (oracle(scale * x, far).eps - x).abs().max() < 1e-6
    data = oracle.sample(4, 0, dtype=torch.float64)
    near = Level(0.0, 1.0, 1e-7)
    assert (oracle(data, near).x0 - data).abs().max() < 1e-6
    trace = oracle.posterior_covariance_trace(data, near)
    assert float(trace.max()) <= 1.001 * DIMENSIONS * 1e-14 and float(trace.min()) >= 0.0


def test_a_point_is_known_at_any_noise() -> None:
    point = randn(1, *SHAPE)
    for oracle in (
        GaussianOracle.fit(point),
        GaussianOracle.fit(point.expand(5, *SHAPE)),
        GaussianOracle(point[0], torch.zeros(DIMENSIONS, DIMENSIONS)),
        EmpiricalOracle(point),
        EmpiricalOracle(point.expand(5, *SHAPE)),
        MixtureOracle(point, Covariances.diagonal(torch.zeros(1, *SHAPE))),
    ):
        for level in (Level(0.1, 1.0, 1e-8), SCHEDULES["linear"](0.5), SCHEDULES["edm"](1.0)):
            noise = randn(3, *SHAPE)
            found = oracle(level.alpha * point + level.sigma * noise, level)
            assert (found.x0 - point).abs().max() < 1e-13
            assert float(oracle.posterior_covariance_trace(noise, level).abs().max()) < 1e-25
        assert (oracle.sample(3, 0, dtype=torch.float64) - point).abs().max() < 1e-15


def test_a_single_pixel() -> None:
    oracle = GaussianOracle.fit(torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1))
    assert oracle.covariances.values.item() == pytest.approx(2 / 3) and oracle.means.item() == pytest.approx(1.0)
    assert oracle.log_prob(torch.ones(1, 1, 1, 1)).item() == pytest.approx(
        stats.norm.logpdf(0, 0, (2 / 3) ** 0.5), abs=1e-6
    )


def test_a_direction_without_variance_stays_exact() -> None:
    """Data on a line in the plane: the offset across it is removed to the last digit at any level."""
    line = torch.tensor([0.6, 0.8], dtype=torch.float64)
    oracle = GaussianOracle(torch.tensor([0.8, -0.6], dtype=torch.float64), 4.0 * torch.outer(line, line))
    across = torch.tensor([0.8, -0.6], dtype=torch.float64)
    for level in (Level(0.1, 1.0, 1e-6), SCHEDULES["linear"](0.5), SCHEDULES["edm"](0.9)):
        x = randn(6, 2) * level.sigma + level.alpha * (across + torch.outer(randn(6, seed=1), line))
        found = oracle(x, level).x0
        assert (found @ across - 1.0).abs().max() < 1e-14
        gain = 4.0 * level.alpha / (4.0 * level.alpha**2 + level.sigma**2)
        assert (found @ line - gain * (x @ line)).abs().max() < 1e-12
    with pytest.raises(InputError, match="without variance in 1 of 2 directions"):
        oracle.log_prob(x)
    with pytest.raises(InputError, match="sigma > 0"):
        oracle.marginal_log_prob(x, SCHEDULES["linear"](0.0))
    with pytest.raises(InputError, match="sigma > 0"):
        oracle.flow(x, SCHEDULES["linear"](0.0), SCHEDULES["linear"](0.5))


@pytest.mark.parametrize("name", ["gaussian", "full", "diagonal", "low rank", "kernel"])
def test_the_density_of_the_data_themselves(name: str) -> None:
    x = randn(5, *SHAPE)
    density = sum(w * stats.multivariate_normal(m, c).pdf(x.flatten(1)) for w, m, c in components(name))
    assert ORACLES[name]().log_prob(x).numpy() == pytest.approx(np.log(density), abs=1e-10)


def test_a_gaussian_fits_the_moments_of_images() -> None:
    images = randn(50, *SHAPE) @ randn(2, 2, seed=1) + 3.0
    oracle = GaussianOracle.fit(images)
    rows = images.reshape(50, -1).numpy()
    exact = GaussianOracle(torch.from_numpy(rows.mean(0)).reshape(SHAPE), torch.from_numpy(np.cov(rows.T, bias=True)))
    x, level = randn(4, *SHAPE), SCHEDULES["linear"](0.2)
    assert torch.allclose(oracle(x, level).x0, exact(x, level).x0, atol=1e-12)
    assert torch.allclose(oracle.log_prob(x), exact.log_prob(x), atol=1e-10)
    # fewer images than dimensions: the plane through them
    few = GaussianOracle.fit(images[:3])
    assert few.covariances.values.shape == (1, 2) and few.covariances.flat == 2
    wide = GaussianOracle(images[:3].mean(0), torch.from_numpy(np.cov(rows[:3].T, bias=True)))
    assert torch.allclose(few(x, level).x0, wide(x, level).x0, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "diag", "low_rank"])
def test_a_mixture_fits_images_drawn_from_one(kind: str) -> None:
    means = torch.stack([torch.full((2, 2), -2.0), torch.full((2, 2), 2.0)]).double()
    root = torch.tensor([[1.0, 0.5, 0.5, 0.5], [0.0, 0.2, 0, 0], [0, 0, 0.2, 0], [0, 0, 0, 0.2]], dtype=torch.float64)
    variances = torch.tensor([[[1.0, 0.1], [0.1, 0.5]], [[0.2, 1.0], [0.3, 0.4]]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    truth = {
        "full": Covariances.full((root.mT @ root).expand(2, 4, 4)),
        "diag": Covariances.diagonal(variances),
        "low_rank": Covariances.low_rank(root[:1].mT.expand(2, 4, 1), torch.tensor([0.04, 0.09], dtype=torch.float64)),
    }[kind]
    oracle = MixtureOracle(means, truth, weights)
    images, held_out = oracle.sample(4000, 0), oracle.sample(2000, 1)
    found = MixtureOracle.fit(images, 2, kind, seed=1, rank=1)  # type: ignore[arg-type]
    assert found.weights.sort().values.tolist() == pytest.approx([0.3, 0.7], abs=0.03)
    # the Kullback-Leibler divergence is about half the number of parameters over the number of images
    assert abs(float((oracle.log_prob(held_out) - found.log_prob(held_out)).mean())) < 0.02
    again = MixtureOracle.fit(images, 2, kind, seed=1, rank=1)  # type: ignore[arg-type]
    assert torch.equal(again.means, found.means)


def test_a_mixture_of_the_digits_in_64_dimensions() -> None:
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images[:600] / 8.0 - 1.0)[:, None]
    oracle, level = MixtureOracle.fit(images, 10), SCHEDULES["linear"](0.1)
    x = level.alpha * images[:20] + level.sigma * randn(20, 1, 8, 8)
    basis = oracle.covariances.basis
    assert basis is not None
    covariances = (basis * oracle.covariances.values[:, None]) @ basis.mT
    for a, sigma, points in ((level.alpha, level.sigma, x), (1.0, 0.0, images[:20])):
        logs = [
            math.log(w) + stats.multivariate_normal(a * m, a**2 * c + sigma**2 * np.eye(64)).logpdf(points.flatten(1))
            for w, m, c in zip(oracle.weights.tolist(), oracle.means.numpy(), covariances.numpy(), strict=True)
        ]
        found = oracle.marginal_log_prob(points, Level(0.1, a, sigma))
        assert found.numpy() == pytest.approx(special.logsumexp(logs, axis=0), abs=1e-6)
    gradient = torch.autograd.functional.jacobian(lambda x: oracle.marginal_log_prob(x, level).sum(), x)
    assert (oracle.score(x, level) - gradient).abs().max() < 1e-9


def test_a_fit_that_has_not_converged_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.mixture

    whole = sklearn.mixture.GaussianMixture
    monkeypatch.setattr(sklearn.mixture, "GaussianMixture", lambda k, **kw: whole(k, **{**kw, "max_iter": 1}))
    with pytest.warns(SfumatoWarning, match="not converged"):
        MixtureOracle.fit(randn(60, 3), 5)


def test_low_rank_keeps_the_total_variance() -> None:
    images = randn(300, *SHAPE) @ randn(2, 2, seed=1)
    full, low = (MixtureOracle.fit(images, 2, kind, rank=2) for kind in ("full", "low_rank"))  # type: ignore[arg-type]
    assert low.covariances.values.shape == (2, 2)
    far, x = Level(1.0, 0.0, 1.0), randn(1, *SHAPE)
    assert torch.allclose(full.posterior_covariance_trace(x, far), low.posterior_covariance_trace(x, far))
    whole = MixtureOracle.fit(images, 2, "low_rank", rank=9)
    assert torch.allclose(whole.log_prob(x), full.log_prob(x))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", [heun, dpm_solver_pp_2m])
def test_samplers_follow_the_flow_of_a_gaussian(name: str, step: object) -> None:
    oracle, schedule = GaussianOracle(MEANS[0], matrices(1)[0]), SCHEDULES[name]
    levels = grids.karras(schedule, 400, sigma_min=1e-4)
    x = initial(levels, SHAPE, 0, count=50).double()
    *_, frame = sample(oracle, x, levels, step)  # type: ignore[arg-type]
    exact = oracle.flow(x, schedule(1.0), schedule(0.0))
    assert (frame.x - exact).abs().max() < 2e-3
    halfway = schedule(0.5)
    back = oracle.flow(oracle.flow(x, schedule(1.0), halfway), halfway, schedule(1.0))
    assert (back - x).abs().max() < 1e-10


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", [heun, dpm_solver_pp_2m])
def test_samplers_reproduce_the_distribution(name: str, step: object) -> None:
    """A mixture on a line: the Kolmogorov-Smirnov distance of samples to the exact distribution is that of chance."""
    means, stds, weights = [-1.0, 0.2, 1.5], [0.1, 0.3, 0.2], [0.5, 0.3, 0.2]
    oracle = MixtureOracle(
        torch.tensor(means)[:, None],
        Covariances.isotropic(torch.tensor(stds, dtype=torch.float64).square(), 1),
        torch.tensor(weights),
    )
    levels = grids.karras(SCHEDULES[name], 60)
    x = initial(levels, (1,), 3, count=2000).double()
    *_, frame = sample(oracle, x, levels, step)  # type: ignore[arg-type]

    def distribution(value: np.ndarray) -> np.ndarray:
        return sum(w * stats.norm.cdf(value, m, s) for w, m, s in zip(weights, means, stds, strict=True))

    assert stats.kstest(frame.x[:, 0].numpy(), distribution).pvalue > 0.01


@pytest.mark.parametrize("name", SCHEDULES)
def test_samples_of_a_data_set_are_its_data(name: str) -> None:
    levels = grids.karras(SCHEDULES[name], 30)
    x = initial(levels, SHAPE, 1, count=60).double()
    *_, frame = sample(EmpiricalOracle(DATA), x, levels, heun)
    distances = (frame.x[:, None] - DATA).flatten(2).norm(dim=2)
    assert float(distances.min(1).values.max()) < 1e-6
    assert len(distances.argmin(1).unique()) == len(DATA)


def test_an_oracle_of_ones_own() -> None:
    """Uniform on [-1, 1]: a few lines give a denoiser, its score and its density."""

    class Uniform(Oracle):
        def log_prob_rows(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            a, b = self._ends(x, alpha, sigma)
            return ((torch.special.ndtr(b) - torch.special.ndtr(a)) / (2.0 * alpha[:, None])).log().sum(1)

        def posterior_rows(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            shift, _ = self._truncated(x, alpha, sigma)
            return x / alpha[:, None] + (sigma / alpha)[:, None] * shift, -shift

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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianOracle(torch.zeros(3), torch.eye(2)), "3 dimensions"),
        (lambda: GaussianOracle(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: GaussianOracle(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "negative eigenvalue"),
        (lambda: GaussianOracle(torch.zeros(2), torch.zeros(2)), "shape"),
        (lambda: GaussianOracle(torch.zeros(2), torch.full((2, 2), float("nan"))), "finite"),
        (lambda: GaussianOracle(torch.tensor([0.0, float("inf")]), torch.eye(2)), "finite"),
        (lambda: GaussianOracle.fit(torch.zeros(0, 3)), "N at least 1"),
        (lambda: GaussianOracle.fit(torch.full((3, 3), float("nan"))), "finite"),
        (lambda: Covariances.diagonal(torch.tensor([[-1.0]])), "negative"),
        (lambda: Covariances.low_rank(torch.zeros(2, 3, 1), torch.zeros(3)), "low-rank"),
        (lambda: MixtureOracle(MEANS, Covariances.full(matrices(2))), "3 means"),
        (lambda: MixtureOracle(MEANS, Covariances.full(matrices(3)), torch.ones(3)), "sum 1"),
        (lambda: MixtureOracle(MEANS, Covariances.full(matrices(3)), torch.tensor([1.5, -0.5, 0.0])), "positive"),
        (lambda: MixtureOracle(MEANS[:0], Covariances.full(matrices(3))), "at least one component"),
        (lambda: MixtureOracle.fit(DATA, 8), "at least 1 component"),
        (lambda: MixtureOracle.fit(DATA, 0), "at least 1 component"),
        (lambda: MixtureOracle.fit(DATA, 2, "diagonal"), "did you mean 'diag'"),
        (lambda: MixtureOracle.fit(DATA, 2, "low_rank", rank=0), "rank"),
        (lambda: MixtureOracle.fit(torch.zeros(9, 4), 2, floor=0.0), "does not vary"),
        (lambda: EmpiricalOracle(torch.zeros(0, 3)), "at least 1"),
        (lambda: EmpiricalOracle(DATA, std=-1.0), "at least 0"),
        (lambda: EmpiricalOracle(torch.zeros(2, 0)), "at least one dimension"),
        (lambda: EmpiricalOracle(DATA).sample(-1, 0), "numbered from 0"),
        (lambda: GaussianOracle.fit(DATA).sample(1, 0, first=-2), "numbered from 0"),
        (lambda: EmpiricalOracle(DATA).log_prob(DATA), "without density"),
        (lambda: EmpiricalOracle(DATA)(DATA, Level(0.0, 1.0, 0.0)), "sigma = 0"),
        (lambda: EmpiricalOracle(DATA).score(DATA, Level(0.0, 1.0, 0.0)), "sigma = 0"),
        (lambda: EmpiricalOracle(DATA)(DATA.flatten(1), Level(0.5, 0.8, 0.6)), r"shape \(2, 2\)"),
        (lambda: EmpiricalOracle(DATA)(DATA.long(), Level(0.5, 0.8, 0.6)), "floating-point"),
        (lambda: EmpiricalOracle(DATA)(DATA, SCHEDULES["linear"](torch.tensor([0.5, 0.6]).double())), "one per sample"),
    ],
)
def test_bad_input(make: Callable[[], object], words: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("level", [Level(0.0, 1.0, 0.0), Level(0.5, 0.8, 0.6), Level(1.0, 0.0, 1.0)])
def test_the_distribution_function_of_one_dimension(level: Level) -> None:
    oracle = MixtureOracle(
        torch.tensor([[-1.0], [0.5]]), Covariances.isotropic(torch.tensor([0.3, 0.01]), 1), torch.tensor([0.25, 0.75])
    )
    x = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)
    expected = sum(
        w * stats.norm.cdf(x.numpy(), level.alpha * m, math.sqrt(level.alpha**2 * v + level.sigma**2))
        for w, m, v in ((0.25, -1.0, 0.3), (0.75, 0.5, 0.01))
    )
    assert oracle.marginal_cdf(x, level).numpy() == pytest.approx(expected, abs=1e-7)


def test_the_distribution_function_of_points_is_a_staircase() -> None:
    oracle = MixtureOracle(torch.tensor([[-1.0], [1.0]]), Covariances.isotropic(torch.zeros(2), 1))
    found = oracle.marginal_cdf(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]), Level(0.0, 1.0, 0.0))
    assert found.tolist() == [0.0, 0.5, 0.5, 1.0, 1.0]
    with pytest.raises(InputError, match="of one dimension; these data have 2"):
        GaussianOracle(torch.zeros(2), torch.eye(2)).marginal_cdf(torch.zeros(3), Level(0.5, 0.8, 0.6))


def test_principal_coordinates_are_those_of_the_covariance() -> None:
    x = randn(200, 5) * torch.tensor([0.1, 2.0, 0.0, 1.0, 0.5], dtype=torch.float64) + 3.0
    fitted = GaussianOracle.fit(x)
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    assert fitted.variances.numpy() == pytest.approx(values, abs=1e-12)
    along = fitted.principal_coordinates(x, 2)
    assert along.mean(0).numpy() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert np.cov(along.numpy().T, bias=True) == pytest.approx(np.diag(values[:2]), abs=1e-12)
    # the same axes of a covariance that is given in whole, up to their sign
    whole = GaussianOracle(x.mean(0), torch.from_numpy(np.cov(x.numpy().T, bias=True)))
    assert whole.variances.numpy() == pytest.approx(values, abs=1e-12)
    assert torch.allclose(whole.principal_coordinates(x, 2).abs(), along.abs(), atol=1e-9)
    with pytest.raises(InputError, match="vary along 4 principal axes; 5 were asked for"):
        fitted.principal_coordinates(x, 5)
