"""Coordinates in which the probability flow is the integral of a prediction, and variables to extrapolate that in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError

Numbers = NDArray[np.float64]

Variable = Callable[[Numbers], Numbers]
r"""A monotone function of :math:`\hat\sigma = \sigma / \alpha`, in which predictions are extrapolated."""


@runtime_checkable
class Coordinate(Protocol):
    r"""A prediction :math:`N` of which the flow is an integral.

    .. math::
        x_s = c(t, s)\, x_t + \int_{\lambda_t}^{\lambda_s} \rho_s(\lambda) N(\lambda)\, d\lambda,
        \qquad \lambda = \log(\alpha / \sigma)

    Coefficients are Python floats: levels are those of a grid. ``carry`` and ``total`` hold where :math:`\sigma_s = 0`
    too, and where :math:`\alpha_t = 0` unless :attr:`starts_at_noise` is false.
    """

    @property
    def starts_at_noise(self) -> bool:
        r"""Whether a step may start where :math:`\alpha = 0`."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether steps follow the probability flow, without noise."""
        ...

    def prediction(self, level: Level) -> tuple[float, float]:
        r"""The numbers :math:`k_0, k_\epsilon` of :math:`N = k_0 \hat x_0 + k_\epsilon \hat\epsilon` at a level."""
        ...

    def own(self, ratio: Numbers) -> Numbers:
        r"""The variable :math:`p` in which the flow is :math:`dy / dp = N`, as a function of :math:`\hat\sigma`."""
        ...

    def carry(self, t: Level, s: Level) -> float:
        r"""The factor :math:`c(t, s)` of the state."""
        ...

    def total(self, t: Level, s: Level) -> float:
        r"""What a constant prediction is multiplied by, :math:`\int \rho_s\, d\lambda`."""
        ...

    def bound(self, t: Level, s: Level) -> float:
        """The most that the absolute values of the weights of a step may sum to, for extrapolation to be of use."""
        ...

    def density(self, s: Level, ratio: Numbers) -> Numbers:
        r"""The weight :math:`\rho_s` of the prediction, as a function of :math:`\hat\sigma`."""
        ...

    def noise(self, t: Level, s: Level) -> float:
        """The standard deviation of the noise of a step; 0 for those of the probability flow."""
        ...


def ratio(level: Level) -> float:
    r""":math:`\hat\sigma = \sigma / \alpha` of a level of floats."""
    return float(level.noise_to_signal)


def half_log_snr(ratio: Numbers) -> Numbers:
    r""":math:`\lambda = \log(\alpha / \sigma)`."""
    return -np.log(ratio)


@lru_cache(64)
def arsinh(scale: float) -> Variable:
    r""":math:`\operatorname{arsinh}(\hat\sigma / d)`: log-SNR in much noise, but linear near the data.

    The same for the same scale, so that weights that were computed with it are known again.

    Args:
        scale: the level between the two, ``d``.
    """

    def variable(ratio: Numbers) -> Numbers:
        return np.arcsinh(ratio / scale)

    return variable


def time_of(schedule: Schedule) -> Variable:
    """The time of a schedule."""

    def time(ratio: Numbers) -> Numbers:
        found = schedule.time(torch.as_tensor(-2.0 * np.log(ratio)).reshape(-1))
        return found.detach().cpu().numpy().reshape(np.shape(ratio))

    return time


