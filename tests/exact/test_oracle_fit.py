"""Oracles fitted to images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from tests.four_dimensions import (
    SCHEDULES,
    SHAPE,
    randn,
)

from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, GaussianOracle, MixtureOracle


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
    assert few.covariances.values.shape == (1, 2) and few.covariances.codimension == 2
    wide = GaussianOracle(images[:3].mean(0), torch.from_numpy(np.cov(rows[:3].T, bias=True)))
    assert torch.allclose(few(x, level).x0, wide(x, level).x0, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_mixture_fits_images_drawn_from_one(kind: str) -> None:
    means = torch.stack([torch.full((2, 2), -2.0), torch.full((2, 2), 2.0)]).double()
    root = torch.tensor([[1.0, 0.5, 0.5, 0.5], [0.0, 0.2, 0, 0], [0, 0, 0.2, 0], [0, 0, 0, 0.2]], dtype=torch.float64)
    variances = torch.tensor([[[1.0, 0.1], [0.1, 0.5]], [[0.2, 1.0], [0.3, 0.4]]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    truth = {
        "full": Covariances.full((root.mT @ root).expand(2, 4, 4)),
        "diag": Covariances.diagonal(variances),
    }[kind]
    oracle = MixtureOracle(means, truth, weights)
    images, held_out = oracle.sample(4000, 0), oracle.sample(2000, 1)
    found = MixtureOracle.fit(images, 2, kind, seed=1)  # type: ignore[arg-type]
    assert found.weights.sort().values.tolist() == pytest.approx([0.3, 0.7], abs=0.03)
    # the Kullback-Leibler divergence is about half the number of parameters over the number of images
    assert abs(float((oracle.log_prob(held_out) - found.log_prob(held_out)).mean())) < 0.02
    again = MixtureOracle.fit(images, 2, kind, seed=1)  # type: ignore[arg-type]
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
    from sklearn.exceptions import ConvergenceWarning

    whole = sklearn.mixture.GaussianMixture
    monkeypatch.setattr(sklearn.mixture, "GaussianMixture", lambda k, **kw: whole(k, **{**kw, "max_iter": 1}))
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        MixtureOracle.fit(randn(60, 3), 5)
