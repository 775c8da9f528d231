"""Editing against conditional Gaussians, the exact flow and the geometry of the sphere."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tests.oracles import gaussian, spread
from torch import Tensor

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion import variance
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import GaussianOracle as Correlated
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.editing import Inpainting, below, invert, resampled, slerp
from sfumato.sampling.published import dpm_solver_pp, sa_solver, sde_dpm_solver_pp
from sfumato.sampling.sample import Memory, initial, sample, seeded_noise
from sfumato.sampling.steps import ancestral, ddim, heun

MEAN = torch.tensor([0.2, -0.1], dtype=torch.float64)
COVARIANCE = 0.25 * torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
KNOWN = 0.9
# of the second number, the first being known: Bishop 2006, eqs. 2.81 and 2.82
CONDITIONAL_MEAN = -0.1 + 0.8 * (KNOWN - 0.2)
CONDITIONAL_STD = math.sqrt(0.25 * (1.0 - 0.8**2))


def inpainted(levels: Level, step: object, count: int = 1500) -> Tensor:
    image, mask = torch.tensor([[KNOWN, 0.0]], dtype=torch.float64), torch.tensor([True, False])
    x = initial(levels, (2,), 0, count=count).double()
    painting = Inpainting(step, image, mask)  # type: ignore[arg-type]
    for frame in sample(Correlated(MEAN, COVARIANCE), x, levels, painting, noise=seeded_noise(0), any_order=True):
        x = frame.x
    return x


@pytest.mark.parametrize(
    "step", [partial(ancestral, variance=variance.large), ddim, dpm_solver_pp(2)], ids=["ancestral", "ddim", "dpm"]
)
def test_resampling_leads_to_the_exact_conditional(step: object) -> None:
    levels = grids.karras(schedules.Karras(30.0), 40)
    plain, found = inpainted(levels, step), inpainted(resampled(levels, 20), step)
    for x in (plain, found):
        assert torch.equal(x[:, 0], torch.full_like(x[:, 0], KNOWN))
    # without resampling the new does not look at the old: the mean is off by half of the way from the marginal
    assert abs(float(plain[:, 1].mean()) - CONDITIONAL_MEAN) > 0.2
    assert float(found[:, 1].mean()) == pytest.approx(CONDITIONAL_MEAN, abs=0.04)
    assert float(found[:, 1].std()) == pytest.approx(CONDITIONAL_STD, rel=0.07)
    assert float(plain[:, 1].std()) > 1.15 * CONDITIONAL_STD


def test_more_resampling_is_nearer_to_the_conditional() -> None:
    levels = grids.uniform(schedules.linear(1000), 40)
    errors = [abs(float(inpainted(resampled(levels, n), ddim)[:, 1].mean()) - CONDITIONAL_MEAN) for n in (1, 3, 9)]
    assert errors[0] > 1.5 * errors[1] > 2.0 * errors[2]


def test_the_levels_of_resampling() -> None:
    levels = grids.uniform(schedules.linear(100), 6)
    times = [round(6 * level.t) for level in resampled(levels, 2, 2)]
    # stretches of 2 that end at 1, at 3; never at the data
    assert times == [6, 5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]
    assert [round(6 * level.t) for level in resampled(levels, 3, 1)] == [6, 5, 6, 5, 6, 5] + [
        t for k in (4, 3, 2, 1) for t in (k, k + 1, k, k + 1, k)
    ] + [0]
    for same in (resampled(levels, 1), resampled(levels, 5, 100)):
        assert torch.equal(torch.as_tensor(same.t), torch.as_tensor(levels.t))


def test_the_way_up_is_the_forward_process_and_clears_the_memory_of_a_solver() -> None:
    schedule = schedules.linear(1000)
    t, s = schedule(0.3), schedule(0.5)
    memory = Memory(seeded_noise(3))
    memory.state["before"] = 1.0
    x = torch.ones(20000, 1, dtype=torch.float64)
    painting = Inpainting(ddim, torch.zeros(1, 1), torch.tensor([True]))
    found = painting(gaussian(), x, t, s, memory)
    scale = s.alpha / t.alpha
    assert float(found.mean()) == pytest.approx(scale, abs=0.02)
    assert float(found.var()) == pytest.approx(s.sigma**2 - scale**2 * t.sigma**2, rel=0.03)
    assert memory.state == {}


def test_the_known_part_is_diffused_to_its_level() -> None:
    schedule = schedules.linear(1000)
    t, s = schedule(0.6), schedule(0.5)
    image = torch.full((1, 2), 0.7, dtype=torch.float64)
    x = torch.zeros(20000, 2, dtype=torch.float64)
    mask = torch.tensor([True, False])
    found = Inpainting(ddim, image, mask)(gaussian(shape=(2,)), x, t, s, Memory(seeded_noise(0)))
    assert float(found[:, 0].mean()) == pytest.approx(0.7 * s.alpha, abs=0.02)
    assert float(found[:, 0].std()) == pytest.approx(s.sigma, rel=0.02)
    assert torch.equal(found[:, 1], ddim(gaussian(shape=(2,)), x, t, s, Memory(seeded_noise(0)))[:, 1])


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(3, 1, 8, 8, dtype=torch.bool), r"mask has shape \(3, 1, 8, 8\), which does not fit \(1, 1, 8, 8\)"),
        (torch.ones(8, 9, dtype=torch.bool), "mask has shape"),
        (torch.ones(1, 1, 1, 8, 8, dtype=torch.bool), "mask has shape"),
        (torch.ones(8, 8), "must hold booleans"),
    ],
)
def test_a_mask_that_does_not_fit(mask: Tensor, words: str, unchecked: None) -> None:
    x, schedule = torch.zeros(1, 1, 8, 8), schedules.linear(100)
    with pytest.raises(InputError, match=words):
        Inpainting(ddim, x, mask).place(x, schedule(0.5), Memory(seeded_noise(0)))


@pytest.mark.parametrize(
    "schedule", [schedules.linear(1000), schedules.ContinuousCosine(), schedules.Karras(), schedules.RectifiedFlow()]
)
def test_sampling_from_any_level_follows_the_flow(schedule: schedules.Schedule) -> None:
    oracle, start = gaussian(), schedule(0.37)
    levels = below(grids.uniform(schedule, 400), start)
    assert next(iter(levels)) == start and len(levels) == 1 + 148
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * spread(start)
    found = list(sample(oracle, x, levels, heun))[-1].x
    assert (found - oracle.flow(x, start, schedule(0.0))).abs().max() < 5e-3
    # at the start of the grid it is the grid
    whole = below(levels, start)
    assert torch.equal(torch.as_tensor(whole.t), torch.as_tensor(levels.t))


@pytest.mark.parametrize(("step", "order"), [(ddim, 1.0), (heun, 2.0), (dpm_solver_pp(2), 2.0)])
@pytest.mark.parametrize("name", ["linear", "edm"])
def test_the_error_of_inversion_falls_at_the_order_of_the_step(name: str, step: object, order: float) -> None:
    schedule = {"linear": schedules.ContinuousLinear(), "edm": schedules.Karras()}[name]
    x0 = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    oracle, errors, ends = gaussian(), [], []
    exact = oracle.flow(x0, schedule(0.0), schedule(1.0))
    for steps in (160, 320):
        found = invert(oracle, x0, grids.karras(schedule, steps, sigma_min=1e-4), step)  # type: ignore[arg-type]
        errors.append(float(found.error.max()))
        ends.append(float((found.noise - exact).abs().max()))
        assert found.error.tolist() == pytest.approx((found.reconstruction - x0).abs()[:, 0].tolist())
    assert math.log2(errors[0] / errors[1]) > order - 0.15
    # the noise is that of the flow, at the same order
    assert math.log2(ends[0] / ends[1]) == pytest.approx(order, abs=0.15)
    assert errors[1] < 0.05


def test_inversion_to_where_nothing_of_the_data_is_left() -> None:
    schedule, oracle = schedules.RectifiedFlow(), gaussian()
    x0 = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    for step in (ddim, heun, dpm_solver_pp(2)):
        found = invert(oracle, x0, grids.uniform(schedule, 300), step)
        assert (found.noise - oracle.flow(x0, schedule(0.0), schedule(1.0))).abs().max() < 0.02
        assert float(found.error.max()) < 0.02
    with pytest.raises(InputError, match="use more steps"):
        invert(oracle, x0, grids.uniform(schedule, 1), ddim)


@pytest.mark.parametrize(
    "step",
    [
        ancestral,
        partial(ancestral, variance=variance.learned),
        partial(ddim, eta=0.5),
        # with noise in the middle of the grid alone
        sa_solver(),
        sa_solver(low=0.3, high=0.6),
        sde_dpm_solver_pp(),
    ],
)
def test_inversion_refuses_noise(step: object) -> None:
    with pytest.raises(InputError, match="this sampler adds noise"):
        invert(gaussian(), torch.zeros(2, 1), grids.uniform(schedules.linear(100), 20), step)  # type: ignore[arg-type]


def test_slerp_keeps_ends_norm_and_pace() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 4, 4, dtype=torch.float64, generator=generator)
    b = torch.randn(3, 4, 4, dtype=torch.float64, generator=generator)
    b = b * a.norm() / b.norm()
    f = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    points = slerp(a, b, f)
    assert points.shape == (11, 3, 4, 4)
    assert (points[0] - a).abs().max() < 1e-12 and (points[-1] - b).abs().max() < 1e-12
    assert (points.flatten(1).norm(dim=1) / a.norm() - 1.0).abs().max() < 1e-12
    chords = points.diff(dim=0).flatten(1).norm(dim=1)
    assert (chords / chords[0] - 1.0).abs().max() < 1e-9
    # another length at the end: lengths go linearly
    longer = slerp(a, 3.0 * b, f)
    assert (longer.flatten(1).norm(dim=1) / a.norm() - (1.0 + 2.0 * f)).abs().max() < 1e-12
    # a quarter of a turn, by hand
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.allclose(slerp(x, y, torch.tensor([1 / 3])), torch.tensor([[math.sqrt(3) / 2, 0.5]]))


def test_slerp_of_neighbours_is_a_line() -> None:
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for angle in (0.0, 1e-9, 1e-5):
        b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert (slerp(a, b, torch.tensor([0.5])) - 0.5 * (a + b)).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: slerp(torch.ones(2), torch.ones(3), torch.tensor([0.5])), "one shape"),
        (lambda: slerp(torch.ones(2), -torch.ones(2), torch.tensor([0.5])), "opposite"),
        (lambda: slerp(torch.zeros(2), torch.ones(2), torch.tensor([0.5])), "no direction"),
        (lambda: resampled(grids.uniform(schedules.linear(10), 5), 0), "at least 1 repetition"),
        (lambda: resampled(grids.uniform(schedules.linear(10), 5), 2, 0), "at least 1 repetition"),
        (lambda: below(grids.uniform(schedules.linear(10), 5), schedules.linear(10)(0.0)), "at the data"),
    ],
)
def test_wrong_editing(call: object, words: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
