"""Regeneration and stitching against Gaussian data, for which both are known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from sfumato.analysis.frequency import (
    at_any_level,
    band_correlation,
    band_masks,
    content_detail,
    gaussian_correlation,
    stitched,
    stitching,
    translated,
)
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.sample import initial, sample
from sfumato.sampling.steps import ancestral, ddim, heun
from tests.oracles import Counted, gaussian


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("space", [(8, 8), (6, 10), (16,), (28, 28)])
def test_bands_divide_the_frequencies(space: tuple[int, ...]) -> None:
    masks = band_masks(space)
    assert torch.equal(masks.sum(0), torch.ones(space, dtype=torch.int64))
    assert bool(masks.flatten(1).any(1).all())


def test_correlation_of_equal_opposite_and_unrelated_images() -> None:
    one, two = normal(500, 2, 8, 8), normal(500, 2, 8, 8, seed=1)
    assert band_correlation(one, 3.0 * one + 1.0).tolist() == pytest.approx([1.0] * 3)
    assert band_correlation(one, -one).tolist() == pytest.approx([-1.0] * 3)
    assert band_correlation(one, two).abs().max() < 0.03
    # noise in one band touches that band alone: equal parts correlate by one over the root of two
    fine = band_masks((8, 8))[2]
    noise = torch.fft.ifft2(torch.fft.fft2(two) * fine).real
    assert band_correlation(one, one + noise).tolist() == pytest.approx([1.0, 1.0, math.sqrt(0.5)], abs=0.02)


def test_a_band_that_is_empty_or_constant_has_no_correlation() -> None:
    flat = torch.ones(3, 1, 8, 8)
    assert bool(band_correlation(flat, flat).isnan().all())
    found = band_correlation(normal(5, 1, 3, 3), normal(5, 1, 3, 3, seed=1))
    assert bool(found[0].isfinite()) and bool(found[1].isnan())


@pytest.mark.parametrize(("step", "power"), [(heun, 1), (ancestral, 2)])
def test_white_gaussian_data_survive_as_the_closed_form_says(step: object, power: int) -> None:
    r"""The flow keeps a correlation of alpha s / sqrt(alpha^2 s^2 + sigma^2), a posterior sample its square."""
    oracle, schedule = gaussian(0.3, 0.7, (1, 8, 8)), schedules.ContinuousCosine()
    images = 0.3 + 0.7 * normal(500, 1, 8, 8)
    levels = grids.uniform(schedule, 200)
    view = content_detail(oracle, images, levels, step, starts=[60, 120, 180])  # type: ignore[arg-type]
    for t, found in zip(view.times.tolist(), view.correlation, strict=True):
        level = schedule(t)
        rho = level.alpha * 0.7 / math.hypot(level.alpha * 0.7, level.sigma)
        # a correlation of n pairs is known to (1 - rho^2) / sqrt(n); 0.01 is for the finite steps
        error = (1.0 - rho ** (2 * power)) / (500 * band_masks((8, 8)).sum((1, 2))).double().sqrt()
        assert bool(((found - rho**power).abs() < 4.0 * error + 0.01).all())
    assert view.regenerated.shape == (3, 500, 1, 8, 8)


def test_the_closed_form_of_coloured_data() -> None:
    """Against samples of a Gaussian coefficient paired with what the flow makes of it."""
    spectrum = torch.tensor([4.0, 1.0, 0.2, 0.2, 1.0], dtype=torch.float64)
    masks = torch.tensor([[True, True, False, False, True], [False, False, True, True, False]])
    level = schedules.linear(1000)(0.3)
    one, noise = normal(400_000, 5) * spectrum.sqrt(), normal(400_000, 5, seed=1)
    x = level.alpha * one + level.sigma * noise
    two = x * (spectrum / (level.alpha**2 * spectrum + level.sigma**2)).sqrt()
    found = gaussian_correlation(spectrum, masks, level)
    for mask, rho in zip(masks, found, strict=True):
        a, b = one[:, mask], two[:, mask]
        assert float(rho) == pytest.approx(
            float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()), abs=3e-3
        )


def test_stitched_denoisers_take_turns() -> None:
    one, two = (Counted(gaussian(mean, 0.1, (1, 4, 4))) for mean in (-1.0, 1.0))
    both = stitched(one, two, 0.5)
    levels, x = grids.uniform(schedules.ContinuousCosine(), 50), torch.zeros(3, 1, 4, 4)
    list(sample(both, x, levels, ddim))
    assert len(one.calls) == 25 and len(two.calls) == 25
    assert min(one.calls) > max(two.calls)


def test_stitching_at_the_ends_is_one_denoiser_alone() -> None:
    one, two = gaussian(-0.5, 0.4, (1, 8, 8)), gaussian(0.5, 0.7, (1, 8, 8))
    levels = grids.uniform(schedules.linear(100), 20)
    x = initial(levels, (1, 8, 8), 0, count=6).double()
    view = stitching(one, two, x, levels, partial(ddim, eta=0.5), [0.0, 0.5, 1.0])
    assert view.to_content[0].tolist() == pytest.approx([1.0] * 3)
    assert view.to_detail[2].tolist() == pytest.approx([1.0] * 3)
    alone = list(sample(two, x, levels, partial(ddim, eta=0.5)))[-1].x
    assert torch.equal(view.images[2], alone)


def test_levels_on_both_sides_of_the_switch_in_one_batch() -> None:
    class Means:
        def __init__(self, value: float) -> None:
            self.value = value

        def __call__(self, x: torch.Tensor, level: Level, **cond: torch.Tensor) -> Prediction:
            return Prediction.of_x0(x, self.value + cond["shift"][:, None].to(x).expand_as(x), level)

    level = schedules.linear(100)(torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64))
    found = stitched(Means(1.0), Means(2.0), 0.5)(torch.zeros(3, 2), level, shift=torch.tensor([10, 20, 30]))
    assert found.x0[:, 0].tolist() == pytest.approx([12.0, 21.0, 32.0])


SCHEDULES = [schedules.linear(1000), schedules.ContinuousCosine(), schedules.Karras(), schedules.RectifiedFlow()]


@pytest.mark.parametrize("own", SCHEDULES)
@pytest.mark.parametrize("other", SCHEDULES)
def test_a_translated_denoiser_is_the_same_denoiser(own: schedules.Schedule, other: schedules.Schedule) -> None:
    """The oracle is exact at the levels of any schedule, so the change of levels must change nothing."""
    oracle, x = gaussian(0.3, 0.7, (2, 3)), normal(4, 2, 3)
    for log_snr in (6.0, 0.5, -4.0):
        level = other.at(log_snr)
        found, expected = at_any_level(oracle, own)(x, level), oracle(x, level)
        assert torch.allclose(found.x0, expected.x0, rtol=1e-9, atol=1e-9)
        assert torch.allclose(found.eps, expected.eps, rtol=1e-9, atol=1e-9)
    # one level per image
    level = other.at(torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64))
    assert torch.allclose(at_any_level(oracle, own)(x, level).x0, oracle(x, level).x0, rtol=1e-9, atol=1e-9)


def test_a_translated_denoiser_is_called_at_the_times_of_its_schedule() -> None:
    calls: list[Level] = []

    class Spy:
        def __call__(self, x: torch.Tensor, level: Level, **cond: torch.Tensor) -> Prediction:
            calls.append(level)
            return Prediction.of_x0(x, x, level)

    flow, table = schedules.RectifiedFlow(), schedules.linear(1000)
    denoiser = translated(Spy(), flow, table)
    level = table(0.4)
    denoiser(torch.zeros(1, 2), level)
    assert calls[0].alpha + calls[0].sigma == pytest.approx(1.0, abs=1e-12)
    assert calls[0].alpha / calls[0].sigma == pytest.approx(level.alpha / level.sigma, rel=1e-9)


def test_denoisers_of_equal_schedules_are_not_translated() -> None:
    oracle = gaussian()
    assert translated(oracle, schedules.linear(1000), schedules.linear(1000)) is oracle
    assert translated(oracle, schedules.linear(500), schedules.linear(1000)) is not oracle
    # the flow starts at pure noise, which the table never reaches
    with pytest.raises(InputError, match="in the other order"):
        translated(oracle, schedules.linear(1000), schedules.RectifiedFlow())
    assert translated(oracle, schedules.RectifiedFlow(), schedules.linear(1000)) is not oracle


def test_bad_input() -> None:
    oracle, levels = gaussian(shape=(1, 4, 4)), grids.uniform(schedules.linear(10), 5)
    with pytest.raises(InputError, match="at least 2 images"):
        content_detail(oracle, torch.zeros(1, 1, 4, 4), levels, ddim, starts=[0])
    with pytest.raises(InputError, match=r"levels 0 \.\.\. 4"):
        content_detail(oracle, normal(2, 1, 4, 4), levels, ddim, starts=[5])
    with pytest.raises(InputError, match="vectors"):
        content_detail(oracle, normal(2, 4), levels, ddim, starts=[0])
