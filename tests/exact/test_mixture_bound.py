"""The bound of a mixture fitted to the digits, against its exact probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion import variance
from sfumato.diffusion.oracle import MixtureOracle
from sfumato.diffusion.variance import analytic, estimate
from sfumato.models.likelihood import bits_per_dim
from sfumato.sampling import grids

WIDTH = 2.0 / 255.0


def exact_bits(mixture: MixtureOracle, x0: Tensor) -> Tensor:
    """-log2 of the probability of 8-bit images: with diagonal covariances a product over pixels in each component."""
    flat = x0.double().flatten(1)[:, None]
    std = mixture.covariances.values.sqrt()
    z = torch.distributions.Normal(mixture.means, std)
    upper = torch.where(flat > 1.0 - 0.5 * WIDTH, 1.0, z.cdf(flat + 0.5 * WIDTH))
    lower = torch.where(flat < -1.0 + 0.5 * WIDTH, 0.0, z.cdf(flat - 0.5 * WIDTH))
    # where both are nearly 1 their difference is rounding: there the density times the width is exact enough
    inside = torch.where(upper - lower > 1e-9, (upper - lower).log(), z.log_prob(flat) + math.log(WIDTH))
    return -(mixture.weights.log() + inside.sum(2)).logsumexp(1) / math.log(2.0) / mixture.dimensions


@pytest.mark.slow
def test_bounds_of_a_mixture_fitted_to_the_digits() -> None:
    # within the range: at its ends a bin holds all that lies beyond, which a chain of densities can't know
    images = 0.7 * (torch.from_numpy(load_digits().images).double()[:, None] / 8.0 - 1.0)
    mixture = MixtureOracle.fit(images, 10, "diag", floor=2e-3)
    x0 = ((mixture.sample(200, 0, dtype=torch.float64).clamp(-1, 1) + 1) / WIDTH).round() * WIDTH - 1
    schedule, exact = schedules.ContinuousLinear(), exact_bits(mixture, x0)
    data = mixture.sample(500, 1, dtype=torch.float64)
    gaps: dict[str, list[float]] = {"small": [], "large": [], "analytic": []}
    for steps in (25, 100, 400):
        # down to a quarter of a bin; steps uniform in time are coarse in log-SNR near the data, however many
        levels = grids.karras(schedule, steps, sigma_min=0.25 * WIDTH)
        gamma = estimate(mixture, data.split(250), levels).monotone()
        kinds = {name: variance.decoded(getattr(variance, name)) for name in ("small", "large")}
        kinds["analytic"] = analytic(gamma, to_data=True)
        for name, kind in kinds.items():
            found = bits_per_dim(mixture, x0, schedule=schedule, levels=levels, variance=kind, flow=False).bound
            assert found is not None
            gap = found.total - exact
            error = float(gap.std()) / math.sqrt(len(gap))
            print(f"T = {steps}, {name}: {found.mean:.4f}, {float(gap.mean()):.4f} above the exact")
            assert float(gap.mean()) > -3.0 * error
            gaps[name].append(float(gap.mean()))
    for name in gaps:
        assert gaps[name][0] > gaps[name][1] > gaps[name][2]
    for small, large, best in zip(*gaps.values(), strict=True):
        assert best <= min(small, large) + 1e-3
