"""Noise schedules: the only module in which time has a meaning."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from sfumato.diffusion.gaussian import warn_of_signal
from sfumato.diffusion.level import Level, Scalar, as_given, float64
from sfumato.errors import InputError
from sfumato.io.files import read_numbers

# the largest signal-to-noise ratio at t = 1 that still counts as pure noise
TERMINAL_SNR = 1e-2
# where published tables are clipped (Nichol and Dhariwal 2021, sec. 3.2)
MAX_BETA = 0.999
Times = Float64[Tensor, "*n"]


class Schedule(nn.Module):
    r"""A map from time to noise level, :math:`t \mapsto (\alpha(t), \sigma(t))`, with :math:`\sigma(0) = 0` exactly.

    Subclasses define :meth:`kernel` and its inverse :meth:`time`, both on float64 tensors.
    """

    def kernel(self, t: Times) -> tuple[Times, Times]:
        """``alpha(t)`` and ``sigma(t)``."""
        raise NotImplementedError

    def time(self, log_snr: Times) -> Times:
        r"""The inverse of :math:`t \mapsto \log(\alpha^2(t) / \sigma^2(t))`."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, t: Scalar) -> Level:
        """The level at time ``t`` in [0, 1], of any shape and without gradients; a float gives a level of floats."""
        times = float64(t)
        if bool(((times < 0.0) | (times > 1.0) | times.isnan()).any()):
            raise InputError(f"Time runs from 0 (data) to 1 (noise); got {t}.")
        return Level(times, *self.kernel(times)).map(lambda value: as_given(value, t))

    @torch.no_grad()
    def at(self, log_snr: Scalar) -> Level:
        """The level with the given log signal-to-noise ratio (infinite at the data)."""
        values = float64(log_snr)
        lowest = float(_log_snr(*self.kernel(torch.ones((), dtype=torch.float64))))
        if bool((values < lowest - 1e-9 * max(1.0, abs(lowest))).any()):
            least = values.min()
            most, ratio = math.exp(-0.5 * lowest), float((-0.5 * least).exp())
            raise InputError(
                f"The schedule ends at a log-SNR of {lowest:.4g}, sigma / alpha = {most:.4g}; levels can't start "
                f"at {float(least):.4g}, sigma / alpha = {ratio:.4g}."
            )
        t = self.time(values.clamp(min=lowest)).clamp(0.0, 1.0)
        return Level(t, *self.kernel(t)).map(lambda value: as_given(value, log_snr))

    def slope(self, t: Scalar) -> Scalar:
        r"""The derivative :math:`d\lambda / dt` of the log-SNR; at a step of a table, the derivative from the left."""
        return as_given(self._slope(float64(t)).detach(), t)

    def _slope(self, t: Times) -> Times:
        with torch.enable_grad():
            times = t.detach().requires_grad_()
            return torch.autograd.grad(_log_snr(*self.kernel(times)).sum(), times)[0]

    def require_noise(self, data_std: float = 1.0) -> None:
        r"""Raise an error if :math:`\alpha(1)^2 s^2 / \sigma(1)^2 > 0.01`, for data of standard deviation ``s``.

        Otherwise call :func:`warn_of_signal`, unless the schedule has parameters.
        """
        last = self(1.0)
        ratio = math.inf if last.sigma == 0.0 else float(last.alpha * data_std / last.sigma)
        snr = ratio * ratio  # may overflow to infinity, where ** would raise
        if snr > TERMINAL_SNR:
            raise InputError(
                f"The schedule leaves signal at its end: its signal-to-noise ratio is {snr:.3g}, but pure noise needs "
                f"at most {TERMINAL_SNR}; raise the last betas, the number of steps or sigma_max."
            )
        if next(self.parameters(), None) is None:
            warn_of_signal(last)


def _log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    return 2.0 * (alpha.log() - sigma.log())


