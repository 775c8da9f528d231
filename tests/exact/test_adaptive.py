"""The adaptive step against exact flows."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from tests.exact.test_solvers import Line
from tests.oracles import Counted

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoiser, embed_thousand
from sfumato.diffusion.oracle import Covariances, GaussianOracle, MixtureOracle
from sfumato.diffusion.parameterization import v
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.adaptive import adaptive
from sfumato.sampling.editing import invert
from sfumato.sampling.sample import initial, sample

SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.ContinuousLinear(),
    "table": schedules.linear(1000),
    "zero": schedules.zero_terminal_snr(schedules.linear(1000)),
    "edm": schedules.Karras(),
    "flow": schedules.RectifiedFlow(),
}
LINE = MixtureOracle(
    torch.tensor(Line.means)[:, None],
    Covariances.isotropic(torch.tensor(Line.stds, dtype=torch.float64).square(), 1),
    torch.tensor(Line.weights),
)


def last(frames: Any) -> torch.Tensor:
    return list(frames)[-1].x


def refuse(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("noise was drawn")


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_error_follows_the_tolerance(name: str) -> None:
    schedule = SCHEDULES[name]
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None] * schedule(1.0).sigma
    exact = Line().flow(x, schedule(1.0), schedule(0.0))
    errors, counts = [], []
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        oracle = Counted(LINE)
        step = partial(adaptive, schedule=schedule, rtol=tolerance, atol=tolerance, sigma_min=1e-4)
        found = last(sample(oracle, x, grids.uniform(schedule, 1), step, noise=refuse))
        errors.append(float((found - exact).abs().max()))
        counts.append(len(oracle.calls))
        assert errors[-1] < 10.0 * tolerance
    assert counts == sorted(counts) and counts[0] < 25
    # a third-order pair: each of the three factors of 10 costs 10^(1/3) as many evaluations
    assert counts[-1] / counts[0] < 2.0 * 10.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_grid_only_limits_the_steps(name: str) -> None:
    schedule = SCHEDULES[name]
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None] * schedule(1.0).sigma
    exact = Line().flow(x, schedule(1.0), schedule(0.0))
    step = partial(adaptive, schedule=schedule, rtol=1e-5, atol=1e-5, sigma_min=1e-4)
    frames = list(sample(LINE, x, grids.uniform(schedule, 6), step))
    assert len(frames) == 6
    assert (frames[-1].x - exact).abs().max() < 1e-4
    halfway = frames[2]
    assert (halfway.x - Line().flow(x, schedule(1.0), halfway.level)).abs().max() < 1e-4


def test_an_image_does_not_depend_on_its_batch() -> None:
    schedule = schedules.Karras()
    oracle = GaussianOracle(torch.zeros(2, 3), torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.01, 2.0, 0.3])))
    levels = grids.uniform(schedule, 1)

    def draw(first: int, count: int) -> torch.Tensor:
        x = initial(levels, (2, 3), 1, first=first, count=count).double()
        return last(sample(oracle, x, levels, partial(adaptive, schedule=schedule)))

    whole = draw(0, 6)
    for first, end in itertools.pairwise((0, 1, 4, 6)):
        assert (whole[first:end] - draw(first, end - first)).abs().max() < 1e-12


def test_a_network_that_predicts_v_is_followed_from_pure_noise() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            assert time.shape == (len(x),)
            return torch.zeros_like(x)

    schedule = schedules.ContinuousCosine()
    x = torch.ones(2, 3, 1)
    found = last(
        sample(
            Denoiser(Nothing(), schedule, v, embed_thousand),
            x,
            grids.uniform(schedule, 1),
            partial(adaptive, schedule=schedule),
        )
    )
    # v = 0 is the flow of standard normal data, which stay where they are
    assert found.dtype == torch.float32 and (found - x).abs().max() < 1e-2


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_inversion_follows_the_flow_to_the_tolerance(name: str, steps: int) -> None:
    schedule = SCHEDULES[name]
    x0 = torch.linspace(-1.3, 1.8, 7, dtype=torch.float64)[:, None]
    exact = Line().flow(x0, schedule(0.0), schedule(1.0))
    for tolerance in (1e-2, 1e-4):
        step = partial(adaptive, schedule=schedule, rtol=tolerance, atol=tolerance, sigma_min=1e-4)
        found = invert(LINE, x0, grids.uniform(schedule, steps), step, up=step)
        scale = float(schedule(1.0).sigma)
        assert (found.noise - exact).abs().max() < 20.0 * tolerance * scale
        assert found.error.max() < 20.0 * tolerance


@pytest.mark.parametrize(
    "options", [{"atol": 0.0}, {"rtol": -1.0}, {"scale": 0.0}, {"sigma_min": 0.0}, {"max_steps": 0}]
)
def test_bad_options(options: dict[str, float]) -> None:
    schedule = schedules.Karras()
    with pytest.raises(InputError, match="adaptive step needs"):
        last(
            sample(LINE, torch.zeros(2, 1), grids.uniform(schedule, 1), partial(adaptive, schedule=schedule, **options))
        )


def test_too_few_steps_are_told() -> None:
    schedule = schedules.Karras()
    with pytest.raises(InputError, match="did not reach its end in 3 steps"):
        last(
            sample(
                LINE,
                torch.ones(2, 1),
                grids.uniform(schedule, 1),
                partial(adaptive, schedule=schedule, rtol=1e-6, atol=1e-6, max_steps=3),
            )
        )
