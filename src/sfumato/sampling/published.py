"""Solvers by the names they were published with: multistep ones, single-step ones, and predictor-corrector sampling."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling.coordinates import Coordinate, PredictedData, PredictedNoise, Rotation, half_log_snr, time_of
from sfumato.sampling.multistep import Adams, Unified, multistep
from sfumato.sampling.sample import Memory, Predict, Step
from sfumato.sampling.steps import ancestral, at_an_end, check_final_order


def _solver(rule: Adams, order: int, corrector: int = 0, final_order: int | None = None, highest: int = 4) -> Step:
    if not 1 <= order <= highest or not 0 <= corrector <= 4:
        raise InputError(
            f"This multistep solver has an order from 1 to {highest} and a corrector from 0 (none) to 4; "
            f"got {order} and {corrector}."
        )
    if final_order is not None:
        check_final_order(final_order)
    return partial(multistep, rule=rule, order=order, corrector=corrector, final_order=final_order)


def dpm_solver_pp(order: int = 2, final_order: int | None = None) -> Step:
    r"""DPM-Solver++, multistep (Lu et al. 2022): predicted data, a polynomial of log-SNR; one evaluation per step.

    Order 2 is algorithm 2: with :math:`h = \lambda_s - \lambda_t` in :math:`\lambda = \log(\alpha / \sigma)`, and the
    ratio :math:`r` of the step before to this one, :math:`x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s (e^{-h} - 1)
    \left((1 + \frac{1}{2r}) \hat x_0^{(t)} - \frac{1}{2r} \hat x_0^{(\text{before})}\right)`. At order 3 the polynomial
    is integrated exactly; diffusers 0.42 counts half of its quadratic term, which makes it a method of order 2.

    Args:
        order: how many predictions are extrapolated, from 1 to 4; the paper goes to 3.
        final_order: how many predictions the step to the data extrapolates; the order when not given, 1 as published.
    """
    return _solver(Unified(), order, 0, final_order)


def unipc(
    order: int = 3, b: Literal["bh1", "bh2"] = "bh2", corrector: bool = True, final_order: int | None = None
) -> Step:
    """UniPC (Zhao et al. 2023, algorithms 5 to 8): predictor UniP and corrector UniC, one evaluation per step.

    Args:
        order: how many predictions are extrapolated, from 1 to 3.
        b: the function B(h): bh1 is h, bh2 is 1 - exp(-h).
        corrector: whether a new prediction also corrects the step before, which raises the order by one.
        final_order: how many predictions the step to the data extrapolates; the order when not given, 1 as published.
    """
    return _solver(Unified(b=b), order, order if corrector else 0, final_order, highest=3)


def lms(order: int = 4, final_order: int | None = None) -> Step:
    """The linear multistep method of k-diffusion (Katherine Crowson): predicted noise, a polynomial of sigma / alpha.

    Args:
        order: how many predictions are extrapolated, from 1 to 4.
        final_order: how many predictions the step to the data extrapolates; the order when not given.
    """
    return _solver(Adams(PredictedNoise()), order, 0, final_order)


def deis(schedule: Schedule, order: int = 3, final_order: int | None = None) -> Step:
    """DEIS (tAB-DEIS, Zhang and Chen 2023, sec. 3.3): predicted noise, a polynomial of time.

    Args:
        order: how many predictions are extrapolated, from 1 to 4.
        final_order: how many predictions the step to the data extrapolates; the order when not given.
    """
    return _solver(Adams(PredictedNoise(), time_of(schedule)), order, 0, final_order)


def exponential_adams(
    schedule: Schedule,
    data_std: float,
    coordinate: Literal["noise", "data", "rotation"] = "rotation",
    scale: float | None = None,
    variable: Literal["natural", "log_snr", "time"] = "log_snr",
    order: int = 3,
    corrector: int = 0,
    final_order: int | None = None,
) -> Step:
    """Exponential Adams methods in any coordinate, a family that includes DDIM, LMS, DEIS and DPM-Solver++.

    Args:
        coordinate: the prediction that is extrapolated: the noise, the data, or a rotation of both (as in v).
        scale: the scale of the data in the rotation; the standard deviation of the data when not given.
        variable: the variable of the polynomial: the natural one of the coordinate, log-SNR, or time.
        order: how many predictions are extrapolated, from 1 to 4.
        corrector: how many earlier predictions correct a step once its end is predicted, from 0 (none) to 4.
        final_order: how many predictions the step to the data extrapolates; the order when not given, 1 is DDIM.
    """
    rotation = Rotation(data_std if scale is None else scale)
    kinds: dict[str, Coordinate] = {"noise": PredictedNoise(), "data": PredictedData(), "rotation": rotation}
    variables = {"natural": None, "log_snr": half_log_snr, "time": time_of(schedule)}
    return _solver(Adams(kinds[coordinate], variables[variable]), order, corrector, final_order)


def sde_dpm_solver_pp(order: int = 2, eta: float = 1.0) -> Step:
    r"""SDE-DPM-Solver++ of order 2 (2M; Lu et al. 2022, eq. 14) or 3 (3M): stochastic, one evaluation per step.

    Args:
        order: how many predictions are extrapolated, from 1 to 3.
        eta: the amount of noise: 0 is deterministic, 1 the reverse diffusion.
    """
    if not 0.0 <= eta < math.inf:
        raise InputError(f"The eta of SDE-DPM-Solver++ is at least 0; got {eta}.")
    return _solver(Unified(PredictedData(math.sqrt(eta))), order, highest=3)


def sa_solver(order: int = 3, corrector: int = 3, tau: float = 1.0, low: float = 0.05, high: float = 1.0) -> Step:
    """SA-Solver (Xue et al. 2023): stochastic Adams predictor and corrector, one evaluation per step.

    Args:
        order: how many predictions the predictor extrapolates, from 1 to 4.
        corrector: how many earlier predictions correct a step once its end is predicted, from 0 (none) to 4.
        tau: the amount of noise; 0 is the probability flow.
        low: the least sigma / alpha with noise.
        high: the greatest sigma / alpha with noise.
    """
    return _solver(Adams(PredictedData(tau, low, high), half_log_snr), order, corrector)


def dpm_solver_2(schedule: Schedule) -> Step:
    """DPM-Solver-2 (Lu et al. 2022, DPM-Solver, algorithm 1): second order, two predictions of the noise per step."""
    return partial(_midpoint, coordinate=PredictedNoise(), schedule=schedule)


def dpm_solver_pp_2s(schedule: Schedule) -> Step:
    """DPM-Solver++(2S) (Lu et al. 2022, algorithm 1): second order, two predictions of the data per step."""
    return partial(_midpoint, coordinate=PredictedData(), schedule=schedule)


def _midpoint(
    denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory, *, coordinate: Coordinate, schedule: Schedule
) -> Tensor:
    r"""A step with the prediction in its middle, at :math:`(\lambda_t + \lambda_s) / 2`, reached by a step of DDIM."""
    first = denoise(x, t)
    ended = at_an_end(first, t, s, memory, 2)
    if ended is not None:
        return ended
    middle = schedule.at(0.5 * (t.log_snr + s.log_snr))
    second = denoise(first.mix(middle.alpha, middle.sigma), middle)
    return x.mul(coordinate.carry(t, s)).add_(second.mix(*coordinate.prediction(middle)), alpha=coordinate.total(t, s))


def dpm_solver_pp_3s(denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory, *, schedule: Schedule) -> Tensor:
    r"""DPM-Solver++(3S) (Lu et al. 2022): third order, three predictions of the data per step.

    The predictions are made at the start, at one third and at two thirds of the step in log-SNR. One third is reached
    by a step of DDIM, two thirds with the data linear in log-SNR through the first two predictions, and the end with
    the line through the first and the last.
    """
    first = denoise(x, t)
    ended = at_an_end(first, t, s, memory, 3)
    if ended is not None:
        return ended
    x0, rise, line = first.x0, s.log_snr - t.log_snr, Adams(PredictedData(), half_log_snr)
    one, two = (schedule.at(t.log_snr + part * rise) for part in (1.0 / 3.0, 2.0 / 3.0))

    def linear(other: Tensor, level: Level, end: Level) -> Tensor:
        of_start, of_other = line([t, level], t, end)
        return x.mul(line.coordinate.carry(t, end)).add_(x0, alpha=of_start).add_(other, alpha=of_other)

    second = denoise(first.mix(one.alpha, one.sigma), one).x0
    third = denoise(linear(second, one, two), two).x0
    return linear(third, two, s)


def predictor_corrector(
    denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory, *, corrections: int = 1, snr: float = 0.16
) -> Tensor:
    r"""Predictor-corrector (Y. Song et al. 2021, algorithm 1): ancestral steps, each followed by Langevin steps.

    .. math::
        x \leftarrow x + \delta \nabla_x \log q_s(x) + \sqrt{2 \delta}\; z, \qquad \delta = 2 r^2 \sigma_s^2

    with the score :math:`-\hat\epsilon / \sigma_s`; none at the data. The published :math:`\delta`, :math:`2 (r \lVert
    z \rVert / \lVert \nabla \log q \rVert)^2`, takes norms over the batch, so that an image would depend on the
    others in its batch; here the norm of the score is its expectation for pure noise, :math:`\sqrt D / \sigma_s`.

    Args:
        corrections: number of Langevin steps after each step, with one evaluation each.
        snr: the signal-to-noise ratio r of a Langevin step, above 0 and below 0.7.
    """
    if corrections < 0 or not 0.0 < snr < 0.7:
        raise InputError(
            f"Langevin needs corrections of at least 0 and snr between 0 and 0.7; got {corrections} and {snr}."
        )
    x = ancestral(denoise, x, t, s, memory)
    delta = 2.0 * snr * snr * float(s.sigma) ** 2
    for _ in range(corrections if delta > 0.0 else 0):
        moved = x.add(denoise(x, s).eps, alpha=-delta / float(s.sigma))
        x = moved.add_(memory.noise(x), alpha=math.sqrt(2.0 * delta))
    return x
