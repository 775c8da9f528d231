"""Grids as their papers define them, on tables and in continuous time; lists, mixtures, and what cannot be one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import (
    ContinuousLinear,
    Karras,
    RectifiedFlow,
    Schedule,
    cosine,
    linear,
)
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.sample import check_grid

STEPS = [1, 2, 3, 7, 10, 50, 333, 999, 1000]


def of_table(levels: Level, table: int = 1000) -> list[int]:
    steps = torch.as_tensor(levels.t) * table
    assert (steps - steps.round()).abs().max() < 1e-9
    return [int(step) for step in steps.round()]


@pytest.mark.parametrize("steps", STEPS)
def test_trailing_as_published(steps: int) -> None:
    """Lin et al. 2024, table 2: round(flip(arange(T, 0, -T / S)))."""
    ours = of_table(grids.trailing(linear(1000), steps))
    published = np.round(np.arange(1000, 0, -1000 / steps)).astype(int).tolist()
    assert ours == [*published[:steps], 0]
    # in continuous time the table is one of 1000 steps
    assert of_table(grids.trailing(Karras(), steps)) == ours


@pytest.mark.parametrize("steps", STEPS)
def test_leading_as_published_but_for_its_start(steps: int) -> None:
    ours = of_table(grids.leading(linear(1000), steps))
    published = (1 + np.arange(0, steps) * (1000 // steps))[::-1].tolist()
    assert ours == [1000, *published[1:], 0]


@pytest.mark.parametrize("steps", STEPS)
def test_quadratic_as_published_without_repetitions(steps: int) -> None:
    ours = of_table(grids.quadratic(linear(1000), steps))
    published = [math.floor(1000 * i * i / steps**2 + 1e-9) for i in range(steps, 0, -1)]
    assert ours[0] == 1000 and len(set(ours)) == steps + 1
    assert [step for step, i in zip(ours, range(steps, 0, -1), strict=False) if 1000 * i >= steps**2] == [
        step for step, i in zip(published, range(steps, 0, -1), strict=True) if 1000 * i >= steps**2
    ]


def test_log_snr_is_uniform_in_log_snr() -> None:
    for schedule in (linear(1000), Karras(), cosine(1000)):
        levels = list(grids.log_snr(schedule, 9, sigma_min=0.01))
        assert levels[0].t == pytest.approx(1.0) and levels[-1].sigma == 0.0
        widths = [b.log_snr - a.log_snr for a, b in itertools.pairwise(levels[:-1])]
        whole = 2.0 * math.log(schedule(1.0).noise_to_signal / 0.01)
        assert widths == pytest.approx([whole / 8] * 8, rel=1e-8)


@pytest.mark.parametrize("skew", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("schedule", [linear(1000), Karras(), RectifiedFlow()], ids=["linear", "edm", "flow"])
def test_logistic_levels_enclose_equal_parts_of_their_density(schedule: Schedule, skew: float) -> None:
    """By numerical integration of the density of Dagum's law in log sigma, written out."""
    centre, width = 0.4, 1.7

    def density(u: float) -> float:
        z = math.exp(-(u - math.log(centre)) / width)
        return skew / width * z * (1.0 + z) ** (-skew - 1.0)

    levels = list(grids.logistic(schedule, 6, centre, width, skew))
    assert levels[0].t == 1.0 and levels[0].sigma == schedule(1.0).sigma and levels[-1].sigma == 0.0
    edges = [math.log(level.noise_to_signal) if level.sigma > 0.0 else -60.0 for level in levels]
    edges[0] = min(edges[0], 60.0)
    parts = [quad(density, low, high, epsabs=1e-12)[0] for high, low in itertools.pairwise(edges)]
    assert parts == pytest.approx([parts[1]] * 6, rel=1e-6)


def test_logistic_goes_to_zero_as_karras_with_its_rho() -> None:
    r"""Far below the centre, sigma^(k / w) is uniform."""
    levels = list(grids.logistic(Karras(), 100_000, 0.5, 2.0, 0.8))[-6:-1]
    roots = [level.sigma ** (0.8 / 2.0) for level in levels]
    assert [root / roots[-1] for root in roots] == pytest.approx([5, 4, 3, 2, 1], rel=1e-3)


def test_one_step_grids() -> None:
    for schedule in (linear(1000), RectifiedFlow()):
        for levels in (
            grids.logistic(schedule, 1, 0.5, 2.0),
            grids.trailing(schedule, 1),
            grids.leading(schedule, 1),
            grids.quadratic(schedule, 1),
        ):
            assert torch.as_tensor(levels.t).tolist() == [1.0, 0.0]


def test_lists() -> None:
    for schedule in (linear(1000), ContinuousLinear(), Karras()):
        wanted = [70.0, 3.0, 0.25, 0.01]
        levels = grids.at_ratios(schedule, wanted)
        check_grid(levels)
        found = [level.noise_to_signal for level in levels]
        assert found == pytest.approx([*wanted, 0.0], rel=1e-6)
        again = grids.at_ratios(schedule, [*wanted, 0.0])
        assert torch.equal(torch.as_tensor(again.t), torch.as_tensor(levels.t))
        by_log_snr = grids.at_log_snrs(schedule, [-2.0 * math.log(value) for value in wanted])
        assert torch.as_tensor(by_log_snr.t).tolist() == torch.as_tensor(levels.t).tolist()
        assert torch.as_tensor(grids.at_times(schedule, [1.0, 0.3]).t).tolist() == [1.0, 0.3, 0.0]
    start = next(iter(grids.at_log_snrs(RectifiedFlow(), [-math.inf, 0.0])))
    assert (start.t, start.alpha, start.sigma) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda s: grids.trailing(s, 1001), "can't be taken from a table of 1000"),
        (lambda s: grids.leading(s, 1001), "can't be taken"),
        (lambda s: grids.quadratic(s, 0), "at least 1 step"),
        (lambda s: grids.karras(s, 5, rho=0.0), "rho"),
        (lambda s: grids.karras(s, 5, rho=-7.0), "rho"),
        (lambda s: grids.log_snr(s, 5, sigma_min=0.0), "sigma_min"),
        (lambda s: grids.log_snr(s, 5, sigma_max=1e9), "can't start"),
        (lambda s: grids.logistic(s, 5, 0.0, 1.0), "positive centre"),
        (lambda s: grids.logistic(s, 5, 1.0, math.inf), "positive centre"),
        (lambda s: grids.logistic(s, 0, 1.0, 1.0), "at least 1 step"),
        (lambda s: grids.at_times(s, []), "list of times"),
        (lambda s: grids.at_times(s, [1.0, 0.5, 0.5]), "number 3 repeats"),
        (lambda s: grids.at_times(s, [0.5, 1.0]), "number 2 repeats or goes back"),
        (lambda s: grids.at_times(s, [1.5, 0.5]), "Time runs from 0"),
        (lambda s: grids.at_ratios(s, [1.0, -1.0]), "at least 0"),
        (lambda s: grids.at_ratios(s, [1e9, 1.0]), "can't start at"),
        (lambda s: grids.at_log_snrs(s, [1.0, math.nan]), "each a number"),
    ],
)
def test_what_cannot_be_a_grid(build: Callable[[Schedule], Level], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(linear(1000))
