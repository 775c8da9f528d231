"""Oracles of four dimensions, each with the numbers it is made of written out independently."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, EmpiricalOracle, GaussianOracle, MixtureOracle, Oracle

SCHEDULES = {"linear": schedules.linear(1000), "cosine": schedules.ContinuousCosine(), "edm": schedules.Karras()}
SHAPE = (2, 2)
DIMENSIONS = 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrices(count: int, rank: int = DIMENSIONS, floor: float = 0.05) -> Tensor:
    root = 0.6 * randn(count, DIMENSIONS, rank, seed=3)
    return root @ root.mT + floor * torch.eye(DIMENSIONS, dtype=torch.float64)


def low_rank(factors: Tensor, rest: Tensor) -> Covariances:
    """The covariances F F^T + r I."""
    basis, singular, _ = torch.linalg.svd(factors, full_matrices=False)
    return Covariances(basis, singular.square() + rest[:, None], rest, factors.shape[1])


WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = randn(3, *SHAPE, seed=1)
DATA = randn(7, *SHAPE, seed=2)

ORACLES: dict[str, Callable[[], Oracle]] = {
    "gaussian": lambda: GaussianOracle(MEANS[0], matrices(1)[0]),
    "full": lambda: MixtureOracle(MEANS, Covariances.full(matrices(3)), WEIGHTS),
    "diagonal": lambda: MixtureOracle(MEANS, Covariances.diagonal(randn(3, *SHAPE).abs()), WEIGHTS),
    "low rank": lambda: MixtureOracle(
        MEANS,
        low_rank(randn(3, DIMENSIONS, 2), torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64)),
        WEIGHTS,
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
        "singular": matrices(3, 2, 0.0).numpy(),
    }[name]
    weights = [1.0] if name == "gaussian" else WEIGHTS.tolist()
    return list(zip(weights, means, covariances, strict=False))


def noisy(count: int, level: Level, seed: int = 5) -> Tensor:
    """Samples of about the size of the diffused data."""
    return randn(count, *SHAPE, seed=seed) * math.sqrt(level.alpha**2 + level.sigma**2)
