"""The default sampler: one evaluation a step, on every schedule, near to flows that are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, GaussianOracle, MixtureOracle
from sfumato.diffusion.schedule import (
    ContinuousCosine,
    Karras,
    RectifiedFlow,
    Schedule,
    cosine,
    linear,
    zero_terminal_snr,
)
from sfumato.errors import InputError
from sfumato.sampling.defaults import CHOICES, best, choice
from sfumato.sampling.grids import karras
from sfumato.sampling.published import dpm_solver_pp_2m
from sfumato.sampling.sample import Noise, Step, check_grid, initial, sample

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": linear,
    "short table": lambda: linear(50),
    "cosine": cosine,
    "continuous cosine": ContinuousCosine,
    "zero terminal SNR": lambda: zero_terminal_snr(linear()),
    "edm": Karras,
    "flow": RectifiedFlow,
}
NUMBERS = [1, 2, 3, 5, 6, 7, 8, 9, 10, 12, 13, 15, 20, 29, 30, 50, 100, 250]


def no_noise(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a deterministic step drew noise")


def end(
    oracle: MixtureOracle | GaussianOracle, x: torch.Tensor, levels: Level, step: Step, noise: Noise = no_noise
) -> torch.Tensor:
    *_, last = sample(oracle, x, levels, step, noise=noise)
    return last.x


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_one_evaluation_a_step_of_a_grid_to_the_data(schedule: Callable[[], Schedule]) -> None:
    noise = schedule()
    for nfe in NUMBERS:
        levels, step = best(noise, nfe, 0.5)
        check_grid(levels)
        assert len(levels) == nfe + 1
        assert next(iter(levels)).t == 1.0
        seen: list[Level] = []

        def denoiser(x: torch.Tensor, level: Level, seen: list[Level] = seen) -> Prediction:
            seen.append(level)
            return Prediction.of_x0(x, 0.1 * torch.ones_like(x), level)

        *_, last = sample(denoiser, torch.ones(1, 2, dtype=torch.float64), levels, step, noise=no_noise)
        assert [level.t for level in seen] == [level.t for level in levels][:-1]
        # a constant estimate of the data is where the flow ends
        assert (last.x - 0.1).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_flow_of_a_gaussian_of_many_scales(schedule: Callable[[], Schedule]) -> None:
    """Against the flow in closed form, with directions that are much wider and narrower than the scale."""
    noise = schedule()
    widths = torch.tensor([9.0, 1.0, 0.3, 0.05], dtype=torch.float64)
    oracle = GaussianOracle(torch.tensor([0.3, -1.0, 0.0, 0.5]).double(), widths.square().diag())
    first = next(iter(best(noise, 5)[0]))
    x = initial(first, (4,), 3, count=64).double()
    if math.isinf(first.noise_to_signal):
        first = Level(1.0, 1e-9, 1.0)
    exact = oracle.flow(x, first, Level(0.0, 1.0, 0.0))
    found = {
        nfe: (end(oracle, x, *best(noise, nfe, 1.0, 0.002)) - exact).square().mean().sqrt().item()
        for nfe in NUMBERS[3:]
    }
    # 5 evaluations for five orders of magnitude of noise, and a direction 9 times as wide as the scale
    for nfe, most in ((5, 0.4), (10, 0.2), (20, 0.03), (50, 2e-3), (100, 2e-4), (250, 1e-5)):
        assert found[nfe] < most, (nfe, found)


@pytest.mark.parametrize("schedule", [linear, Karras], ids=["linear", "edm"])
@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0])
def test_units_do_not_matter(schedule: Callable[[], Schedule], scale: float) -> None:
    """Three clusters of any size: much nearer to the exact end than DPM-Solver++(2M), and alike in units of it."""
    noise = schedule()
    means = scale * torch.tensor([[1.0, 0.5], [-1.0, 0.8], [0.0, -1.3]], dtype=torch.float64)
    oracle = MixtureOracle(means, Covariances.isotropic(torch.full((3,), (0.2 * scale) ** 2), 2))
    x = initial(noise(1.0), (2,), 5, count=128).double()
    exact = end(oracle, x, *best(noise, 400, scale, 1e-3 * scale))

    def error(levels: Level, step: Step) -> float:
        return float((end(oracle, x, levels, step) - exact).square().mean().sqrt()) / scale

    for nfe, most in ((10, 0.05), (20, 0.01), (50, 5e-4)):
        ours = error(*best(noise, nfe, scale, 1e-3 * scale))
        assert ours < most
        assert ours < 0.5 * error(karras(noise, nfe, sigma_min=0.01 * scale), dpm_solver_pp_2m)


def test_every_number_has_one_row() -> None:
    assert [choice(row.fewest) for row in CHOICES] == list(CHOICES)
    assert choice(6) == CHOICES[0] and choice(10_000) == CHOICES[-1]


def test_a_short_table_keeps_to_its_levels() -> None:
    schedule = linear(50)
    least = schedule(1.0 / 50).noise_to_signal
    for nfe in NUMBERS:
        assert list(best(schedule, nfe)[0])[-2].noise_to_signal >= 0.5 * least * (1.0 - 1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "at least 1 evaluation"),
        ((5, 0.0), "positive"),
        ((5, math.inf), "positive"),
        ((5, 1.0, 1e9), "<"),
    ],
)
def test_bad_defaults(arguments: tuple[float, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        best(linear(), *arguments)  # type: ignore[arg-type]
