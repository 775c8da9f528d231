"""Distribution functions and principal coordinates of oracles, against SciPy and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, GaussianOracle, MixtureOracle
from sfumato.errors import InputError


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


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
