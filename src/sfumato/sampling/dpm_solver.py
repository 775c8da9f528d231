"""DPM-Solver and DPM-Solver++ of order 2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.sampling.coordinate import Coordinate, Data, Noise
from sfumato.sampling.ending import remember, to_data
from sfumato.sampling.multistep import Unified, multistep
from sfumato.sampling.sample import Memory, Step

_PLUS_PLUS = Unified()


def dpm_solver_pp_2m(
    denoise: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level, memory: Memory, *, ending: int = 2
) -> Tensor:
    r"""The second-order multistep of DPM-Solver++ (Lu et al. 2022, algorithm 2), one evaluation of the denoiser.

    With :math:`\lambda = \log(\alpha / \sigma)`, :math:`h = \lambda_s - \lambda_t`, the ratio :math:`r` of the step
    before to this one, :math:`D = (1 + \frac{1}{2r}) \hat x_0^{(t)} - \frac{1}{2r} \hat x_0^{(\text{before})}` and

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s (e^{-h} - 1) D.

    The first step is first order, which is DDIM. So is the one that ends at the data with ``ending=1``, as published;
    see :func:`~sfumato.sampling.ending.to_data`.
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
    data is left; one in the step to the data (:func:`~sfumato.sampling.ending.to_data`).

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
