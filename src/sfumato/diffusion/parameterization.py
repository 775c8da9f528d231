"""What the network's output means: one 2x2 matrix per level in place of pairwise converters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level, Scalar, broadcast, sqrt
from sfumato.errors import InputError


@dataclass(slots=True)
class Output:
    r"""How to read a network at one level.

    The network sees :math:`c_{in} x` and returns :math:`F`; then :math:`\hat x_0 = a x + b F` and
    :math:`\hat\epsilon = c x + d F`. Every parameterization satisfies :math:`\alpha a + \sigma c = 1` and
    :math:`\alpha b + \sigma d = 0`, because :math:`x = \alpha \hat x_0 + \sigma \hat\epsilon`.
    """

    c_in: Scalar
    a: Scalar
    b: Scalar
    c: Scalar
    d: Scalar

    def like(self, x: Tensor) -> Output:
        """The same coefficients, ready for arithmetic with ``x``."""
        return Output(*(broadcast(value, x) for value in (self.c_in, self.a, self.b, self.c, self.d)))


Parameterization = Callable[[Level], Output]


def _unit(level: Level) -> Scalar:
    r"""What keeps inputs from exploding with the noise: 1 unless :math:`\alpha^2 + \sigma^2 > 1`."""
    norm = level.alpha * level.alpha + level.sigma * level.sigma
    if isinstance(norm, Tensor):
        return norm.clamp(min=1.0).rsqrt()
    return 1.0 if norm < 1.0 + 1e-9 else 1.0 / sqrt(norm)


def eps(level: Level) -> Output:
    r"""The network predicts the noise: :math:`\hat\epsilon = F` (Ho et al. 2020, sec. 3.2).

    Raises:
        InputError: where :math:`\alpha = 0`.
    """
    _require_signal(level, "noise")
    return Output(_unit(level), 1.0 / level.alpha, -level.sigma / level.alpha, 0.0, 1.0)


def score(level: Level) -> Output:
    r"""The network predicts the score: :math:`\nabla_x \log q_t(x) \approx F = -\hat\epsilon / \sigma`.

    (Y. Song et al. 2021, sec. 3.3.)

    Raises:
        InputError: where :math:`\alpha = 0`.
    """
    _require_signal(level, "score")
    sigma = level.sigma
    return Output(_unit(level), 1.0 / level.alpha, sigma * sigma / level.alpha, 0.0, -sigma)


def _require_signal(level: Level, kind: str) -> None:
    none = bool((level.alpha == 0.0).any()) if isinstance(level.alpha, Tensor) else level.alpha == 0.0
    if none:
        raise InputError(
            f"A {kind} prediction says nothing of the data where alpha = 0, the end of this schedule; "
            "use v, x0, velocity or mean."
        )


def x0(level: Level) -> Output:
    r"""The network predicts the data: :math:`\hat x_0 = F`."""
    return Output(_unit(level), 0.0, 1.0, 1.0 / level.sigma, -level.alpha / level.sigma)


def v(level: Level) -> Output:
    r"""The network predicts :math:`v = \alpha \epsilon - \sigma x_0` (Salimans and Ho 2022, app. D).

    With :math:`\alpha^2 + \sigma^2 = 1`, :math:`\hat x_0 = \alpha x - \sigma F`; in general both are divided by
    :math:`\alpha^2 + \sigma^2`.
    """
    norm = level.alpha * level.alpha + level.sigma * level.sigma
    return Output(_unit(level), level.alpha / norm, -level.sigma / norm, level.sigma / norm, level.alpha / norm)


def velocity(level: Level) -> Output:
    r"""The network predicts :math:`F = \epsilon - x_0`, the direction of rectified flow (Liu et al. 2023, eq. 1).

    For any level, :math:`\hat x_0 = (x - \sigma F) / (\alpha + \sigma)` and
    :math:`\hat\epsilon = (x + \alpha F) / (\alpha + \sigma)`; with :math:`\alpha = 1 - t` and :math:`\sigma = t`,
    :math:`F = dx/dt` and the divisor is 1.
    """
    total = level.alpha + level.sigma
    return Output(_unit(level), 1.0 / total, -level.sigma / total, 1.0 / total, level.alpha / total)


def mean(previous: Callable[[Level], Level]) -> Parameterization:
    r"""The network predicts the mean of the posterior of one step, :math:`F = \tilde\mu(\hat x_0, x)`.

    With the coefficients of :func:`~sfumato.diffusion.gaussian.posterior` from ``t`` to ``s = previous(t)``,
    :math:`F = k_0 \hat x_0 + k_t x` (Ho et al. 2020, sec. 3.2), so that
    :math:`\hat x_0 = (F - k_t x) / k_0` and :math:`\hat\epsilon = ((k_0 + \alpha k_t) x - \alpha F) / (k_0 \sigma)`.
    The step belongs to the meaning of the output: samplers on any other grid read it all the same.

    Args:
        previous: the level one step nearer to the data, such as ``schedule.previous`` of a table.
    """
    return partial(_mean, previous=previous)


def _mean(level: Level, previous: Callable[[Level], Level]) -> Output:
    k0, kt, _ = posterior_coefficients(level, previous(level))
    scale = k0 * level.sigma
    return Output(_unit(level), -kt / k0, 1.0 / k0, (k0 + level.alpha * kt) / scale, -level.alpha / scale)


def edm(sigma_data: float) -> Parameterization:
    r"""The preconditioning of EDM (Karras et al. 2022, table 1), for any :math:`\alpha`.

    In their coordinate, :math:`\hat\sigma = \sigma / \alpha` and :math:`\hat x = x / \alpha`,

    .. math::
        c_{skip} = \frac{\sigma_d^2}{\hat\sigma^2 + \sigma_d^2}, \qquad
        c_{out} = \frac{\hat\sigma \sigma_d}{\sqrt{\hat\sigma^2 + \sigma_d^2}}, \qquad
        c_{in} = \frac{1}{\sqrt{\hat\sigma^2 + \sigma_d^2}}

    Raises:
        InputError: if ``sigma_data`` is not positive.
    """
    if sigma_data <= 0.0:
        raise InputError(f"sigma_data is the standard deviation of the data and must be positive; got {sigma_data}.")
    return partial(_edm, sigma_data=sigma_data)


def _edm(level: Level, sigma_data: float) -> Output:
    signal = level.alpha * sigma_data
    variance = level.sigma * level.sigma + signal * signal
    std = sqrt(variance)
    return Output(
        c_in=1.0 / std,
        a=signal * sigma_data / variance,
        b=level.sigma * sigma_data / std,
        c=level.sigma / variance,
        d=-signal / std,
    )
