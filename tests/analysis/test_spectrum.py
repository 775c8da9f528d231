"""Spectra against Parseval, white noise and planted waves."""

from __future__ import annotations

import math

import pytest
import torch

from sfumato.analysis.frequency import drowning_time, power, rings, spectrum
from sfumato.diffusion import schedule as schedules
from sfumato.errors import InputError

SHAPES = [(1, 8, 8), (3, 6, 10), (2, 15, 4), (2, 33), (1, 1, 1), (1, 5)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_parseval(shape: tuple[int, ...]) -> None:
    x = normal(3, *shape)
    where = rings(shape[1:])
    assert int(where.coefficients.sum()) == math.prod(shape[1:]) and int(where.coefficients.min()) > 0
    energy = (power(x) * where.coefficients).sum(1)
    assert energy.tolist() == pytest.approx((x.square().flatten(1).sum(1) / shape[0]).tolist(), rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 12, 20), (2, 64)])
def test_white_noise_is_flat(shape: tuple[int, ...]) -> None:
    x = normal(2000, *shape)
    found, count = power(x), rings(shape[1:]).coefficients
    error = found.std(0) / math.sqrt(len(x))
    assert bool(((found.mean(0) - 1.0).abs() < 4.5 * error).all())
    # the power of a ring of n coefficients in conjugate pairs varies by at most 2 / (n channels)
    assert bool((found.var(0) < 1.2 * 2.0 / (shape[0] * count)).all())


def test_a_wave_is_in_its_ring() -> None:
    """cos(2 pi k x / L) has half its energy at each of +k and -k."""
    position = torch.arange(40, dtype=torch.float64)
    wave = (2.0 * math.pi * 5 * position / 40).cos().expand(10, 40)[None, None]
    where, found = rings((10, 40)), power(wave)[0]
    ring = int(found.argmax())
    assert float(where.frequency[ring]) == pytest.approx(5 / 40, abs=0.5 / 40)
    assert float(found[ring] * where.coefficients[ring]) == pytest.approx(10 * 40 / 2)
    assert float((found * where.coefficients).sum() - found[ring] * where.coefficients[ring]) == pytest.approx(
        0.0, abs=1e-9
    )


@pytest.mark.parametrize("schedule", [schedules.linear(1000), schedules.Karras(10.0)])
def test_the_analytic_spectrum_is_the_measured_one(schedule: schedules.Schedule) -> None:
    """Within its standard error, so that the scores have mean square one over rings and times."""
    smooth = torch.nn.functional.avg_pool2d(normal(400, 2, 14, 18), 3, 1)
    view = spectrum(smooth, schedule, torch.tensor([0.05, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64))
    score = (view.measured - view.analytic) / view.error
    assert float(score.abs().max()) < 4.5
    assert float(score.square().mean()) == pytest.approx(1.0, abs=0.5)


def test_the_data_are_measured_exactly_at_their_own_time() -> None:
    x = normal(4, 1, 6, 6)
    view = spectrum(x, schedules.linear(100), torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(view.measured[0], power(x).mean(0)) and torch.equal(view.analytic, view.measured)


def test_drowning_is_where_signal_and_noise_are_equal() -> None:
    schedule = schedules.ContinuousCosine()
    data = torch.tensor([50.0, 10.0, 1.0, 0.1], dtype=torch.float64)
    for wanted, t in zip(data, drowning_time(data, schedule), strict=True):
        level = schedule(float(t))
        assert level.alpha**2 * float(wanted) == pytest.approx(level.sigma**2, rel=1e-9)


def test_what_never_and_what_always_drowns() -> None:
    times = drowning_time(torch.tensor([1e30, 0.0], dtype=torch.float64), schedules.linear(1000))
    assert math.isnan(float(times[0])) and float(times[1]) == 0.0


def test_constant_and_single_pixel_images() -> None:
    schedule, times = schedules.linear(100), torch.tensor([0.2, 1.0], dtype=torch.float64)
    flat = spectrum(torch.full((3, 1, 8, 8), 0.5), schedule, times)
    assert float(flat.data[0]) == pytest.approx(0.25 * 64) and float(flat.data[1:].max()) < 1e-20
    pixel = spectrum(torch.full((3, 1, 1, 1), 0.5), schedule, times)
    assert pixel.frequency.tolist() == [0.0] and bool(pixel.measured.isfinite().all())


def test_bad_input() -> None:
    times = torch.ones(1, dtype=torch.float64)
    with pytest.raises(InputError, match="vectors"):
        spectrum(torch.zeros(3, 5), schedules.linear(10), times)
    with pytest.raises(InputError, match="at least 2"):
        spectrum(torch.zeros(1, 1, 4, 4), schedules.linear(10), times)
