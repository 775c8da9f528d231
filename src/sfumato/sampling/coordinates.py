"""Coordinates in which the probability flow is an integral of a prediction, and variables to extrapolate it in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError

Numbers = NDArray[np.float64]
# a monotone function of sigma / alpha, in which predictions are extrapolated
Variable = Callable[[Numbers], Numbers]


def ratio(level: Level) -> float:
    r""":math:`\hat\sigma = \sigma / \alpha` of a level of floats."""
    return float(level.noise_to_signal)


def half_log_snr(ratio: Numbers) -> Numbers:
    r""":math:`\lambda = \log(\alpha / \sigma)`."""
    return -np.log(ratio)


@lru_cache(64)
def arsinh(scale: float) -> Variable:
    r""":math:`\operatorname{arsinh}(\hat\sigma / d)`: log-SNR above the level ``scale`` :math:`= d`, linear below."""
    # cached, because the weights of a solver are cached with the variable as a key
    return lambda ratio: np.arcsinh(ratio / scale)


def time_of(schedule: Schedule) -> Variable:
    """The time of a schedule."""

    def time(ratio: Numbers) -> Numbers:
        times = schedule.time(torch.as_tensor(-2.0 * np.log(ratio)).reshape(-1))
        return times.detach().cpu().numpy().reshape(np.shape(ratio))

    return time


class Coordinate(ABC):
    r"""A prediction :math:`N` whose integral is the probability flow.

    .. math::
        x_s = c(t, s)\, x_t + \int_{\lambda_t}^{\lambda_s} \rho_s(\lambda) N(\lambda)\, d\lambda,
        \qquad \lambda = \log(\alpha / \sigma)

    Levels are those of a grid, made of floats. ``carry`` and ``total`` also hold for :math:`\sigma_s = 0`, and for
    :math:`\alpha_t = 0` unless ``starts_at_noise`` is false. Extrapolation is used where the absolute weights of a
    step sum to at most ``limit`` times ``total``.
    """

    starts_at_noise: ClassVar[bool] = True
    limit: ClassVar[float] = 100.0
    tau: float = 0.0

    @abstractmethod
    def prediction(self, level: Level) -> tuple[float, float]:
        r"""The numbers :math:`k_0, k_\epsilon` in :math:`N = k_0 \hat x_0 + k_\epsilon \hat\epsilon` at a level."""

    @abstractmethod
    def natural(self, ratio: Numbers) -> Numbers:
        r"""The variable :math:`p` in which the flow is :math:`dy / dp = N`, as a function of :math:`\hat\sigma`."""

    @abstractmethod
    def carry(self, t: Level, s: Level) -> float:
        r"""The factor :math:`c(t, s)` of the state."""

    @abstractmethod
    def total(self, t: Level, s: Level) -> float:
        r"""The factor of a constant prediction, :math:`\int \rho_s\, d\lambda`."""

    @abstractmethod
    def density(self, s: Level, ratio: Numbers) -> Numbers:
        r"""The weight :math:`\rho_s` of the prediction, as a function of :math:`\hat\sigma`."""

    def noise(self, t: Level, s: Level) -> float:
        """The standard deviation of the noise that a step adds."""
        return 0.0


@dataclass(frozen=True)
class PredictedNoise(Coordinate):
    r"""The predicted noise: :math:`d\hat x / d\hat\sigma = \hat\epsilon` with :math:`\hat x = x / \alpha` (DDIM)."""

    starts_at_noise = False

    def prediction(self, level: Level) -> tuple[float, float]:
        return 0.0, 1.0

    def natural(self, ratio: Numbers) -> Numbers:
        return ratio

    def carry(self, t: Level, s: Level) -> float:
        return float(s.alpha / t.alpha)

    def total(self, t: Level, s: Level) -> float:
        return float(s.sigma - s.alpha * t.sigma / t.alpha)

    def density(self, s: Level, ratio: Numbers) -> Numbers:
        return -float(s.alpha) * ratio


@dataclass(frozen=True)
class PredictedData(Coordinate):
    r"""The predicted data: :math:`dy / dk = \hat x_0` for :math:`y = x / \sigma` and :math:`k = \alpha / \sigma`.

    With :math:`\tau > 0` it is a stochastic process with the same marginals (Xue et al. 2023, SA-Solver, eq. 6 with
    constant :math:`\tau`, solved): with :math:`h = \lambda_s - \lambda_t`,

    .. math::
        x_s = \frac{\sigma_s}{\sigma_t} e^{-\tau^2 h} x_t
        + \sigma_s \int (1 + \tau^2) e^{-\tau^2 (\lambda_s - \lambda) + \lambda}\, \hat x_0(\lambda)\, d\lambda
        + \sigma_s \sqrt{1 - e^{-2 \tau^2 h}}\; z.

    :math:`\tau = 1` is the reverse diffusion. Noise is added in steps that start at a
    :math:`\hat\sigma` of at most ``high`` and end at one of at least ``low``.
    """

    tau: float = 0.0
    low: float = 0.0
    high: float = math.inf
    limit = 10.0

    def __post_init__(self) -> None:
        if not self.tau >= 0.0 or not self.low < self.high:
            raise InputError(f"Noise needs tau >= 0 and low < high; got {self.tau}, {self.low} and {self.high}.")

    def _rate(self, start: float, end: float) -> float:
        return self.tau**2 if self.low <= end and start <= self.high else 0.0

    def growth(self, t: Level, s: Level) -> float:
        r""":math:`(1 + \tau^2) h`, the exponent of the data in a step."""
        return (1.0 + self._rate(ratio(t), ratio(s))) * _between(t, s)

    def prediction(self, level: Level) -> tuple[float, float]:
        return 1.0, 0.0

    def natural(self, ratio: Numbers) -> Numbers:
        return 1.0 / ratio

    def carry(self, t: Level, s: Level) -> float:
        rate = self._rate(ratio(t), ratio(s))
        return float(s.sigma / t.sigma) * (math.exp(-rate * _between(t, s)) if rate else 1.0)

    def total(self, t: Level, s: Level) -> float:
        return -float(s.alpha) * math.expm1(-self.growth(t, s))

    def density(self, s: Level, ratio: Numbers) -> Numbers:
        end = float(s.noise_to_signal)
        # the quadrature lies within one step, so either all of it has noise or none
        rate = self._rate(float(np.max(ratio)), end)
        return float(s.sigma) * (1.0 + rate) * (end / ratio) ** rate / ratio

    def noise(self, t: Level, s: Level) -> float:
        rate = self._rate(ratio(t), ratio(s))
        return float(s.sigma) * math.sqrt(-math.expm1(-2.0 * rate * _between(t, s))) if rate and s.sigma else 0.0


def _between(t: Level, s: Level) -> float:
    r""":math:`h = \lambda_s - \lambda_t`."""
    start, end = ratio(t), ratio(s)
    return math.log(start / end) if end > 0.0 and start < math.inf else math.inf


@dataclass(frozen=True)
class Rotation(Coordinate):
    r"""A mixture of predicted noise and data, :math:`N = \cos\varphi\, \hat\epsilon - \sin\varphi\, \hat x_0 / d`.

    With :math:`R = \sqrt{\sigma^2 + d^2 \alpha^2}` and :math:`\tan\varphi = \sigma / (d \alpha)` the flow is
    :math:`dy / d\varphi = N` for :math:`y = x / R`. The prediction is the output of EDM's network (Karras et al. 2022,
    table 1, with :math:`\sigma_{data} = d`) up to its sign, and that of v for :math:`d = 1`. It vanishes for Gaussian
    data of mean 0 and standard deviation ``d``, the ``scale``. A small scale approaches :class:`PredictedData`,
    a large one :class:`PredictedNoise`.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise InputError(f"The scale of the data is a standard deviation and must be positive; got {self.scale}.")

    def polar(self, level: Level) -> tuple[float, float]:
        r"""``R`` and :math:`\varphi`."""
        signal, sigma = self.scale * float(level.alpha), float(level.sigma)
        return math.hypot(signal, sigma), math.atan2(sigma, signal)

    def prediction(self, level: Level) -> tuple[float, float]:
        _, angle = self.polar(level)
        return -math.sin(angle) / self.scale, math.cos(angle)

    def natural(self, ratio: Numbers) -> Numbers:
        return np.arctan(ratio / self.scale)

    def carry(self, t: Level, s: Level) -> float:
        return self.polar(s)[0] / self.polar(t)[0]

    def total(self, t: Level, s: Level) -> float:
        radius, end = self.polar(s)
        return radius * (end - self.polar(t)[1])

    def density(self, s: Level, ratio: Numbers) -> Numbers:
        return -self.polar(s)[0] * self.scale * ratio / (self.scale**2 + ratio * ratio)