def _variance_preserving(log_alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)``, without cancellation near the data."""
    return (0.5 * log_alpha_bar).exp(), torch.expm1(log_alpha_bar).abs().sqrt()


class Discrete(Schedule):
    r"""A table of betas, :math:`\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)` (Ho et al. 2020, sec. 2).

    Step ``i`` of ``T`` is the time ``t = i / T``. Between two steps :math:`\log \bar\alpha` is linear in ``t``; in
    a last step to :math:`\bar\alpha = 0`, :math:`\bar\alpha` itself is linear. Betas lie in (0, 1); with ``zero_end``
    the last may be 1, which leaves nothing of the data (:func:`zero_terminal_snr`).
    """

    log_alpha_bar: Float64[Tensor, "T+1"]

    def __init__(self, betas: npt.ArrayLike | Tensor, *, zero_end: bool = False) -> None:
        super().__init__()
        table = torch.as_tensor(np.asarray(betas, dtype=np.float64)).reshape(-1)
        inside = (table > 0.0) & (table < 1.0)
        inside[-1:] |= zero_end & (table[-1:] == 1.0)
        if len(table) == 0 or not bool(inside.all()):
            last = " (the last may be 1)" if zero_end else ""
            raise InputError(f"A beta table needs at least one number, each above 0 and below 1{last}.")
        start = torch.zeros(1, dtype=torch.float64)
        self.register_buffer("log_alpha_bar", torch.cat([start, torch.log1p(-table).cumsum(0)]), persistent=False)

    @property
    def steps(self) -> int:
        return len(self.log_alpha_bar) - 1

    @property
    def betas(self) -> Float64[Tensor, "T"]:
        return -torch.expm1(self.log_alpha_bar.diff())

    @property
    def alpha_bars(self) -> Float64[Tensor, "T"]:
        return self.log_alpha_bar[1:].exp()

    def kernel(self, t: Times) -> tuple[Times, Times]:
        table = self.log_alpha_bar.to(t.device)
        position = t * self.steps
        # i / T * T is not always i in floating point: a step of the table must give its exact entry
        whole = position.round()
        position = torch.where((position - whole).abs() < 1e-9, whole, position)
        left = position.floor().long().clamp(max=self.steps - 1)
        start, end, fraction = table[left], table[left + 1], position - left
        to_zero = end.isinf()
        # each branch sees only finite numbers, so that the derivative is finite too
        falling = torch.log1p(-torch.where(to_zero, fraction, 0.0))
        return _variance_preserving(torch.lerp(start, torch.where(to_zero, start, end), fraction) + falling)

    def time(self, log_snr: Times) -> Times:
        table = -self.log_alpha_bar.to(log_snr.device)
        # -log(alpha_bar)
        value = nn.functional.softplus(-log_snr)
        left = (torch.searchsorted(table, value.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        start, end = table[left], table[left + 1]
        fraction = torch.where(end.isinf(), -torch.expm1(start - value), (value - start) / (end - start))
        return (left + fraction) / self.steps

    def _slope(self, t: Times) -> Times:
        table = self.log_alpha_bar.to(t.device)
        left = ((t * self.steps - 1e-9).ceil().long() - 1).clamp(0, self.steps - 1)
        falling = table[left + 1] - table[left]
        alpha, sigma = self.kernel(t)
        # in a last step to zero, alpha_bar is linear instead
        falling = torch.where(falling.isinf(), -table[left].exp() / (alpha * alpha), falling)
        return self.steps * falling / (sigma * sigma)

    def previous(self, level: Level) -> Level:
        """The level one step closer to the data, at ``t - 1 / T``; from the first step, the data."""
        t = level.t - 1.0 / self.steps
        return self(t.clamp(min=0.0) if isinstance(t, Tensor) else max(t, 0.0))

    def last_steps(self) -> Level:
        """The levels of step 2 (if there is one), step 1 and the data."""
        return self(torch.arange(min(2, self.steps), -1, -1, dtype=torch.float64) / self.steps)

    def _apply(self, fn: object, recurse: bool = True) -> Discrete:
        # calling .half() or .float() on a model must not round the table
        table = self.log_alpha_bar
        super()._apply(fn, recurse)  # pyright: ignore[reportArgumentType]
        self.log_alpha_bar = table.to(self.log_alpha_bar.device)
        return self


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    r"""The linear beta table of DDPM, :math:`10^{-4}, \dots, 0.02` at ``T = 1000`` (Ho et al. 2020).

    Args:
        steps: number of steps T; the betas are scaled by 1000 / T, and clipped at 0.999.
        beta_start: the first beta, at T = 1000.
        beta_end: the last beta, at T = 1000.
    """
    if steps < 2:
        raise InputError(f"A linear schedule needs at least 2 steps; got {steps}.")
    scale = 1000.0 / steps
    return Discrete(np.linspace(scale * beta_start, scale * beta_end, steps).clip(max=MAX_BETA))


def cosine(steps: int = 1000, s: float = 0.008) -> Discrete:
    r"""The cosine beta table of Improved DDPM (Nichol and Dhariwal 2021, eq. 17).

    :math:`\bar\alpha_t = f(t) / f(0)` with :math:`f(t) = \cos^2\left(\frac{t / T + s}{1 + s} \frac{\pi}{2}\right)`.

    Args:
        steps: number of steps T.
        s: the offset near the data.
    """
    if steps < 1 or s <= 0.0:
        raise InputError(f"A cosine schedule needs at least 1 step and s > 0; got {steps} and {s}.")
    return _from_alpha_bar(np.cos((np.arange(steps + 1) / steps + s) / (1.0 + s) * math.pi / 2.0) ** 2)


def sigmoid(steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Discrete:
    r"""The sigmoid beta table (Jabri et al. 2023; Chen 2023, algorithm 1).

    :math:`\bar\alpha_t = \frac{\varsigma(e / \tau) - \varsigma((s + (e - s)\, t / T) / \tau)}{\varsigma(e / \tau)
    - \varsigma(s / \tau)}` with the logistic function :math:`\varsigma`.

    Args:
        steps: number of steps T.
        start: the position of the data on the logistic curve.
        end: the position of the noise on the logistic curve.
        tau: the temperature; the larger, the closer to a straight line.
    """
    if steps < 1 or not start < end or tau <= 0.0:
        raise InputError(f"A sigmoid schedule needs at least 1 step, start < end and tau > 0; got {steps=}, {tau=}.")
    curve = 1.0 / (1.0 + np.exp(-(start + (end - start) * np.arange(steps + 1) / steps) / tau))
    return _from_alpha_bar((curve[-1] - curve) / (curve[-1] - curve[0]))


def _from_alpha_bar(curve: npt.NDArray[np.float64]) -> Discrete:
    r""":math:`\beta_t = \min(1 - \bar\alpha_t / \bar\alpha_{t-1},\ 0.999)`."""
    return Discrete((1.0 - curve[1:] / curve[:-1]).clip(max=MAX_BETA))


def table(betas: tuple[float, ...] = (), file: str | None = None) -> Discrete:
    """A beta table given by its numbers. The last beta may be 1, which leaves nothing of the data.

    Args:
        betas: the betas, from the data to the noise.
        file: a file of numbers to read them from (.npy, .json or text).
    """
    if file is not None:
        betas = tuple(read_numbers(file))
    if not betas:
        raise InputError("The schedule is a table without betas; give model.schedule.betas or model.schedule.file.")
    return Discrete(list(betas), zero_end=True)


def zero_terminal_snr(table: Discrete) -> Discrete:
    r"""A beta table shifted and scaled so that its end is pure noise (Lin et al. 2024, algorithm 1).

    :math:`\sqrt{\bar\alpha_t'} = (\sqrt{\bar\alpha_t} - \sqrt{\bar\alpha_T}) \sqrt{\bar\alpha_1} /
    (\sqrt{\bar\alpha_1} - \sqrt{\bar\alpha_T})`. At its end only v, x0, velocity and mean can be predicted.

    Args:
        table: the beta table to rescale.
    """
    root = table.alpha_bars.sqrt()
    if len(root) < 2:
        raise InputError("A table of one step can't be scaled to zero terminal SNR; it needs at least 2.")
    scaled = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    return Discrete(torch.cat([1.0 - scaled[:1], 1.0 - scaled[1:] / scaled[:-1]]), zero_end=True)


class ContinuousLinear(Schedule):
    r"""The variance-preserving SDE with linear :math:`\beta(t)` (Y. Song et al. 2021, app. C): the limit of ``linear``.

    :math:`\log\bar\alpha(t) = -\beta_{\min} t - \tfrac12 (\beta_{\max} - \beta_{\min}) t^2`.

    Args:
        beta_min: beta(0).
        beta_max: beta(1).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__()
        if not 0.0 <= beta_min < beta_max:
            raise InputError(f"beta_min must be at least 0 and below beta_max; got {beta_min} and {beta_max}.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def kernel(self, t: Times) -> tuple[Times, Times]:
        return _variance_preserving(-t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t))

    def time(self, log_snr: Times) -> Times:
        c = nn.functional.softplus(-log_snr)
        # the root of the quadratic, in the form without cancellation for small c
        root = (self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * c).sqrt()
        return 2.0 * c / (self.beta_min + root).clamp(min=1e-300)


