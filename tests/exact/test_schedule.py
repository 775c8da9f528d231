"""Schedules against the published tables, computed here independently in plain float64 NumPy."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.learned_schedule import LearnedSchedule
from sfumato.diffusion.level import Level
from sfumato.errors import InputError, SfumatoWarning

ALL = {
    "linear": lambda: schedules.linear(1000),
    "linear-10": lambda: schedules.linear(10),
    "cosine": lambda: schedules.cosine(1000),
    "cosine-1": lambda: schedules.cosine(1),
    "continuous linear": schedules.ContinuousLinear,
    "continuous cosine": schedules.ContinuousCosine,
    "karras": schedules.Karras,
    "sigmoid": lambda: schedules.sigmoid(1000),
    "sigmoid-1": lambda: schedules.sigmoid(1),
    "zero terminal snr": lambda: schedules.zero_terminal_snr(schedules.linear(100)),
    "flow": schedules.RectifiedFlow,
    "learned": LearnedSchedule,
}


@pytest.mark.parametrize("steps", [2, 50, 1000, 4000])
def test_linear_table_is_the_published_one(steps: int) -> None:
    scale = 1000 / steps
    betas = np.minimum(np.linspace(scale * 1e-4, scale * 0.02, steps), 0.999)
    table = schedules.linear(steps)
    assert np.abs(table.betas.numpy() - betas).max() < 1e-12
    assert np.abs(table.alpha_bars.numpy() - np.cumprod(1.0 - betas)).max() < 1e-12
    assert float(table.alpha_bars[-1]) < 1e-3


def test_linear_endpoints_of_ho_et_al() -> None:
    table = schedules.linear()
    assert float(table.betas[0]) == pytest.approx(1e-4, abs=1e-15)
    assert float(table.betas[-1]) == pytest.approx(0.02, abs=1e-15)


@pytest.mark.parametrize("steps", [1, 50, 1000, 4000])
def test_cosine_table_is_the_published_one(steps: int) -> None:
    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)])
    table = schedules.cosine(steps)
    assert np.abs(table.betas.numpy() - betas).max() < 1e-12
    assert np.abs(table.alpha_bars.numpy() - np.cumprod(1.0 - betas)).max() < 1e-12


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7), (-3.0, 3.0, 1.1)])
def test_sigmoid_table_is_the_published_one(start: float, end: float, tau: float) -> None:
    """Chen 2023, algorithm 1, gamma(t) with the logistic function written with tanh."""

    def logistic(x: float) -> float:
        return 0.5 * (1.0 + math.tanh(x / 2.0))

    def alpha_bar(t: float) -> float:
        first, last = logistic(start / tau), logistic(end / tau)
        return (last - logistic((t * (end - start) + start) / tau)) / (last - first)

    steps = 100
    betas = np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)])
    table = schedules.sigmoid(steps, start, end, tau)
    assert np.abs(table.betas.numpy() - betas).max() < 1e-12
    assert np.abs(table.alpha_bars.numpy() - np.cumprod(1.0 - betas)).max() < 1e-12


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_zero_terminal_snr_is_the_published_algorithm(steps: int) -> None:
    """Lin et al. 2024, algorithm 1."""
    betas = np.minimum(np.linspace(0.1 / steps, 20 / steps, steps), 0.999)
    root = np.sqrt(np.cumprod(1.0 - betas))
    shifted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bars = shifted**2
    expected = 1.0 - np.append(bars[0], bars[1:] / bars[:-1])
    table = schedules.zero_terminal_snr(schedules.linear(steps))
    assert np.abs(table.alpha_bars.numpy() - bars).max() < 1e-12
    assert np.abs(table.betas.numpy() - expected).max() < 1e-12
    level = table(1.0)
    assert (level.alpha, level.sigma, level.log_snr) == (0.0, 1.0, -math.inf)
    assert float(table.betas[-1]) == 1.0 and float(table.betas[0]) == pytest.approx(betas[0], abs=1e-12)


def test_a_last_step_to_zero_is_continuous_with_an_exact_inverse() -> None:
    table = schedules.zero_terminal_snr(schedules.linear(10))
    t = torch.linspace(0.9, 1.0, 50, dtype=torch.float64)
    level = table(t)
    alpha_bar = torch.as_tensor(level.alpha).square()
    assert (alpha_bar - float(table.alpha_bars[-2]) * (1.0 - (t - 0.9) * 10)).abs().max() < 1e-14
    assert (torch.as_tensor(table.at(level.log_snr).t) - t).abs().max() < 1e-9
    assert table.at(-math.inf) == table(1.0)


def test_rectified_flow() -> None:
    schedule = schedules.RectifiedFlow()
    level = schedule(0.3)
    assert (level.alpha, level.sigma) == (0.7, 0.3)
    assert schedule.at(0.0).t == 0.5 and schedule.at(-math.inf).t == 1.0


@pytest.mark.parametrize("name", ALL)
def test_the_slope_is_the_derivative_of_the_log_snr(name: str) -> None:
    schedule, h = ALL[name](), 1e-6
    steps = getattr(schedule, "steps", 7)
    # between the steps of a table
    for t in (0.5 / steps, 0.4 + 0.3 / steps, 1.0 - 0.5 / steps):
        numeric = (schedule(t + h).log_snr - schedule(t - h).log_snr) / (2 * h)
        assert schedule.slope(t) == pytest.approx(numeric, rel=1e-4)
    many = schedule.slope(torch.tensor([0.5, 0.9], dtype=torch.float64))
    assert float(many[0]) == pytest.approx(schedule.slope(0.5), rel=1e-12)


def test_the_slope_at_a_step_is_that_of_its_beta() -> None:
    table = schedules.linear(100)
    beta, bar = float(table.betas[49]), float(table.alpha_bars[49])
    assert table.slope(0.5) == pytest.approx(100 * math.log(1 - beta) / (1 - bar), rel=1e-10)


def test_previous_steps_of_a_table() -> None:
    table = schedules.linear(7)
    levels = table.previous(table(torch.arange(8, dtype=torch.float64) / 7))
    expected = table(torch.tensor([0, 0, 1, 2, 3, 4, 5, 6], dtype=torch.float64) / 7)
    assert torch.equal(torch.as_tensor(levels.alpha), torch.as_tensor(expected.alpha))
    assert table.previous(table(1 / 7)).sigma == 0.0


def test_every_step_of_a_table_is_exact_at_its_time() -> None:
    betas = np.random.default_rng(0).uniform(0.01, 0.3, 37)
    table = schedules.Discrete(betas)
    level = table(torch.arange(38, dtype=torch.float64) / 37)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - betas)])
    assert isinstance(level.alpha, torch.Tensor) and isinstance(level.sigma, torch.Tensor)
    assert np.abs(level.alpha.numpy() ** 2 - alpha_bar).max() < 1e-14
    assert np.abs(level.sigma.numpy() ** 2 - (1.0 - alpha_bar)).max() < 1e-14


def test_continuous_linear_is_the_limit_of_the_table() -> None:
    t = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)
    fine, limit = schedules.linear(100_000)(t).log_snr, schedules.ContinuousLinear()(t).log_snr
    assert torch.as_tensor(fine - limit).abs().max() < 2e-3


def test_continuous_linear_integrates_beta() -> None:
    t = np.linspace(0.0, 0.7, 20_001)
    beta = 0.1 + t * 19.9
    integral = np.sum((beta[1:] + beta[:-1]) / 2 * np.diff(t))
    alpha = schedules.ContinuousLinear()(0.7).alpha
    assert alpha == pytest.approx(math.exp(-integral / 2), rel=1e-8)


def test_continuous_cosine_follows_the_published_curve_to_its_end() -> None:
    schedule = schedules.ContinuousCosine()
    assert schedule(1.0).log_snr == pytest.approx(-20.0, abs=1e-9)
    end = schedule.last / (math.pi / 2) * 1.008 - 0.008
    for t in (0.1, 0.5, 0.99):
        published = math.cos((t * end + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
        assert schedule(t).alpha == pytest.approx(published, abs=1e-12)


def test_karras_grid_formula() -> None:
    rho, low, high, count = 7.0, 0.002, 80.0, 18
    published = [
        (high ** (1 / rho) + i / (count - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(count)
    ]
    schedule = schedules.Karras(high, rho)
    first = (low / high) ** (1 / rho)
    sigma = schedule(torch.linspace(1.0, first, count, dtype=torch.float64)).sigma
    assert np.allclose(np.asarray(sigma), published, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_the_data_are_free_of_noise_and_snr_falls(name: str) -> None:
    schedule = ALL[name]()
    level = schedule(0.0)
    assert level.alpha == 1.0 and level.sigma == 0.0 and level.log_snr == math.inf
    log_snr = torch.as_tensor(schedule(torch.linspace(0.001, 1.0, 500, dtype=torch.float64)).log_snr)
    assert (log_snr.diff() < 0).all()
    # one step leaves the 0.001 of the last beta's clip
    with pytest.warns(SfumatoWarning, match=r"alpha_bar_T = 0\.001 ") if name.endswith("-1") else nullcontext():
        schedule.require_noise()


def test_a_schedule_that_ends_with_some_signal_passes_with_a_warning() -> None:
    """The scaled linear table of latent diffusion: alpha_bar_T is neither near zero nor a mistake."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    left = np.prod(1.0 - betas)
    assert 1e-4 < left < 1e-2
    with pytest.warns(SfumatoWarning, match=rf"alpha_bar_T = {left:.3g} is not near zero"):
        schedules.Discrete(betas).require_noise()
    # rescaled, nothing is left
    schedules.zero_terminal_snr(schedules.Discrete(betas)).require_noise()