@dataclass(frozen=True, slots=True)
class Noise:
    r"""The predicted noise: :math:`d\hat x / d\hat\sigma = \hat\epsilon` for :math:`\hat x = x / \alpha`.

    (Song et al. 2021, DDIM, eq. 14.)
    """

    @property
    def starts_at_noise(self) -> bool:
        return False

    @property
    def deterministic(self) -> bool:
        return True

    def prediction(self, level: Level) -> tuple[float, float]:
        return 0.0, 1.0

    def own(self, ratio: Numbers) -> Numbers:
        return ratio

    def carry(self, t: Level, s: Level) -> float:
        return float(s.alpha / t.alpha)

    def total(self, t: Level, s: Level) -> float:
        return float(s.sigma - s.alpha * t.sigma / t.alpha)

    def bound(self, t: Level, s: Level) -> float:
        return 100.0 * abs(self.total(t, s))

    def density(self, s: Level, ratio: Numbers) -> Numbers:
        return -float(s.alpha) * ratio

    def noise(self, t: Level, s: Level) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Data:
    r"""The predicted data: :math:`dy / dk = \hat x_0` for :math:`y = x / \sigma` and :math:`k = \alpha / \sigma`.

    With :math:`\tau > 0` it is a stochastic process with the same marginals, which forgets the noise of the state
    (Xue et al. 2023, SA-Solver, eq. 6 with constant :math:`\tau`, solved): with :math:`h = \lambda_s - \lambda_t`,

    .. math::
        x_s = \frac{\sigma_s}{\sigma_t} e^{-\tau^2 h} x_t
        + \sigma_s \int (1 + \tau^2) e^{-\tau^2 (\lambda_s - \lambda) + \lambda}\, \hat x_0(\lambda)\, d\lambda
        + \sigma_s \sqrt{1 - e^{-2 \tau^2 h}}\; z.

    :math:`\tau = 1` is the reverse diffusion itself.

    Attributes:
        tau: how much noise.
        low: the least :math:`\hat\sigma` that a step with noise ends at.
        high: the most that it starts at.

    Raises:
        InputError: if ``tau`` is negative or the range empty.
    """

    tau: float = 0.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.tau >= 0.0 or not self.low < self.high:
            raise InputError(
                f"Noise needs tau of at least 0 and low < high; got tau = {self.tau}, {self.low} and {self.high}."
            )

    @property
    def starts_at_noise(self) -> bool:
        return True

    @property
    def deterministic(self) -> bool:
        return self.tau == 0.0

    def _rate(self, t: Level, s: Level) -> float:
        return self.tau**2 if self.low <= ratio(s) and ratio(t) <= self.high else 0.0

    def growth(self, t: Level, s: Level) -> float:
        r""":math:`(1 + \tau^2) h`, the exponent of the data in a step."""
        return (1.0 + self._rate(t, s)) * _between(t, s)

    def prediction(self, level: Level) -> tuple[float, float]:
        return 1.0, 0.0

    def own(self, ratio: Numbers) -> Numbers:
        return 1.0 / ratio

    def carry(self, t: Level, s: Level) -> float:
        rate = self._rate(t, s)
        return float(s.sigma / t.sigma) * (math.exp(-rate * _between(t, s)) if rate else 1.0)

    def total(self, t: Level, s: Level) -> float:
        return -float(s.alpha) * math.expm1(-self.growth(t, s))

    def bound(self, t: Level, s: Level) -> float:
        return 10.0 * abs(self.total(t, s))

    def density(self, s: Level, ratio: Numbers) -> Numbers:
        end = float(s.noise_to_signal)
        # the quadrature lies within a step: all of it has noise or none
        rate = self.tau**2 if self.low <= end and float(np.max(ratio)) <= self.high else 0.0
        return float(s.sigma) * (1.0 + rate) * (end / ratio) ** rate / ratio

    def noise(self, t: Level, s: Level) -> float:
        rate = self._rate(t, s)
        return float(s.sigma) * math.sqrt(-math.expm1(-2.0 * rate * _between(t, s))) if rate and s.sigma else 0.0


def _between(t: Level, s: Level) -> float:
    r""":math:`h = \lambda_s - \lambda_t`."""
    start, end = ratio(t), ratio(s)
    return math.log(start / end) if end > 0.0 and start < math.inf else math.inf


@dataclass(frozen=True, slots=True)
class Rotation:
    r"""A mixture of the two, :math:`N = \cos\varphi\, \hat\epsilon - \sin\varphi\, \hat x_0 / d`.

    With :math:`R = \sqrt{\sigma^2 + d^2 \alpha^2}` and :math:`\tan\varphi = \sigma / (d \alpha)` the flow is
    :math:`dy / d\varphi = N` for :math:`y = x / R`. The prediction is the output of EDM's network (Karras et al. 2022,
    table 1, with :math:`\sigma_{data} = d`) up to its sign, and that of v for :math:`d = 1`. It vanishes for Gaussian
    data of mean 0 and standard deviation ``d``, whose flow is exact then. A small ``d`` leads to :class:`Data`, a large
    one to :class:`Noise`. The scale is a number and not estimated from a batch, so that an image does not depend on its
    neighbours.

    Attributes:
        scale: the standard deviation of the data, ``d``.

    Raises:
        InputError: if it is not positive.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise InputError(f"The scale of the data is a standard deviation and must be positive; got {self.scale}.")

    @property
    def starts_at_noise(self) -> bool:
        return True

    @property
    def deterministic(self) -> bool:
        return True

    def _polar(self, level: Level) -> tuple[float, float]:
        signal, sigma = self.scale * float(level.alpha), float(level.sigma)
        return math.hypot(signal, sigma), math.atan2(sigma, signal)

    def prediction(self, level: Level) -> tuple[float, float]:
        _, angle = self._polar(level)
        return -math.sin(angle) / self.scale, math.cos(angle)

    def own(self, ratio: Numbers) -> Numbers:
        return np.arctan(ratio / self.scale)

    def carry(self, t: Level, s: Level) -> float:
        return self._polar(s)[0] / self._polar(t)[0]

    def total(self, t: Level, s: Level) -> float:
        radius, end = self._polar(s)
        return radius * (end - self._polar(t)[1])

    def bound(self, t: Level, s: Level) -> float:
        return 100.0 * abs(self.total(t, s))

    def density(self, s: Level, ratio: Numbers) -> Numbers:
        return -self._polar(s)[0] * self.scale * ratio / (self.scale**2 + ratio * ratio)

    def noise(self, t: Level, s: Level) -> float:
        return 0.0