class ContinuousCosine(Schedule):
    r"""The cosine schedule in continuous time: :math:`\bar\alpha(t) = f(t)/f(0)`, Nichol and Dhariwal 2021, eq. 17.

    It ends where its log-SNR reaches ``log_snr_min``: -20 by default, as for the clipped table, while the published
    schedule goes to minus infinity.

    Args:
        s: the offset near the data.
        log_snr_min: the log-SNR at which the schedule ends.
    """

    def __init__(self, s: float = 0.008, log_snr_min: float = -20.0) -> None:
        super().__init__()
        if s <= 0.0 or not -100.0 <= log_snr_min <= 0.0:
            raise InputError(f"s must be positive and log_snr_min from -100 to 0; got {s} and {log_snr_min}.")
        self.first = s / (1.0 + s) * math.pi / 2.0
        alpha_bar = 1.0 / (1.0 + math.exp(-log_snr_min))
        self.last = math.acos(math.sqrt(alpha_bar) * math.cos(self.first))

    def kernel(self, t: Times) -> tuple[Times, Times]:
        angle = self.first + t * (self.last - self.first)
        first = math.cos(self.first)
        # cos^2 a - cos^2 b = sin(b + a) sin(b - a): no cancellation near the data
        sigma = ((angle + self.first).sin() * (angle - self.first).sin()).clamp(min=0.0).sqrt()
        return angle.cos() / first, sigma / first

    def time(self, log_snr: Times) -> Times:
        # acos would cancel near the data; sin^2 angle = sin^2 first + sigma^2 cos^2 first does not
        sigma2 = (-log_snr).sigmoid()
        sine = (math.sin(self.first) ** 2 + sigma2 * math.cos(self.first) ** 2).sqrt()
        cosine = log_snr.sigmoid().sqrt() * math.cos(self.first)
        return (torch.atan2(sine, cosine) - self.first) / (self.last - self.first)


