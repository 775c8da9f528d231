"""The terms of the hierarchical VAE against quadrature, entropies and the bound itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import integrate, stats

from sfumato.analysis.hierarchy import (
    Hierarchy,
    gaussian_hierarchy,
    gaussian_variance,
    hierarchy,
    latent_levels,
)
from sfumato.data.dataset import grey_values
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.bound import variational_bound
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, GaussianOracle
from sfumato.errors import InputError
from sfumato.sampling import grids
from tests.oracles import gaussian

SCHEDULES = [
    schedules.linear(1000),
    schedules.ContinuousCosine(),
    schedules.Karras(),
    schedules.RectifiedFlow(),
    schedules.zero_terminal_snr(schedules.cosine(100)),
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coloured() -> GaussianOracle:
    axes, _ = torch.linalg.qr(normal(6, 6, seed=9))
    scales = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.03, 0.0], dtype=torch.float64)
    return GaussianOracle(torch.full((1, 2, 3), 0.1), Covariances.full(axes * scales.square() @ axes.mT))


def test_a_hierarchy_adds_up() -> None:
    times, bits = torch.tensor([1.0, 0.75, 0.5, 0.25]).double(), torch.tensor([1.0, 2.0, 4.0]).double()
    view = Hierarchy(times, 0.5, bits, 2.0)
    assert view.known.tolist() == [0.5, 1.5, 3.5, 7.5] and view.total == 9.5 and view.half() == 0.25
    assert Hierarchy(times, None, bits, None).known.tolist() == [0.0, 1.0, 3.0, 7.0]


def test_the_bits_of_a_gaussian_are_the_integral_of_its_error() -> None:
    """I(x_0; x_t) = 1/2 int_0^SNR mmse (Guo, Shamai and Verdu 2005, theorem 1), by quadrature."""
    data, schedule = coloured(), schedules.ContinuousCosine()
    levels = schedule(torch.linspace(0.9, 0.1, 9, dtype=torch.float64))
    found = gaussian_hierarchy(data, levels)
    variances = data.variances.numpy()
    for bits, (t, s) in zip(found.bits.tolist(), itertools.pairwise(list(levels)), strict=True):
        area, _ = integrate.quad(
            lambda g: (variances / (1 + g * variances)).sum(), math.exp(t.log_snr), math.exp(s.log_snr)
        )
        assert bits == pytest.approx(0.5 * area / math.log(2) / 6, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_of_a_gaussian_is_its_closed_form(schedule: schedules.Schedule) -> None:
    """White data, for which one variance per step is optimal: each step costs the information it adds."""
    oracle = gaussian(0.0, 0.5, (1, 4, 4))
    images = 0.5 * normal(3000, 1, 4, 4)
    levels = latent_levels(schedule, 20, None)
    view = hierarchy(oracle, images, levels, bins=None, variance=gaussian_variance(oracle))
    exact = gaussian_hierarchy(oracle, levels)
    assert view.decoder is None and torch.equal(view.times, exact.times)
    # a squared error of 3000 x 16 numbers is known to sqrt(2 / 48000) of itself
    assert view.bits.tolist() == pytest.approx(exact.bits.tolist(), rel=0.03, abs=1e-4)


def test_with_a_decoder_it_is_the_bound() -> None:
    oracle, x = gaussian(0.0, 0.3, (1, 3, 3)), (normal(30, 1, 3, 3) * 0.3).clamp(-1, 1)
    x = ((x + 1) * 127.5).round() / 127.5 - 1
    schedule = schedules.linear(100)
    grid = grids.uniform(schedule, 10)
    latents = Level(*(torch.as_tensor(v)[:-1] for v in (grid.t, grid.alpha, grid.sigma)))
    expected = variational_bound(oracle, x, grid, seed=3)
    found = hierarchy(oracle, x, latents, bins=256, seed=3)
    assert found.total == pytest.approx(expected.mean, rel=1e-12)
    assert found.bits.tolist() == pytest.approx(expected.steps.mean(0).tolist(), rel=1e-12)
    assert found.decoder == pytest.approx(float(expected.decoder.mean()), rel=1e-12)
    # without the decoder, the rest is the same
    without = hierarchy(oracle, x, latents, bins=None, seed=3)
    assert without.decoder is None and without.total == pytest.approx(found.total - found.decoder, rel=1e-9)


@pytest.mark.parametrize("bins", [17, 256])
def test_the_bound_of_quantized_gaussian_data_is_near_their_entropy(bins: int) -> None:
    width = 2.0 / (bins - 1)
    values = torch.linspace(-1, 1, bins, dtype=torch.float64)
    edges = torch.cat([torch.tensor([-math.inf]), values[:-1] + width / 2, torch.tensor([math.inf])])
    p = torch.from_numpy(stats.norm.cdf(edges.numpy(), scale=0.35)).diff()
    entropy = -float((p * p.log2()).sum())
    u = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = values[torch.searchsorted(p.cumsum(0), u).clamp(max=bins - 1)].reshape(2000, 1, 2, 2)
    assert grey_values(x.float().numpy()) == bins
    oracle, schedule = gaussian(0.0, 0.35, (1, 2, 2)), schedules.ContinuousCosine()
    levels = latent_levels(schedule, 64, bins)
    found = hierarchy(oracle, x, levels, bins=bins, variance=gaussian_variance(oracle))
    # a Gaussian denoiser does not round to the values, which costs the most in the last steps
    assert entropy - 0.05 < found.total < entropy + 0.6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("bins", [None, 17, 256])
def test_the_grid_of_latents(schedule: schedules.Schedule, bins: int | None) -> None:
    levels = latent_levels(schedule, 12, bins)
    t, log_snr = torch.as_tensor(levels.t), torch.as_tensor(levels.log_snr)
    assert float(t[0]) == 1.0 and bool((t.diff() < 0.0).all()) and float(levels.sigma[-1]) > 0.0
    # even but for the step from t = 1, where that is far from all data
    gaps = log_snr.diff()[1:]
    assert float(gaps.max() - gaps.min()) < 1e-6
    assert float(levels.noise_to_signal[-1]) >= 0.5 / ((bins or 10**9) - 1) - 1e-9


def test_bad_input() -> None:
    data, schedule = coloured(), schedules.linear(10)
    images = normal(3, 1, 2, 3)
    clean, rising = schedule(torch.tensor([0.5, 0.0]).double()), schedule(torch.tensor([0.2, 0.5]).double())
    with pytest.raises(InputError, match="leave t = 0 out"):
        gaussian_hierarchy(data, clean)
    with pytest.raises(InputError, match="fall strictly"):
        gaussian_hierarchy(data, rising)
    with pytest.raises(InputError, match="A latent has noise"):
        hierarchy(data, images, clean, bins=None)
    with pytest.raises(InputError, match="fall strictly"):
        hierarchy(data, images, rising, bins=None)
    with pytest.raises(InputError, match="grid of 256 values"):
        hierarchy(data, images, latent_levels(schedule, 3, None), bins=256)