@pytest.mark.parametrize("name", ALL)
def test_at_is_the_inverse(name: str) -> None:
    schedule = ALL[name]()
    t = torch.linspace(0.001, 1.0, 777, dtype=torch.float64)
    level = schedule(t)
    back = schedule.at(level.log_snr)
    # where alpha_bar is within 1e-9 of 0, the log-SNR itself is only known to 1e-9
    assert (torch.as_tensor(back.t) - t).abs().max() < 1e-9
    assert (torch.as_tensor(back.sigma) - torch.as_tensor(level.sigma)).abs().max() < 1e-10
    assert schedule.at(math.inf).sigma == 0.0


@pytest.mark.parametrize("name", ALL)
def test_a_float_gives_floats_equal_to_the_tensor(name: str) -> None:
    schedule = ALL[name]()
    one, many = schedule(0.3), schedule(torch.tensor([0.3, 0.6], dtype=torch.float64))
    assert isinstance(one.sigma, float) and one.alpha == float(torch.as_tensor(many.alpha)[0])


def test_tables_survive_a_cast_of_the_model() -> None:
    schedule = schedules.linear(100)
    before = schedule(0.37)
    assert schedule.half().float()(0.37) == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.linear(1), "at least 2 steps"),
        (lambda: schedules.linear(0), "at least 2 steps"),
        (lambda: schedules.cosine(0), "at least 1 step"),
        (lambda: schedules.Discrete([]), "at least one number"),
        (lambda: schedules.Discrete([0.1, 1.0]), "below 1"),
        (lambda: schedules.Discrete([0.1, float("nan")]), "below 1"),
        (lambda: schedules.Discrete([1.0, 0.1], zero_end=True), "the last may be 1"),
        (lambda: schedules.Discrete([0.1, 1.1], zero_end=True), "the last may be 1"),
        (lambda: schedules.sigmoid(0), "at least 1 step"),
        (lambda: schedules.sigmoid(10, 3.0, -3.0), "start < end"),
        (lambda: schedules.sigmoid(10, tau=0.0), "tau > 0"),
        (lambda: schedules.zero_terminal_snr(schedules.cosine(1)), "at least 2"),
        (lambda: schedules.Discrete([1e-4] * 10).require_noise(), "leaves signal"),
        (lambda: schedules.Karras(2.0).require_noise(), "leaves signal"),
        (lambda: schedules.linear()(1.5), "from 0"),
        (lambda: schedules.linear()(float("nan")), "from 0"),
        (lambda: schedules.linear().at(-30.0), "ends at a log-SNR"),
        (lambda: schedules.ContinuousLinear(2.0, 1.0), "beta_min"),
        (lambda: schedules.Karras(-1.0), "positive"),
    ],
)
def test_bad_input(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]