class Karras(Schedule):
    r"""The schedule of EDM (Karras et al. 2022): :math:`\alpha = 1`, :math:`\sigma = \sigma_{\max} t^\rho`.

    Uniform steps in ``t`` from :math:`(\sigma_{\min} / \sigma_{\max})^{1/\rho}` to 1 are the steps of their eq. 5.

    Args:
        sigma_max: the largest noise level.
        rho: the exponent that relates noise to time.
    """

    def __init__(self, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__()
        if sigma_max <= 0.0 or rho <= 0.0:
            raise InputError(f"sigma_max and rho must be positive; got {sigma_max} and {rho}.")
        self.sigma_max, self.rho = sigma_max, rho

    def kernel(self, t: Times) -> tuple[Times, Times]:
        return torch.ones_like(t), self.sigma_max * t**self.rho

    def time(self, log_snr: Times) -> Times:
        return ((-0.5 * log_snr).exp() / self.sigma_max) ** (1.0 / self.rho)


class RectifiedFlow(Schedule):
    r"""Straight lines from data to noise: :math:`\alpha = 1 - t`, :math:`\sigma = t` (Liu et al. 2023, sec. 2.1)."""

    def kernel(self, t: Times) -> tuple[Times, Times]:
        return 1.0 - t, t

    def time(self, log_snr: Times) -> Times:
        return (-0.5 * log_snr).sigmoid()
