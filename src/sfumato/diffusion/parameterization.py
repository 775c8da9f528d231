"""What the network's output means: one 2x2 matrix per level instead of pairwise conversions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level, Scalar, any_zero, sqrt
from sfumato.errors import InputError


@dataclass(slots=True)
class Output:
    r"""How to read a network at one level.

    The network receives :math:`c_{in} x` and returns :math:`F`; then :math:`\hat x_0 = a x + b F` and
    :math:`\hat\epsilon = c x + d F`. Every parameterization satisfies :math:`\alpha a + \sigma c = 1` and
    :math:`\alpha b + \sigma d = 0`, because :math:`x = \alpha \hat x_0 + \sigma \hat\epsilon`.
    """

    c_in: Scalar
    a: Scalar
    b: Scalar
    c: Scalar
    d: Scalar


Parameterization = Callable[[Level], Output]


def _input_scale(level: Level) -> Scalar:
    r"""Keeps inputs from growing with the noise: 1 unless :math:`\alpha^2 + \sigma^2 > 1`."""
    norm = _square_norm(level)
    if isinstance(norm, Tensor):
        return norm.clamp(min=1.0).rsqrt()
    return 1.0 if norm < 1.0 + 1e-9 else 1.0 / sqrt(norm)


def _square_norm(level: Level) -> Scalar:
    return level.alpha * level.alpha + level.sigma * level.sigma


def eps(level: Level) -> Output:
    r"""The network predicts the noise: :math:`\hat\epsilon = F` (Ho et al. 2020, sec. 3.2)."""
    _require_signal(level, "noise")
    return Output(_input_scale(level), 1.0 / level.alpha, -level.sigma / level.alpha, 0.0, 1.0)


def score(level: Level) -> Output:
    r"""The network predicts the score :math:`F = -\hat\epsilon / \sigma` (Y. Song et al. 2021, sec. 3.3)."""
    _require_signal(level, "score")
    sigma = level.sigma
    return Output(_input_scale(level), 1.0 / level.alpha, sigma * sigma / level.alpha, 0.0, -sigma)


def _require_signal(level: Level, kind: str) -> None:
    if any_zero(level.alpha):
        raise InputError(
            f"A {kind} prediction says nothing about the data where alpha = 0, at the end of this schedule; "
            "use v, x0, velocity or mean."
        )


def x0(level: Level) -> Output:
    r"""The network predicts the data: :math:`\hat x_0 = F`."""
    return Output(_input_scale(level), 0.0, 1.0, 1.0 / level.sigma, -level.alpha / level.sigma)


def regression(level: Level) -> Output:
    r"""The network predicts the data from the conditions alone, :math:`\hat x_0 = F`, and does not see :math:`x`.

    The same network as for diffusion, trained by the squared error: the baseline of Saharia et al. 2021.
    """
    return replace(x0(level), c_in=0.0)


def v(level: Level) -> Output:
    r"""The network predicts :math:`v = \alpha \epsilon - \sigma x_0` (Salimans and Ho 2022, app. D)."""
    norm = _square_norm(level)
    return Output(_input_scale(level), level.alpha / norm, -level.sigma / norm, level.sigma / norm, level.alpha / norm)


def velocity(level: Level) -> Output:
    r"""The network predicts :math:`F = \epsilon - x_0`, the direction of rectified flow (Liu et al. 2023, eq. 1).

    :math:`\hat x_0 = (x - \sigma F) / (\alpha + \sigma)` and :math:`\hat\epsilon = (x + \alpha F) / (\alpha + \sigma)`.
    """
    total = level.alpha + level.sigma
    return Output(_input_scale(level), 1.0 / total, -level.sigma / total, 1.0 / total, level.alpha / total)


def mean(previous: Callable[[Level], Level]) -> Parameterization:
    r"""The network predicts the mean of the posterior of one step, :math:`F = k_0 \hat x_0 + k_t x`.

    (Ho et al. 2020, sec. 3.2.) The coefficients are those of :func:`~sfumato.diffusion.gaussian.posterior` from ``t``
    to ``s = previous(t)``, where ``previous`` is for example ``schedule.previous`` of a table.
    """

    def coefficients(level: Level) -> Output:
        k0, kt, _ = posterior_coefficients(level, previous(level))
        scale = k0 * level.sigma
        return Output(_input_scale(level), -kt / k0, 1.0 / k0, (k0 + level.alpha * kt) / scale, -level.alpha / scale)

    return coefficients


def edm(sigma_data: float | None = None) -> Parameterization:
    r"""The preconditioning of EDM (Karras et al. 2022, table 1), for any :math:`\alpha`.

    In the coordinates of EDM, :math:`\hat\sigma = \sigma / \alpha` and :math:`\hat x = x / \alpha`,

    .. math::
        c_{skip} = \frac{\sigma_d^2}{\hat\sigma^2 + \sigma_d^2}, \qquad
        c_{out} = \frac{\hat\sigma \sigma_d}{\sqrt{\hat\sigma^2 + \sigma_d^2}}, \qquad
        c_{in} = \frac{1}{\sqrt{\hat\sigma^2 + \sigma_d^2}}

    Args:
        sigma_data: standard deviation of the data; measured if not given.
    """
    std = positive_std(sigma_data)

    def coefficients(level: Level) -> Output:
        signal = level.alpha * std
        variance = level.sigma * level.sigma + signal * signal
        root, sigma = sqrt(variance), level.sigma
        return Output(1.0 / root, signal * std / variance, sigma * std / root, sigma / variance, -signal / root)

    return coefficients


def positive_std(sigma_data: float | None) -> float:
    if sigma_data is None or sigma_data <= 0.0:
        raise InputError(f"sigma_data is the standard deviation of the data and must be positive; got {sigma_data}.")
    return sigma_data
