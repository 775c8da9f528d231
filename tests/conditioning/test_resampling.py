"""The pseudo-inverse of scaling down, and estimates that are consistent with a low resolution."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.conditioning import Label, LowResolution
from sfumato.conditioning.low_resolution import scale_down
from sfumato.conditioning.resampling import consistent, down_matrix, in_range, least_up, up_matrix
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling.guidance import Consistent

LEVEL = Level(0.5, 0.8, 0.6)


@pytest.mark.parametrize("how", ["bicubic", "area"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_scaling_down_is_its_matrices(factor: int, how: Any) -> None:
    for rows, columns in ((7, 5), (1, 6), (6, 1), (1, 1), (70, 3)):
        x = torch.randn(2, 3, rows * factor, columns * factor, dtype=torch.float64)
        down = down_matrix(rows * factor, factor, how) @ x @ down_matrix(columns * factor, factor, how).T
        assert torch.allclose(scale_down(x, factor, how), down, atol=1e-12)


@pytest.mark.parametrize("how", ["bicubic", "area"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_up_is_the_pseudo_inverse(factor: int, how: Any) -> None:
    """Against NumPy's, by singular values; and it gives back every low resolution."""
    for low in (1, 2, 9, 40):
        expected = np.linalg.pinv(down_matrix(low * factor, factor, how).numpy())
        assert np.abs(up_matrix(low * factor, factor, how).numpy() - expected).max() < 1e-5
    z = torch.randn(1, 3, 40, 9)
    assert (scale_down(least_up(z, factor, how), factor, how) - z).abs().max() < 1e-5


def oracle(estimate: Tensor) -> Any:
    return lambda x, level, **cond: Prediction.of_x0(x, estimate, level)


@pytest.mark.parametrize("how", ["bicubic", "area"])
def test_an_estimate_becomes_consistent_by_the_least_change(how: Any) -> None:
    torch.manual_seed(0)
    estimate, low, x = torch.randn(2, 3, 24, 16), torch.randn(2, 3, 6, 4), torch.randn(2, 3, 24, 16)
    conditions = {"low": LowResolution(down=how)}
    kept = consistent(oracle(estimate), conditions)(x, LEVEL, low=low).x0
    assert (scale_down(kept, 4, how) - low).abs().max() < 1e-5
    # the least change is orthogonal to all that scales down to nothing
    free = torch.randn(2, 3, 24, 16)
    free -= least_up(scale_down(free, 4, how), 4, how)
    assert abs(float(((kept - estimate) * free).sum())) < 1e-3 * float(free.norm() * (kept - estimate).norm())
    # and what is consistent stays as it is, in noise too
    again = consistent(oracle(kept), conditions)(x, LEVEL, low=low)
    assert (again.x0 - kept).abs().max() < 1e-5
    assert torch.allclose(LEVEL.alpha * again.x0 + LEVEL.sigma * again.eps, x, atol=1e-5)


def test_pictures_without_a_low_resolution_and_larger_ones() -> None:
    torch.manual_seed(0)
    estimate, low, x = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 4, 4), torch.randn(2, 1, 16, 16)
    low[1] = torch.nan
    conditions: Any = {"low": LowResolution(), "label": Label(names=("a",))}
    found = consistent(oracle(estimate), conditions)(x, LEVEL, low=low).x0
    assert torch.allclose(found[1], estimate[1]) and not torch.allclose(found[0], estimate[0])
    none = consistent(oracle(estimate), conditions)
    assert torch.allclose(none(x, LEVEL).x0, estimate)
    assert torch.allclose(none(x, LEVEL, low=torch.full((2, 1, 1, 1), torch.nan)).x0, estimate)
    corner = consistent(oracle(estimate), conditions, torch.zeros(1, 1, 3, 2))(x, LEVEL, low=low).x0
    assert scale_down(corner[..., :12, :8], 4).abs().max() < 1e-5
    assert torch.allclose(corner[..., 12:, :], estimate[..., 12:, :])


def test_what_cannot_be_kept_consistent_is_refused_or_left_alone() -> None:
    x, plain = torch.zeros(1, 1, 8, 8), oracle(torch.zeros(1, 1, 8, 8))
    noisy = {"low": LowResolution(noise=0.5)}
    with pytest.raises(InputError, match="low_level is above 0"):
        consistent(plain, noisy)(x, LEVEL, low=torch.zeros(1, 1, 2, 2), low_level=torch.tensor([0.1]))
    with pytest.raises(InputError, match="4 times smaller"):
        consistent(plain, noisy)(x, LEVEL, low=torch.zeros(1, 1, 4, 4), low_level=torch.tensor([0.0]))
    for conditions in ({}, {"low": LowResolution(column="small")}, {"label": Label(names=("a",))}):
        assert consistent(plain, conditions, require=False) is plain
        with pytest.raises(InputError, match=r"guidance\.consistent"):
            consistent(plain, conditions)
    assert consistent(plain, {"low": LowResolution(noise=0.5, level=0.2)}, require=False) is plain


def test_any_linear_map_and_its_pseudo_inverse_do() -> None:
    x = torch.randn(1, 1, 4, 4)
    halves = partial(torch.nn.functional.avg_pool2d, kernel_size=2)
    guided = Consistent(
        oracle(x), torch.ones(1, 1, 2, 2), 2, halves, lambda z: z.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    assert torch.allclose(halves(guided(x, LEVEL).x0), torch.ones(1, 1, 2, 2), atol=1e-6)


def test_white_and_black_stay_consistent_after_clipping() -> None:
    torch.manual_seed(0)
    low = scale_down(torch.rand(1, 3, 48, 48).mul(2.6).sub(1.3).clamp(-1, 1), 4)
    low[..., :6, :6], low[..., 6:, 6:] = 1.0, -1.0
    start = torch.nn.functional.interpolate(low, scale_factor=4, mode="bicubic") + 0.1 * torch.randn(1, 3, 48, 48)
    kept = in_range(start, low, 4)
    error = (scale_down(kept, 4) - low).square().mean()
    clipped = (start + least_up(low - scale_down(start, 4), 4)).clamp(-1, 1)
    assert kept.abs().max() <= 1.0 and error < 0.1 * (scale_down(clipped, 4) - low).square().mean()
