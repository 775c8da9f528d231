"""DPM-Solver of order 2, and DPM-Solver++ of orders 2 and 3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.sampling.coordinates import Coordinate, Data, Noise, half_log_snr
from sfumato.sampling.final_step import remember, to_data
from sfumato.sampling.multistep import Adams, Unified, multistep
from sfumato.sampling.sample import Memory, Step

_PLUS_PLUS = Unified()
_LINEAR = Adams(Data(), half_log_snr)


def dpm_solver_pp_2m(
    denoise: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level, memory: Memory, *, ending: int = 2
) -> Tensor:
    r"""The second-order multistep of DPM-Solver++ (Lu et al. 2022, algorithm 2), one evaluation of the denoiser.

    With :math:`\lambda = \log(\alpha / \sigma)`, :math:`h = \lambda_s - \lambda_t`, the ratio :math:`r` of the step
    before to this one, :math:`D = (1 + \frac{1}{2r}) \hat x_0^{(t)} - \frac{1}{2r} \hat x_0^{(\text{before})}` and

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s (e^{-h} - 1) D.

    The first step is first order, which is DDIM. So is the one that ends at the data with ``ending=1``, as published;
    see :func:`~sfumato.sampling.final_step.to_data`.
    """
    return multistep(denoise, x, t, s, memory, rule=_PLUS_PLUS, order=2, ending=ending)


def dpm_solver_2(schedule: Schedule, ending: int = 2) -> Step:
    """DPM-Solver-2 (Lu et al. 2022, DPM-Solver, algorithm 1): the :func:`midpoint` of the predicted noise."""
    return partial(midpoint, coordinate=Noise(), schedule=schedule, ending=ending)


def dpm_solver_pp_2s(schedule: Schedule, ending: int = 2) -> Step:
    """DPM-Solver++(2S) (Lu et al. 2022, DPM-Solver++, algorithm 1): the :func:`midpoint` of the predicted data."""
    return partial(midpoint, coordinate=Data(), schedule=schedule, ending=ending)


def midpoint(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    coordinate: Coordinate,
    schedule: Schedule,
    ending: int = 2,
) -> Tensor:
    r"""A step with the prediction in its middle, at :math:`(\lambda_t + \lambda_s) / 2`; two evaluations.

    The middle is reached by a step of DDIM. One evaluation, and first order, in a step that starts where nothing of the
    data is left; one in the step to the data (:func:`~sfumato.sampling.final_step.to_data`).

    Args:
        coordinate: what is predicted.
        schedule: where the level in the middle is found.
        ending: how many predictions the step to the data extrapolates, at most; 1 as published.

    Raises:
        InputError: if ``ending`` is out of range.
    """
    first = denoise(x, t)
    estimates = remember(memory, t, first, ending)
    if s.sigma == 0.0:
        return to_data(estimates, s, ending)
    if t.alpha == 0.0:
        return first.mix(s.alpha, s.sigma)
    middle = schedule.at(0.5 * (t.log_snr + s.log_snr))
    second = denoise(first.mix(middle.alpha, middle.sigma), middle)
    carry, total = coordinate.carry(t, s), coordinate.total(t, s)
    k0, k_eps = coordinate.prediction(middle)
    return x.mul(carry).add_(second.mix(k0, k_eps), alpha=total)


def dpm_solver_pp_3s(schedule: Schedule, ending: int = 3) -> Step:
    """The single-step DPM-Solver++ of order 3 (Lu et al. 2022, DPM-Solver++): the :func:`thirds` of a step."""
    return partial(thirds, schedule=schedule, ending=ending)


def thirds(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    schedule: Schedule,
    ending: int = 3,
) -> Tensor:
    r"""A step with the predicted data at its start, one third and two thirds of it in log-SNR; three evaluations.

    One third is reached by a step of DDIM. Two thirds are reached with the data linear in log-SNR through the first two
    predictions, and the end with the line through the first and the last. One evaluation, and first order, in a step
    that starts where nothing of the data is left; one in the step to the data
    (:func:`~sfumato.sampling.final_step.to_data`).

    Args:
        schedule: where the levels in between are found.
        ending: how many predictions the step to the data extrapolates, at most; 1 as published.

    Raises:
        InputError: if ``ending`` is out of range.
    """
    first = denoise(x, t)
    estimates = remember(memory, t, first, ending)
    if s.sigma == 0.0:
        return to_data(estimates, s, ending)
    if t.alpha == 0.0:
        return first.mix(s.alpha, s.sigma)
    x0, rise = first.x0, s.log_snr - t.log_snr
    one, two = (schedule.at(t.log_snr + part * rise) for part in (1.0 / 3.0, 2.0 / 3.0))

    def along(other: Tensor, level: Level, end: Level) -> Tensor:
        own, its = _LINEAR([t, level], t, end)
        return x.mul(_LINEAR.coordinate.carry(t, end)).add_(x0, alpha=own).add_(other, alpha=its)

    second = denoise(first.mix(one.alpha, one.sigma), one).x0
    third = denoise(along(second, one, two), two).x0
    return along(third, two, s)
