"""Weights of the training loss: functions of the level that multiply the squared error of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sfumato.diffusion.gaussian import posterior_coefficients, transition
from sfumato.diffusion.level import Level, Scalar, any_zero
from sfumato.diffusion.parameterization import Parameterization, positive_std
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.diffusion.variance import floor, floored
from sfumato.errors import InputError

Weight = Callable[[Level], Scalar]
r"""A weight :math:`w` on the squared error of :math:`\hat\epsilon`, or :math:`w\, \mathrm{SNR}` on that of the data."""


def simple(level: Level) -> Scalar:
    r""":math:`w = 1`: :math:`L_{\text{simple}}` of Ho et al. 2020, eq. 14."""
    return 1.0


def edm_weight(sigma_data: float | None = None) -> Weight:
    r"""The weight of EDM, under which the error of the network's output counts the same at every level.

    It is :math:`(\hat\sigma^2 + \sigma_d^2) / (\hat\sigma \sigma_d)^2` on the error of the data (Karras et al. 2022).

    Args:
        sigma_data: standard deviation of the data; measured if not given.
    """
    std = positive_std(sigma_data)

    def weight(level: Level) -> Scalar:
        ratio = level.noise_to_signal / std
        return 1.0 + ratio * ratio

    return weight


@dataclass(frozen=True, slots=True)
class OutputWeight:
    r"""The squared error of the network's output itself: :math:`w = 1 / d^2`, since :math:`\hat\epsilon = c x + d F`.

    With v it is the loss of Salimans and Ho 2022, with velocity that of flow matching. Losses compute the output error
    directly, since at :math:`\alpha = 0` the noise error vanishes and the weight is infinite.
    """

    parameterization: Parameterization

    def __call__(self, level: Level) -> Scalar:
        d = self.parameterization(level).d
        return 1.0 / (d * d)


def vlb(schedule: Schedule, variance: Literal["small", "large"] = "small") -> Weight:
    r"""The weight that turns the loss into the term :math:`L_{t-1}` of the variational bound, in nats per dimension.

    .. math::
        \lambda_t = \frac{\beta_t^2}{2 \sigma_t^2 (1 - \beta_t)(1 - \bar\alpha_t)}

    (Ho et al. 2020, eq. 12), which between any ``t`` and ``s`` is
    :math:`\sigma_{t|s}^4 / (2 \Sigma\, \alpha_{t|s}^2 \sigma_t^2)`. In the step to the data, whose small
    variance is zero, it is the variance of the step before.

    Args:
        variance: the reverse variance of the bound, small (beta-tilde) or large (beta).
    """
    if not isinstance(schedule, Discrete):
        raise InputError("The weight vlb needs the steps of a table of betas; use vlb_continuous for this schedule.")
    lowest = floor(schedule.last_steps())

    def weight(level: Level) -> Scalar:
        _require_signal(level)
        s = schedule.previous(level)
        scale, beta = transition(level, s)
        reverse = beta if variance == "large" else floored(posterior_coefficients(level, s)[2], s, lowest)
        return beta * beta / (2.0 * reverse * scale * scale * level.sigma * level.sigma)

    return weight


def vlb_continuous(schedule: Schedule) -> Weight:
    r"""The weight of the variational bound in continuous time, :math:`w = -\tfrac12 \frac{d\lambda}{dt}`.

    (Kingma et al. 2021, eq. 15.) With uniform times the loss is the diffusion part of the bound, in nats per
    dimension. The weight is the limit of :math:`T \lambda_t` of :func:`vlb`.
    """

    def weight(level: Level) -> Scalar:
        _require_signal(level)
        return -0.5 * schedule.slope(level.t)

    return weight


def sigmoid_weight(schedule: Schedule, bias: float = 2.0) -> Weight:
    r"""The bound weighted by a sigmoid: :math:`w = -\tfrac12 \frac{d\lambda}{dt}\, \varsigma(b - \lambda)`.

    Here :math:`\lambda` is the log-SNR (Kingma and Gao 2023; meant for uniform times).

    Args:
        bias: the log-SNR b at which the sigmoid is one half.
    """
    bound = vlb_continuous(schedule)
    return lambda level: bound(level) / (1.0 + _snr(level) * math.exp(-bias))


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    r"""Perception prioritized weighting, :math:`w = (k + \mathrm{SNR})^{-\gamma}` (Choi et al. 2022).

    Args:
        k: the constant added to the signal-to-noise ratio.
        gamma: the exponent; the larger, the less weight near the data.
    """
    if k <= 0.0 or gamma < 0.0:
        raise InputError(f"P2 weighting needs k > 0 and gamma >= 0; got {k} and {gamma}.")
    return lambda level: (k + _snr(level)) ** -gamma


def min_snr(gamma: float = 5.0) -> Weight:
    r"""Min-SNR weighting (Hang et al. 2023): :math:`\min(\mathrm{SNR}, \gamma)` on the error of the data.

    Args:
        gamma: the signal-to-noise ratio above which the weight of the noise error falls.
    """
    _require_positive(gamma)

    def weight(level: Level) -> Scalar:
        # min(1, gamma / SNR), which is finite at SNR = 0
        snr = _snr(level)
        return gamma / (snr.clamp(min=gamma) if isinstance(snr, Tensor) else max(snr, gamma))

    return weight


def soft_min_snr(gamma: float = 4.0) -> Weight:
    r"""Soft min-SNR weighting, :math:`\gamma / (\mathrm{SNR} + \gamma)` (Crowson et al. 2024).

    Args:
        gamma: the signal-to-noise ratio at which the weight of the noise error is one half.
    """
    _require_positive(gamma)
    return lambda level: gamma / (_snr(level) + gamma)


def _snr(level: Level) -> Scalar:
    ratio = level.alpha / level.sigma
    return ratio * ratio


def _require_positive(gamma: float) -> None:
    if gamma <= 0.0:
        raise InputError(f"The gamma of min-SNR weighting is a signal-to-noise ratio, above 0; got {gamma}.")


def _require_signal(level: Level) -> None:
    if any_zero(level.alpha):
        raise InputError("This weight of the noise error is infinite where alpha = 0; use the weight output there.")
