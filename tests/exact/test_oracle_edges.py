"""Oracles where numbers could fail them: points, planes, tiny noise, data that are none."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from tests.four_dimensions import (
    DATA,
    DIMENSIONS,
    MEANS,
    ORACLES,
    SCHEDULES,
    SHAPE,
    WEIGHTS,
    components,
    every,
    low_rank,
    matrices,
    randn,
)

from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, EmpiricalOracle, GaussianOracle, MixtureOracle
from sfumato.errors import InputError


def test_the_forms_of_a_covariance_agree() -> None:
    factors, x = randn(3, DIMENSIONS, 2), randn(5, *SHAPE)
    number, diagonal = torch.tensor([0.3, 0.0, 0.2], dtype=torch.float64), randn(3, DIMENSIONS).abs()
    eye = torch.eye(DIMENSIONS, dtype=torch.float64)
    wide = randn(3, DIMENSIONS, 6)
    pairs = [
        (low_rank(factors, number), Covariances.full(factors @ factors.mT + number[:, None, None] * eye)),
        (low_rank(wide, number), Covariances.full(wide @ wide.mT + number[:, None, None] * eye)),
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
    with pytest.raises(InputError, match="no variance in 1 of 2 directions"):
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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianOracle(torch.zeros(3), torch.eye(2)), "3 dimensions"),
        (lambda: GaussianOracle(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: GaussianOracle(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "negative eigenvalue"),
        (lambda: GaussianOracle(torch.zeros(2), torch.full((2, 2), float("nan"))), "finite"),
        (lambda: GaussianOracle(torch.tensor([0.0, float("inf")]), torch.eye(2)), "finite"),
        (lambda: GaussianOracle.fit(torch.zeros(0, 3)), "at least 1 image"),
        (lambda: GaussianOracle.fit(torch.full((3, 3), float("nan"))), "finite"),
        (lambda: Covariances.diagonal(torch.tensor([[-1.0]])), "negative"),
        (lambda: MixtureOracle(MEANS, Covariances.full(matrices(2))), "3 means"),
        (lambda: MixtureOracle(MEANS, Covariances.full(matrices(3)), torch.ones(3)), "sum to 1"),
        (lambda: MixtureOracle(MEANS, Covariances.full(matrices(3)), torch.tensor([1.5, -0.5, 0.0])), "positive"),
        (lambda: MixtureOracle(MEANS[:0], Covariances.full(matrices(3))), "0 means"),
        (lambda: MixtureOracle.fit(DATA, 8), "fewer components"),
        (lambda: MixtureOracle.fit(DATA, 2, floor=-1.0), "floor"),
        (lambda: MixtureOracle.fit(torch.zeros(9, 4), 2, floor=0.0), "larger floor|floor above"),
        (lambda: EmpiricalOracle(torch.zeros(0, 3)), "at least 1 image"),
        (lambda: EmpiricalOracle(DATA, std=-1.0), "std >= 0"),
        (lambda: EmpiricalOracle(torch.zeros(2, 0)), "at least one dimension"),
        (lambda: EmpiricalOracle(DATA).log_prob(DATA), "without density"),
        (lambda: EmpiricalOracle(DATA)(DATA, Level(0.0, 1.0, 0.0)), "sigma = 0"),
        (lambda: EmpiricalOracle(DATA).score(DATA, Level(0.0, 1.0, 0.0)), "sigma = 0"),
        (lambda: EmpiricalOracle(DATA)(DATA.flatten(1), Level(0.5, 0.8, 0.6)), r"shape \(2, 2\)"),
    ],
)
def test_bad_input(make: Callable[[], object], words: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=words):
        make()
