"""Samplers with oracles: the exact flow and the exact distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.four_dimensions import (
    DATA,
    MEANS,
    SCHEDULES,
    SHAPE,
    matrices,
)

from sfumato.diffusion.oracle import Covariances, EmpiricalOracle, GaussianOracle, MixtureOracle
from sfumato.sampling import grids
from sfumato.sampling.published import dpm_solver_pp
from sfumato.sampling.sample import initial, sample
from sfumato.sampling.steps import heun


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", [heun, dpm_solver_pp(2)])
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
@pytest.mark.parametrize("step", [heun, dpm_solver_pp(2)])
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
