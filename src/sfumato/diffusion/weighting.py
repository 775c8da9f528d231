"""Weightings of the training loss: functions of the level, on the squared error of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.gaussian import posterior_coefficients, transition
from sfumato.diffusion.level import Level, Scalar
from sfumato.diffusion.parameterization import Parameterization
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.diffusion.variance import floor, floored
from sfumato.errors import InputError

Weight = Callable[[Level], Scalar]
r"""A weighting: a function of the level, on the squared error of :math:`\hat\epsilon`.

Since :math:`\alpha (\hat x_0 - x_0) = -\sigma (\hat\epsilon - \epsilon)`, a weight :math:`w` of the noise error is the
weight :math:`w\, \mathrm{SNR}` of the data error.
"""


@dataclass(frozen=True, slots=True)
class OfDenoiser:
    """A weighting that depends on the schedule or the parameterization: known once the denoiser is.

    Attributes:
        make: the weighting for a denoiser.
    """

    make: Callable[[Denoiser], Weight]


def simple(level: Level) -> Scalar:
    r""":math:`w = 1`: :math:`L_{\text{simple}}` of Ho et al. 2020, eq. 14."""
    return 1.0


def edm_weight(sigma_data: float) -> Weight:
    r"""The weight of EDM, which makes the error of the network's output count alike at every level.

    On the error of :math:`\hat x_0` it is :math:`(\hat\sigma^2 + \sigma_d^2) / (\hat\sigma \sigma_d)^2`
    (Karras et al. 2022, table 1); since :math:`\hat\epsilon - \epsilon = -(\hat x_0 - x_0) / \hat\sigma`,
    on the error of :math:`\hat\epsilon` it is
    :math:`(\hat\sigma^2 + \sigma_d^2) / \sigma_d^2`.
    """
    return partial(_edm_weight, sigma_data=sigma_data)


def _edm_weight(level: Level, sigma_data: float) -> Scalar:
    ratio = level.noise_to_signal / sigma_data
    return 1.0 + ratio * ratio


@dataclass(frozen=True, slots=True)
class OutputWeight:
    r"""Every error of the network's own output counts alike: :math:`w = 1 / d^2` as :math:`\hat\epsilon = c x + d F`.

    With v or velocity it is the loss of Salimans and Ho 2022 or of flow matching, :math:`\lVert F - F^* \rVert^2`,
    which also means something at :math:`\alpha = 0`: there the noise error vanishes and the weight is infinite.
    """

    parameterization: Parameterization

    def __call__(self, level: Level) -> Scalar:
        d = self.parameterization(level).d
        return 1.0 / (d * d)


def vlb(schedule: Schedule, *, large: bool = False) -> Weight:
    r"""The weight that makes the loss the term :math:`L_{t-1}` of the variational bound, in nats per dimension.

    .. math::
        \lambda_t = \frac{\beta_t^2}{2 \sigma_t^2 (1 - \beta_t)(1 - \bar\alpha_t)}

    (Ho et al. 2020, eq. 12), which between any ``t`` and ``s`` is
    :math:`\sigma_{t|s}^4 / (2 \Sigma\, \alpha_{t|s}^2 \sigma_t^2)`; ``s`` is one step of the table nearer to the data.
    The small variance of the step to the data is zero; that of the step before stands in its place.

    Args:
        schedule: a table of betas.
        large: whether the reverse variance is :math:`\beta_t` and not :math:`\tilde\beta_t`.

    Raises:
        InputError: for a schedule without steps, and where :math:`\alpha = 0`.
    """
    if not isinstance(schedule, Discrete):
        raise InputError("The weight vlb needs the steps of a table of betas; use vlb_continuous for this schedule.")
    return partial(_vlb, schedule=schedule, lowest=floor(schedule.last_steps()), large=large)


def _vlb(level: Level, schedule: Discrete, lowest: float, large: bool) -> Scalar:
    _require_signal(level)
    s = schedule.previous(level)
    scale, forward = transition(level, s)
    variance = forward if large else floored(posterior_coefficients(level, s)[2], s, lowest)
    return forward * forward / (2.0 * variance * scale * scale * level.sigma * level.sigma)


def vlb_continuous(schedule: Schedule) -> Weight:
    r"""The weight of the variational bound in continuous time, :math:`w = -\tfrac12 \frac{d\lambda}{dt}`.

    (Kingma et al. 2021, eq. 15, there on the error of the data.)

    Under uniform times the loss is the diffusion part of the bound as a whole, in nats per dimension: the limit of
    :math:`T \lambda_t` of :func:`vlb`.
    """
    return partial(_sigmoid, schedule=schedule, bias=math.inf)


def sigmoid_weight(schedule: Schedule, bias: float = 2.0) -> Weight:
    r"""The bound weighted by a sigmoid: :math:`w = -\tfrac12 \frac{d\lambda}{dt}\, \varsigma(b - \lambda)`.

    Here :math:`\lambda` is the log-SNR (Kingma and Gao 2023; meant for uniform times).
    """
    return partial(_sigmoid, schedule=schedule, bias=bias)


def _sigmoid(level: Level, schedule: Schedule, bias: float) -> Scalar:
    _require_signal(level)
    slope = -0.5 * schedule.slope(level.t)
    if math.isinf(bias):
        return slope
    return slope / (1.0 + _snr(level) * math.exp(-bias))


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    r"""Perception prioritized weighting, :math:`w = (k + \mathrm{SNR})^{-\gamma}` (Choi et al. 2022).

    Raises:
        InputError: if ``k`` is not positive or ``gamma`` negative.
    """
    if k <= 0.0 or gamma < 0.0:
        raise InputError(f"P2 weighting needs k > 0 and gamma >= 0; got {k} and {gamma}.")
    return lambda level: (k + _snr(level)) ** -gamma


def min_snr(gamma: float = 5.0) -> Weight:
    r"""Min-SNR weighting (Hang et al. 2023): :math:`\min(\mathrm{SNR}, \gamma)` on the error of the data.

    On the error of the noise it is :math:`\min(1, \gamma / \mathrm{SNR})`.

    Raises:
        InputError: if ``gamma`` is not positive.
    """
    _require_positive(gamma)
    # gamma / max(SNR, gamma), which is finite at SNR = 0
    return lambda level: gamma / _at_least(_snr(level), gamma)


def soft_min_snr(gamma: float = 4.0) -> Weight:
    r"""Soft min-SNR weighting (Crowson et al. 2024): the min of min-SNR made smooth.

    On the error of the data it is :math:`(\mathrm{SNR}^{-1} + \gamma^{-1})^{-1}`, on that of the noise
    :math:`\gamma / (\mathrm{SNR} + \gamma)`.

    Raises:
        InputError: if ``gamma`` is not positive.
    """
    _require_positive(gamma)
    return lambda level: gamma / (_snr(level) + gamma)


def _snr(level: Level) -> Scalar:
    ratio = level.alpha / level.sigma
    return ratio * ratio


def _at_least(value: Scalar, least: float) -> Scalar:
    return value.clamp(min=least) if isinstance(value, Tensor) else max(value, least)


def _require_positive(gamma: float) -> None:
    if gamma <= 0.0:
        raise InputError(
            f"The gamma of min-SNR weighting is a signal-to-noise ratio and must be positive; got {gamma}."
        )


def _require_signal(level: Level) -> None:
    none = bool((level.alpha == 0.0).any()) if isinstance(level.alpha, Tensor) else level.alpha == 0.0
    if none:
        raise InputError("This weight of the noise error is infinite where alpha = 0; use the weight output there.")
