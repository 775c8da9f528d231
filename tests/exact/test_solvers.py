"""Multistep solvers against their published formulas and against exact flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm
from tests.oracles import gaussian

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.coordinates import PredictedData, PredictedNoise, Rotation, half_log_snr, time_of
from sfumato.sampling.defaults import best
from sfumato.sampling.multistep import Adams, Unified, multistep
from sfumato.sampling.published import deis, dpm_solver_2, dpm_solver_pp, dpm_solver_pp_2s, dpm_solver_pp_3s, lms, unipc
from sfumato.sampling.sample import Memory, initial, sample
from sfumato.sampling.steps import ddim, euler, heun

SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.ContinuousLinear(),
    "edm": schedules.Karras(),
    "flow": schedules.RectifiedFlow(),
}


class Line:
    """A mixture of Gaussians on a line: exact denoiser, and exact flow by the transport of quantiles."""

    means, stds, weights = (-1.0, 0.2, 1.5), (0.3, 0.4, 0.3), (0.5, 0.3, 0.2)

    def __call__(self, x: torch.Tensor, level: Level, **cond: torch.Tensor) -> Prediction:
        assert level.sigma > 0.0
        means, stds, weights = (torch.tensor(v, dtype=x.dtype) for v in (self.means, self.stds, self.weights))
        variance = level.alpha**2 * stds**2 + level.sigma**2
        apart = x[..., None] - level.alpha * means
        part = (weights.log() - 0.5 * variance.log() - 0.5 * apart**2 / variance).softmax(-1)
        return Prediction.of_x0(x, (part * (means + level.alpha * stds**2 / variance * apart)).sum(-1), level)

    def distribution(self, value: float, level: Level) -> float:
        return sum(
            w * norm.cdf((value - level.alpha * m) / math.hypot(level.alpha * s, level.sigma))
            for w, m, s in zip(self.weights, self.means, self.stds, strict=True)
        )

    def flow(self, x: torch.Tensor, t: Level, s: Level) -> torch.Tensor:
        """In one dimension the flow keeps the order of samples."""
        far = 20.0 * max(1.0, float(s.sigma))
        found = [
            brentq(lambda y, z=z: self.distribution(y, s) - self.distribution(z, t), -far, far, xtol=1e-14)
            for z in x.flatten().tolist()
        ]
        return torch.tensor(found, dtype=torch.float64).reshape(x.shape)


@cache
def transported(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """States where there is 60 times as much noise as signal, and where the flow takes them."""
    schedule = SCHEDULES[name]
    start = schedule.at(-2.0 * math.log(60.0))
    x = torch.linspace(-1.5, 1.5, 15, dtype=torch.float64)[:, None] * math.hypot(start.alpha, start.sigma)
    return x, Line().flow(x, start, schedule(0.0))


def last(frames: Any) -> torch.Tensor:
    return list(frames)[-1].x


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


DATA, NOISE = Adams(PredictedData(), half_log_snr), Adams(PredictedNoise())
NOISE_IN_LOG_SNR = Adams(PredictedNoise(), half_log_snr)

STEPS: dict[str, tuple[Callable[[Schedule], Any], float]] = {
    "euler": (lambda s: euler, 1.0),
    "heun": (lambda s: heun, 2.0),
    "dpm_solver_2": (dpm_solver_2, 2.0),
    "dpm_solver_pp_2s": (dpm_solver_pp_2s, 2.0),
    "dpm_solver_pp_3s": (lambda s: partial(dpm_solver_pp_3s, schedule=s), 3.0),
    **{f"dpm_solver_pp_{k}": (lambda s, k=k: dpm_solver_pp(k), float(k)) for k in (1, 2, 3, 4)},
    **{f"lms_{k}": (lambda s, k=k: lms(k), float(k)) for k in (1, 2, 3, 4)},
    **{f"deis_{k}": (lambda s, k=k: deis(s, k), float(k)) for k in (2, 3, 4)},
    **{f"noise_in_log_snr_{k}": (lambda s, k=k: _ab(NOISE_IN_LOG_SNR, k), float(k)) for k in (2, 3)},
    **{f"rotation_{k}": (lambda s, k=k: _ab(Adams(Rotation(0.6)), k), float(k)) for k in (1, 2, 3, 4)},
    **{f"unipc_{k}": (lambda s, k=k: unipc(k), k + 1.0) for k in (1, 2, 3)},
    **{f"unipc_bh1_{k}": (lambda s, k=k: unipc(k, b="bh1"), k + 1.0) for k in (1, 2)},
    "unip_3": (lambda s: unipc(3, corrector=False), 3.0),
}


ON_FLOW = ("euler", "heun", "dpm_solver_2", "dpm_solver_pp_3", "lms_4", "rotation_4", "unipc_2")


def _ab(rule: Adams, order: int) -> Any:
    return partial(multistep, rule=rule, order=order)


@pytest.mark.parametrize(
    ("name", "step"),
    # in EDM's time the errors of DEIS-4 still fall faster than at order 4 at these steps: 4.42
    [(name, step) for step in STEPS for name in ("linear", "edm") if (name, step) != ("edm", "deis_4")]
    + [("flow", step) for step in ON_FLOW],
)
def test_order_of_convergence_down_to_the_data(name: str, step: str) -> None:
    """For data that are not Gaussian, whose exact flow is known."""
    schedule, oracle, (make, order) = SCHEDULES[name], Line(), STEPS[step]

    def grid(steps: int) -> Level:
        # what lies above 60 is nothing but noise; the first-order start of a solver would lie there
        return grids.karras(schedule, steps, 1e-5 if order < 2 else 1e-3, 60.0)

    x, exact = transported(name)
    ends = (last(sample(oracle, x, grid(n), make(schedule))) for n in (160, 320))
    errors = [float((end - exact).square().mean().sqrt()) for end in ends]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ["linear", "edm"])
def test_the_last_step_leaves_no_floor(name: str) -> None:
    """A grid that stops far from the data: the first-order step stays there, the extrapolation does not."""
    schedule, oracle = SCHEDULES[name], Line()
    x, exact = transported(name)
    for steps in (100, 400):
        levels = grids.karras(schedule, steps, 0.05, 60.0)
        ends = (last(sample(oracle, x, levels, unipc(3, final_order=order))) for order in (1, 4))
        floor, found = (float((end - exact).abs().max()) for end in ends)
        assert floor > 4e-3 and found < floor / 100.0


@pytest.mark.parametrize("name", ["linear", "edm", "flow"])
@pytest.mark.parametrize("grid", [grids.uniform, grids.leading, grids.quadratic])
@pytest.mark.parametrize("steps", [10, 60])
def test_the_order_is_cut_where_weights_would_grow_without_bound(name: str, grid: Any, steps: int) -> None:
    """Data as a polynomial of 1 / sigma, on grids whose last steps are the longest in it."""
    schedule, x = SCHEDULES[name], torch.linspace(-1.5, 1.5, 15, dtype=torch.float64)[:, None]
    levels, x = grid(schedule, steps), x * schedule(1.0).sigma
    exact = Line().flow(x, schedule(1.0), schedule(0.0))
    plain, *found = (
        last(sample(Line(), x, levels, partial(multistep, rule=Adams(PredictedData()), order=k, corrector=c)))
        for k, c in ((1, 0), (3, 3), (4, 4))
    )
    # ten steps of the wrong lengths are no better for the order being cut, but no longer without bound
    allowed = (20.0 if steps == 10 else 2.0) * float((plain - exact).abs().max()) + 0.1
    assert all(float((one - exact).abs().max()) < allowed for one in found)


def test_what_is_done_in_practice_is_far_from_the_bound_on_weights() -> None:
    for schedule in (schedules.linear(1000), schedules.ContinuousCosine(), schedules.Karras()):
        for nfe in (5, 8, 10, 15, 20, 50):
            levels, step = best(schedule, nfe, 0.5)
            rule, order = step.keywords["rule"], step.keywords["order"]  # type: ignore[attr-defined]
            nodes = list(levels)[:-1]
            for k in range(1, len(nodes)):
                behind, t, s = nodes[max(0, k - order) : k][::-1], nodes[k - 1], nodes[k]
                weights = rule(behind, t, s)
                bound = rule.coordinate.limit * abs(rule.coordinate.total(t, s))
                assert sum(map(abs, weights)) <= 0.3 * bound


@pytest.mark.parametrize("levels", [[2.0, 1.9, 1.8, 1.7], [3.0, 2.0, 1.0], [80.0, 0.01], [5.0]])
@pytest.mark.parametrize("step", [lms(4), unipc(3), heun])
def test_the_last_step_is_bounded_however_close_its_levels(levels: list[float], step: Any) -> None:
    """Noise in predictions is multiplied by at most 13."""
    schedule = schedules.Karras()
    grid = schedule.at(-2.0 * torch.tensor([*levels, 0.0], dtype=torch.float64).log())

    class Noisy:
        calls = 0

        def __call__(self, x: torch.Tensor, level: Level) -> Prediction:
            self.calls += 1
            return Prediction.of_x0(x, torch.full_like(x, (-1.0) ** self.calls), level)

    assert last(sample(Noisy(), torch.zeros(2, 1), grid, step)).abs().max() < 13.0  # type: ignore[arg-type]


def four(schedule: Schedule) -> list[Level]:
    return list(grids.karras(schedule, 12, 0.01, 60.0))[3:8]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("rule", [DATA, NOISE, Adams(Rotation(0.7))])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_are_the_integrals_of_the_lagrange_polynomials(name: str, rule: Adams, count: int) -> None:
    """By adaptive quadrature of the flow in its own variable, with polynomials made by numpy."""
    r0, r1, r2, t, s = four(SCHEDULES[name])
    nodes = [t, r2, r1, r0][:count]
    found = rule(nodes, t, s)
    variable = rule.variable or rule.coordinate.natural
    places = variable(np.array([n.noise_to_signal for n in nodes]))
    ends = rule.coordinate.natural(np.array([t.noise_to_signal, s.noise_to_signal]))
    inverses = {PredictedData: lambda p: 1.0 / p, PredictedNoise: lambda p: p, Rotation: lambda p: 0.7 * math.tan(p)}
    back = inverses[type(rule.coordinate)]
    for j in range(count):
        line = np.polynomial.Polynomial.fit(places, np.eye(count)[j], count - 1)
        integral, _ = quad(lambda p, line=line: line(variable(np.array([back(p)])))[0], *ends, epsabs=1e-13)
        scale = rule.coordinate.total(t, s) / (ends[1] - ends[0])
        assert found[j] == pytest.approx(scale * integral, abs=1e-9)


def test_one_prediction_is_ddim() -> None:
    oracle, x = Line(), randn(5, 1)
    for schedule in SCHEDULES.values():
        _, _, _, t, s = four(schedule)
        expected = ddim(oracle, x, t, s, Memory(refuse))
        for rule in (DATA, NOISE, NOISE_IN_LOG_SNR, Unified()):
            found = multistep(oracle, x, t, s, Memory(refuse), rule=rule, order=3)
            assert (found - expected).abs().max() < 1e-12


def refuse(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("noise was drawn")


def two_steps(step: Any, schedule: Schedule) -> tuple[torch.Tensor, ...]:
    """The state and the predictions of the first two steps, and where the second leads."""
    _, _, r, t, s = four(schedule)
    oracle, x, memory = Line(), randn(5, 1), Memory(refuse)
    y = step(oracle, x, r, t, memory)
    return x, y, step(oracle, y, t, s, memory), oracle(x, r).x0, oracle(y, t).x0, oracle(x, r).eps, oracle(y, t).eps


def test_dpm_solver_pp_2m_is_algorithm_2() -> None:
    for schedule in SCHEDULES.values():
        _, y, z, x0_r, x0_t, _, _ = two_steps(dpm_solver_pp(2), schedule)
        _, _, r, t, s = four(schedule)
        lam = [math.log(n.alpha / n.sigma) for n in (r, t, s)]
        h, ratio = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
        d = (1 + 1 / (2 * ratio)) * x0_t - 1 / (2 * ratio) * x0_r
        assert (z - (s.sigma / t.sigma * y - s.alpha * (math.exp(-h) - 1) * d)).abs().max() < 1e-12


def test_lms_of_order_2_is_the_variable_step_adams_bashforth_formula() -> None:
    schedule = SCHEDULES["edm"]
    _, y, z, _, _, eps_r, eps_t = two_steps(lms(2), schedule)
    _, _, r, t, s = four(schedule)
    h, before = s.sigma - t.sigma, t.sigma - r.sigma
    expected = y + h * (eps_t + 0.5 * h / before * (eps_t - eps_r))
    assert (z - expected).abs().max() < 1e-11


def test_deis_of_order_2_integrates_noise_linear_in_time() -> None:
    schedule = SCHEDULES["linear"]
    _, y, z, _, _, eps_r, eps_t = two_steps(deis(schedule, 2), schedule)
    _, _, r, t, s = four(schedule)

    def slope(time: float) -> float:
        # d (sigma / alpha) / dt, by the SDE: beta / (2 alpha sigma) for a variance-preserving schedule
        level = schedule(time)
        return (0.1 + 19.9 * time) / (2.0 * level.alpha * level.sigma)

    c_t, _ = quad(lambda u: slope(u) * (u - r.t) / (t.t - r.t), t.t, s.t, epsabs=1e-13)
    c_r, _ = quad(lambda u: slope(u) * (u - t.t) / (r.t - t.t), t.t, s.t, epsabs=1e-13)
    expected = s.alpha * (y / t.alpha + c_t * eps_t + c_r * eps_r)
    assert (z - expected).abs().max() < 1e-9


@pytest.mark.parametrize("b", ["bh1", "bh2"])
def test_unipc_of_order_1_corrects_with_half_the_change(b: Any) -> None:
    """UniC-1: the state is moved by alpha B(h) / 2 times the change of the prediction, before the next step."""
    for schedule in SCHEDULES.values():
        _, y, z, x0_r, x0_t, _, _ = two_steps(unipc(1, b=b), schedule)
        _, _, r, t, s = four(schedule)
        h = math.log(t.alpha / t.sigma * r.sigma / r.alpha)
        corrected = y + t.alpha * 0.5 * (h if b == "bh1" else 1.0 - math.exp(-h)) * (x0_t - x0_r)
        expected = s.sigma / t.sigma * corrected + (s.alpha - s.sigma * t.alpha / t.sigma) * x0_t
        assert (z - expected).abs().max() < 1e-12


def test_unipc_of_order_2_solves_its_linear_equations() -> None:
    r"""UniC-2 after UniP-2, with the matrix of the paper and :math:`\varphi` functions by their recursion."""
    schedule, oracle = SCHEDULES["linear"], Line()
    _, r1, r0, t, s = four(schedule)
    for name, b in (("bh1", lambda h: h), ("bh2", lambda h: 1.0 - math.exp(-h))):
        memory, step = Memory(refuse), unipc(2, b=name)
        x = randn(5, 1)
        y = step(oracle, x, r1, r0, memory)
        z = step(oracle, y, r0, t, memory)
        out = step(oracle, z, t, s, memory)
        m1, m0, m = oracle(x, r1).x0, oracle(y, r0).x0, oracle(z, t).x0
        lam1, lam0, lam, end = (math.log(n.alpha / n.sigma) for n in (r1, r0, t, s))
        # y as corrected by UniC-1 on its way
        half = 0.5 * b(lam0 - lam1) * r0.alpha
        base = y + half * (m0 - m1)
        h = lam - lam0
        ratio = (lam1 - lam0) / h
        # phi_k(-h) with phi_0 = exp(-h), phi_{k+1} = (phi_k - 1 / k!) / (-h)
        phi1 = (math.exp(-h) - 1.0) / -h
        phi2 = (phi1 - 1.0) / -h
        phi3 = (phi2 - 0.5) / -h
        # sum_m rho_m r_m^(k-1) = h k! phi_{k+1} / B for k = 1, 2
        rho = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [h * phi2 / b(h), 2.0 * h * phi3 / b(h)])
        corrected = t.sigma / r0.sigma * base + t.alpha * h * phi1 * m0
        corrected = corrected + t.alpha * b(h) * (rho[0] / ratio * (m1 - m0) + rho[1] * (m - m0))
        g = end - lam
        part = (lam0 - lam) / g
        expected = s.sigma / t.sigma * corrected + s.alpha * (1.0 - math.exp(-g)) * m
        expected = expected + s.alpha * b(g) * 0.5 / part * (m0 - m)
        assert (out - expected).abs().max() < 1e-12


def test_the_midpoints_are_the_published_steps() -> None:
    oracle, x = Line(), randn(5, 1)
    for schedule in SCHEDULES.values():
        _, _, _, t, s = four(schedule)
        lam = [math.log(n.alpha / n.sigma) for n in (t, s)]
        h, middle = lam[1] - lam[0], schedule.at(lam[0] + lam[1])
        u = middle.alpha / t.alpha * x - middle.sigma * math.expm1(0.5 * h) * oracle(x, t).eps
        one = s.alpha / t.alpha * x - s.sigma * math.expm1(h) * oracle(u, middle).eps
        two = s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * oracle(u, middle).x0
        memory = Memory(refuse)
        assert (dpm_solver_2(schedule)(oracle, x, t, s, memory) - one).abs().max() < 1e-10
        assert (dpm_solver_pp_2s(schedule)(oracle, x, t, s, memory) - two).abs().max() < 1e-10


def test_rotation_is_exact_for_gaussian_data_of_its_scale() -> None:
    oracle, schedule = gaussian(0.0, 0.6, (2,)), SCHEDULES["flow"]
    x = randn(5, 2)
    found = last(sample(oracle, x, grids.uniform(schedule, 3), _ab(Adams(Rotation(0.6)), 1)))
    t = schedule(1 / 3)
    # the first two steps are exact, the last is that of DDIM
    y = oracle.flow(x, schedule(1.0), t)
    assert (found - oracle(y, t).x0).abs().max() < 1e-12


EVERYWHERE = SCHEDULES | {
    "table": schedules.linear(1000),
    "cosine": schedules.cosine(1000),
    "zero": schedules.zero_terminal_snr(schedules.linear(1000)),
}
DETERMINISTIC: dict[str, Callable[[Schedule], Any]] = {
    **{name: make for name, (make, _) in STEPS.items()},
    "rotation_corrected": lambda s: partial(multistep, rule=Adams(Rotation()), order=4, corrector=4),
    "time_corrected": lambda s: partial(multistep, rule=Adams(PredictedNoise(), time_of(s)), order=3, corrector=3),
}


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("step", DETERMINISTIC)
def test_every_step_works_on_every_schedule_with_few_steps_and_draws_no_noise(name: str, step: str) -> None:
    schedule, oracle = EVERYWHERE[name], gaussian(shape=(3,))
    x = initial(grids.uniform(schedule, 1), (3,), 0, count=4)
    exact = oracle.flow(x, schedule(1.0), schedule(0.0))
    for levels in (
        *(grids.uniform(schedule, n) for n in (1, 2, 3, 5)),
        grids.karras(schedule, 4, 0.02, min(schedule(1.0).noise_to_signal, 50.0)),
    ):
        found = last(sample(oracle, x, levels, DETERMINISTIC[step](schedule), noise=refuse))
        assert found.isfinite().all() and found.dtype == x.dtype
    found = last(sample(oracle, x, grids.uniform(schedule, 100), DETERMINISTIC[step](schedule), noise=refuse))
    assert (found - exact).abs().max() < 0.05


@pytest.mark.parametrize("step", DETERMINISTIC)
def test_no_tensor_that_is_still_needed_is_written_over(step: str) -> None:
    schedule = schedules.ContinuousLinear()
    levels, x = grids.uniform(schedule, 8), randn(4, 1).float()
    before, kept = x.clone(), []
    for frame in sample(Line(), x, levels, DETERMINISTIC[step](schedule), previews=True):
        kept.append((frame.x, frame.x.clone(), frame.x0, frame.x0.clone()))  # type: ignore[union-attr]
    again = last(sample(Line(), x, levels, DETERMINISTIC[step](schedule)))
    assert torch.equal(again, kept[-1][0]) and torch.equal(x, before)
    assert all(torch.equal(a, b) and torch.equal(c, d) for a, b, c, d in kept)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lms(5), "order from 1 to 4"),
        (lambda: unipc(0), "order from 1 to 3"),
        (lambda: unipc(4), "order from 1 to 3"),
        (lambda: lms(2, final_order=0), "step to the data"),
        (lambda: PredictedData(-1.0), "tau"),
        (lambda: PredictedData(1.0, 2.0, 1.0), "low < high"),
        (lambda: Rotation(0.0), "must be positive"),
        # of a function, when a step is taken
        (lambda: taken(partial(heun, final_order=7)), "step to the data"),
        (lambda: taken(partial(dpm_solver_pp(2), final_order=7)), "step to the data"),
    ],
)
def test_bad_orders_and_coordinates(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def taken(step: Any) -> torch.Tensor:
    return last(sample(Line(), torch.zeros(1, 1), grids.uniform(schedules.linear(100), 3), step))
