"""Noise schedules: the only place that knows time."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sfumato.diffusion.level import Level, Scalar
from sfumato.errors import InputError

TERMINAL_SNR = 1e-2
"""The largest signal-to-noise ratio at ``t = 1`` that still passes for pure noise."""


class Schedule(nn.Module):
    r"""A map from time to noise level, :math:`t \mapsto (\alpha(t), \sigma(t))`, with :math:`\sigma(0) = 0` exactly.

    Subclasses define :meth:`kernel` and its inverse :meth:`time`, both on float64 tensors.
    """

    def kernel(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """``alpha(t)`` and ``sigma(t)``."""
        raise NotImplementedError

    def time(self, log_snr: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        r"""The inverse of :math:`t \mapsto \log(\alpha^2(t) / \sigma^2(t))`."""
        raise NotImplementedError

    def forward(self, t: Scalar) -> Level:
        """The level at time ``t`` in [0, 1], of any shape; a float gives a level of floats.

        Raises:
            InputError: if a time lies outside [0, 1].
        """
        times = torch.as_tensor(t, dtype=torch.float64)
        if bool(((times < 0.0) | (times > 1.0) | times.isnan()).any()):
            raise InputError(f"Time runs from 0 (data) to 1 (noise); got {t}.")
        alpha, sigma = self.kernel(times)
        return Level(times, alpha, sigma) if isinstance(t, Tensor) else _floats(times, alpha, sigma)

    def at(self, log_snr: Scalar) -> Level:
        """The level with that log signal-to-noise ratio (infinite at the data).

        Raises:
            InputError: if the schedule ends at more signal than that.
        """
        wanted = torch.as_tensor(log_snr, dtype=torch.float64)
        lowest = float(_log_snr(*self.kernel(torch.ones((), dtype=torch.float64))))
        if bool((wanted < lowest - 1e-9 * max(1.0, abs(lowest))).any()):
            raise InputError(f"The schedule ends at a log-SNR of {lowest:.4g}; got {float(wanted.min()):.4g}.")
        t = self.time(wanted.clamp(min=lowest)).clamp(0.0, 1.0)
        alpha, sigma = self.kernel(t)
        return Level(t, alpha, sigma) if isinstance(log_snr, Tensor) else _floats(t, alpha, sigma)

    def require_noise(self, data_std: float = 1.0) -> None:
        r"""Check that almost nothing of the data is left at ``t = 1``.

        Raises:
            InputError: if :math:`\alpha(1)^2 s^2 / \sigma(1)^2` exceeds 0.01, for data of standard deviation ``s``.
        """
        last = self(1.0)
        assert isinstance(last.alpha, float) and isinstance(last.sigma, float)
        snr = math.inf if last.sigma == 0.0 else (last.alpha * data_std / last.sigma) ** 2
        if snr > TERMINAL_SNR:
            raise InputError(
                f"The schedule leaves signal at its end: alpha = {last.alpha:.3g}, sigma = {last.sigma:.3g}, "
                f"a signal-to-noise ratio of {snr:.3g} where at most {TERMINAL_SNR} is noise; "
                "raise the last betas, the number of steps or sigma_max."
            )


def _log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    return 2.0 * (alpha.log() - sigma.log())


def _floats(t: Tensor, alpha: Tensor, sigma: Tensor) -> Level:
    return Level(float(t), float(alpha), float(sigma))


def _variance_preserving(log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)`` without the cancellation of the latter near the data."""
    return (0.5 * log_alpha_bar).exp(), torch.expm1(log_alpha_bar).abs().sqrt()


def _log_alpha_bar(log_snr: Tensor) -> Tensor:
    return -torch.nn.functional.softplus(-log_snr)