def test_a_level_of_floats_and_of_tensors() -> None:
    level = Level(0.5, 0.8, 0.6)
    assert level.log_snr == pytest.approx(math.log(0.64 / 0.36))
    assert level.noise_to_signal == pytest.approx(0.75)
    x = torch.zeros(3, 1, 4, 4)
    many = Level(*(torch.full((3,), v, dtype=torch.float64) for v in (0.5, 0.8, 0.6))).like(x)
    assert torch.as_tensor(many.alpha).shape == (3, 1, 1, 1) and torch.as_tensor(many.alpha).dtype == torch.float32


def test_a_grid_is_indexed_sliced_and_joined() -> None:
    grid = schedules.linear(10)(torch.linspace(1.0, 0.0, 6, dtype=torch.float64))
    one = list(grid)
    assert grid[1] == one[1] and grid[-1] == Level(0.0, 1.0, 0.0) and len(grid[2:]) == 4
    assert list(grid[1:4]) == one[1:4] and list(grid[torch.tensor([3, 0])]) == [one[3], one[0]]
    assert list(grid[torch.as_tensor(grid.sigma) == 0.0]) == one[-1:]
    assert list(Level.cat([grid[:2], one[2], grid[3:]])) == one
    assert list(grid.map(lambda value: torch.as_tensor(value).flip(0))) == one[::-1]


def test_a_table_is_given_by_numbers_or_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "betas.txt").write_text("0.1, 0.5\n1.0")
    (tmp_path / "betas.json").write_text("[0.1, 0.5, 1.0]")
    for name in ("betas.txt", "betas.json"):
        assert schedules.table(file=str(tmp_path / name)).alpha_bars.tolist() == pytest.approx([0.9, 0.45, 0.0])
    assert torch.equal(schedules.table((0.1, 0.5)).betas, schedules.Discrete([0.1, 0.5]).betas)
    with pytest.raises(InputError, match="without betas"):
        schedules.table()
    with pytest.raises(InputError, match="Could not read numbers"):
        schedules.table(file=str(tmp_path / "absent.npy"))