class Discrete(Schedule):
    r"""A table of betas, :math:`\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)` (Ho et al. 2020, sec. 2).

    Step ``i`` of ``T`` is the time ``t = i / T``, and :math:`\bar\alpha(0) = 1`. Between two steps,
    :math:`\log \bar\alpha` is linear in ``t``, so that the schedule is continuous and has an exact inverse.

    Args:
        betas: ``T`` numbers in (0, 1).

    Raises:
        InputError: if the table is empty or a beta lies outside (0, 1).
    """

    log_alpha_bar: Float64[Tensor, "T+1"]

    def __init__(self, betas: ArrayLike | Tensor) -> None:
        super().__init__()
        table = torch.as_tensor(np.asarray(betas, dtype=np.float64)).reshape(-1)
        if len(table) == 0 or not bool(((table > 0.0) & (table < 1.0)).all()):
            raise InputError("A beta table needs at least one number, each above 0 and below 1.")
        start = torch.zeros(1, dtype=torch.float64)
        self.register_buffer("log_alpha_bar", torch.cat([start, torch.log1p(-table).cumsum(0)]), persistent=False)

    @property
    def steps(self) -> int:
        """The number of steps ``T``."""
        return len(self.log_alpha_bar) - 1

    @property
    def betas(self) -> Float64[Tensor, "T"]:
        return -torch.expm1(self.log_alpha_bar.diff())

    @property
    def alpha_bars(self) -> Float64[Tensor, "T"]:
        return self.log_alpha_bar[1:].exp()

    def kernel(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        table = self.log_alpha_bar.to(t.device)
        position = t * self.steps
        # i / T * T is not always i in floating point: a step of the table must give its exact entry
        whole = position.round()
        position = torch.where((position - whole).abs() < 1e-9, whole, position)
        left = position.floor().long().clamp(max=self.steps - 1)
        return _variance_preserving(torch.lerp(table[left], table[left + 1], position - left))

    def time(self, log_snr: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        table = -self.log_alpha_bar.to(log_snr.device)
        wanted = -_log_alpha_bar(log_snr)
        left = (torch.searchsorted(table, wanted.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        fraction = (wanted - table[left]) / (table[left + 1] - table[left])
        return (left + fraction) / self.steps

    def _apply(self, fn: object, recurse: bool = True) -> Discrete:
        # .half() or .float() of a model must not round the table
        table = self.log_alpha_bar
        super()._apply(fn, recurse)  # pyright: ignore[reportArgumentType]
        self.log_alpha_bar = table.to(self.log_alpha_bar.device)
        return self


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    r"""The linear beta table of Ho et al. 2020, :math:`\beta_1 = 10^{-4}, \dots, \beta_T = 0.02` at ``T = 1000``.

    For other ``T`` the range is scaled by ``1000 / T``, so that :math:`\bar\alpha_T` stays near zero
    (Nichol and Dhariwal 2021, code), and clipped at 0.999.

    Raises:
        InputError: if ``steps < 2``: one beta can't be a range.
    """
    if steps < 2:
        raise InputError(f"A linear schedule needs at least 2 steps; got {steps}.")
    scale = 1000.0 / steps
    return Discrete(np.linspace(scale * beta_start, scale * beta_end, steps).clip(max=0.999))


def cosine(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Discrete:
    r"""The cosine table of Nichol and Dhariwal 2021, eq. 17.

    :math:`\bar\alpha_t = f(t) / f(0)` with :math:`f(t) = \cos^2\left(\frac{t / T + s}{1 + s} \frac{\pi}{2}\right)`, and
    :math:`\beta_t = \min(1 - \bar\alpha_t / \bar\alpha_{t-1},\ 0.999)`.

    Raises:
        InputError: if ``steps < 1``.
    """
    if steps < 1:
        raise InputError(f"A schedule needs at least 1 step; got {steps}.")
    f = np.cos((np.arange(steps + 1) / steps + s) / (1.0 + s) * math.pi / 2.0) ** 2
    return Discrete((1.0 - f[1:] / f[:-1]).clip(max=max_beta))


class ContinuousLinear(Schedule):
    r"""The variance-preserving SDE with linear :math:`\beta(t)` (Song et al. 2021, eq. 33): the limit of ``linear``.

    :math:`\log\bar\alpha(t) = -\beta_{\min} t - \tfrac12 (\beta_{\max} - \beta_{\min}) t^2`.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__()
        if not 0.0 <= beta_min < beta_max:
            raise InputError(f"beta_min must be at least 0 and below beta_max; got {beta_min} and {beta_max}.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def kernel(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        return _variance_preserving(-t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t))

    def time(self, log_snr: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        c = -_log_alpha_bar(log_snr)
        # the root of the quadratic in the form that does not cancel for small c
        root = (self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * c).sqrt()
        return 2.0 * c / (self.beta_min + root).clamp(min=1e-300)


class ContinuousCosine(Schedule):
    r"""The cosine schedule in continuous time: :math:`\bar\alpha(t) = f(t)/f(0)`, Nichol and Dhariwal 2021, eq. 17.

    The published curve ends at :math:`\bar\alpha = 0`, where noise prediction says nothing of the data, so it
    is followed until its log-SNR is ``log_snr_min`` (-20, as the 0.999 clip of the table), where ``t = 1`` is put.
    """

    def __init__(self, s: float = 0.008, log_snr_min: float = -20.0) -> None:
        super().__init__()
        if s <= 0.0 or log_snr_min > 0.0:
            raise InputError(f"s must be positive and log_snr_min at most 0; got {s} and {log_snr_min}.")
        self.first = s / (1.0 + s) * math.pi / 2.0
        alpha_bar = 1.0 / (1.0 + math.exp(-log_snr_min))
        self.last = math.acos(math.sqrt(alpha_bar) * math.cos(self.first))

    def kernel(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        angle = self.first + t * (self.last - self.first)
        first = math.cos(self.first)
        # cos^2 a - cos^2 b = sin(b + a) sin(b - a): no cancellation near the data
        sigma = ((angle + self.first).sin() * (angle - self.first).sin()).clamp(min=0.0).sqrt()
        return angle.cos() / first, sigma / first

    def time(self, log_snr: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        # acos would cancel near the data; sin^2 angle = sin^2 first + sigma^2 cos^2 first does not
        sigma2 = (-log_snr).sigmoid()
        sine = (math.sin(self.first) ** 2 + sigma2 * math.cos(self.first) ** 2).sqrt()
        cosine = log_snr.sigmoid().sqrt() * math.cos(self.first)
        return (torch.atan2(sine, cosine) - self.first) / (self.last - self.first)


class Karras(Schedule):
    r"""The schedule of EDM (Karras et al. 2022): :math:`\alpha = 1`, :math:`\sigma = \sigma_{\max} t^\rho`.

    Uniform steps in ``t`` from :math:`(\sigma_{\min} / \sigma_{\max})^{1/\rho}` to 1 are the steps of their eq. 5.
    """

    def __init__(self, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__()
        if sigma_max <= 0.0 or rho <= 0.0:
            raise InputError(f"sigma_max and rho must be positive; got {sigma_max} and {rho}.")
        self.sigma_max, self.rho = sigma_max, rho

    def kernel(self, t: Float64[Tensor, "*n"]) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        return torch.ones_like(t), self.sigma_max * t**self.rho

    def time(self, log_snr: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        return ((-0.5 * log_snr).exp() / self.sigma_max) ** (1.0 / self.rho)
