"""Denoisers that wrap denoisers: samplers and bounds cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level, Scalar, broadcast
from sfumato.diffusion.parameterization import v
from sfumato.errors import InputError

EVERYWHERE = (0.0, math.inf)
r"""The interval of :math:`\sigma / \alpha` that holds every level."""


@dataclass(frozen=True, slots=True)
class Clipped:
    r"""A denoiser whose estimate of the data is held within their range (Ho et al. 2020, code).

    In much noise an error of the predicted noise is one of the data :math:`\sigma / \alpha` times as large, far beyond
    what data can be. The estimate of the noise is that which belongs to the clipped one of the data.

    Attributes:
        denoiser: what is wrapped.
        low: the least value of the data.
        high: the greatest.

    Raises:
        InputError: if the range is empty.
    """

    denoiser: Denoise
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"The range that data are clipped to is empty: {self.low} to {self.high}.")

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        found = self.denoiser(x, level, **cond)
        return Prediction.of_x0(x, found.x0.clamp(self.low, self.high), level, found.variance_fraction)


@dataclass(frozen=True, slots=True)
class Thresholded:
    r"""Dynamic thresholding (Saharia et al. 2022, "Imagen", sec. 2.3): clipping that keeps contrast within the range.

    With :math:`s` the percentile of :math:`|\hat x_0|` over a sample, but at least the ``limit`` :math:`l` of the data,
    the estimate becomes :math:`\operatorname{clip}(\hat x_0, -s, s)\, l / s`: a guided sample that is all too bright is
    scaled back where clipping would saturate it.

    Attributes:
        denoiser: what is wrapped.
        percentile: the fraction of a sample's values that are not to be cut off, such as 0.995; 1 cuts none.
        limit: the greatest magnitude of the data.

    Raises:
        InputError: if the percentile lies outside (0, 1] or the limit is not positive.
    """

    denoiser: Denoise
    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.percentile <= 1.0:
            raise InputError(f"The percentile of dynamic thresholding lies in (0, 1]; got {self.percentile}.")
        if not self.limit > 0.0:
            raise InputError(f"The limit of dynamic thresholding must be positive; got {self.limit}.")

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        found = self.denoiser(x, level, **cond)
        x0 = found.x0
        # quantiles are only there for float32 and float64
        magnitude = x0.abs().flatten(1)
        magnitude = magnitude if magnitude.dtype == torch.float64 else magnitude.float()
        s = magnitude.quantile(self.percentile, dim=1).clamp(min=self.limit).to(x0.dtype)
        s = s.reshape(-1, *[1] * (x0.ndim - 1))
        held = x0.clamp(-s, s) * (self.limit / s)
        return Prediction.of_x0(x, held, level, found.variance_fraction)


def no_label(name: str, condition: Tensor) -> Tensor:
    """The null condition of class labels: -1 for each.

    Raises:
        InputError: for a condition of other than whole numbers, whose null condition must be told.
    """
    if condition.is_floating_point() or condition.is_complex() or condition.dtype == torch.bool:
        raise InputError(f"The condition {name!r} is no label; guidance needs to be told its null condition.")
    return torch.full_like(condition, -1)


def label_alone(name: str, condition: Tensor) -> Tensor:
    """The null condition of guidance by class labels where there are other conditions, which stay as they are."""
    return no_label(name, condition) if name == "label" else condition


@dataclass(frozen=True, slots=True)
class ClassifierFree:
    r"""Classifier-free guidance (Ho and Salimans 2022, eq. 6): away from the null condition, towards the one given.

    .. math:: \hat\epsilon = \hat\epsilon(x) + w\, (\hat\epsilon(x | c) - \hat\epsilon(x))

    and the same of :math:`\hat x_0`: 0 is unconditional, 1 the condition alone; their :math:`w` is this one less 1. The
    two predictions are those of one batch of twice the size. Beyond the ``interval`` of levels only the condition is
    computed (Kynkäänniemi et al. 2024). The variance is that of the condition.

    With ``rescale`` :math:`\phi`, the estimate of the data is shrunk towards the standard deviation that it has with
    the condition alone, sample by sample, :math:`\hat x_0 (\phi\, s_c / s + 1 - \phi)` (Lin et al. 2024, eqs. 15, 16).

    Attributes:
        denoiser: what is wrapped.
        scale: the guidance scale :math:`w`.
        rescale: :math:`\phi`, from 0 (none) to 1.
        interval: the levels that are guided, :math:`\text{low} < \sigma / \alpha \le \text{high}`.
        null: the null condition in the place of a named one; by default that of class labels.

    Raises:
        InputError: if a number is out of its range; when called, if there is no condition.
    """

    denoiser: Denoise
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = EVERYWHERE
    null: Callable[[str, Tensor], Tensor] = no_label

    def __post_init__(self) -> None:
        _check_guidance(self.scale, self.interval)
        if not 0.0 <= self.rescale <= 1.0:
            raise InputError(f"The rescaling of guidance lies between 0 and 1; got {self.rescale}.")

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        if not cond:
            raise InputError("Classifier-free guidance needs a condition to be guided by; none was given.")
        scale = _within(level, self.interval, self.scale)
        if scale is None:
            return self.denoiser(x, level, **cond)
        both = {name: torch.cat([given, self.null(name, given)]) for name, given in cond.items()}
        double = _twice(level)
        found = self.denoiser(torch.cat([x, x]), double, **both)
        given, null = _target(found, double).chunk(2)
        fraction = found.variance_fraction
        fraction = None if fraction is None else fraction.chunk(2)[0]
        guided = Prediction(x, _extrapolate(null, given, scale), v(level), fraction)
        if self.rescale == 0.0:
            return guided
        before = Prediction(x, given, v(level)).x0
        after = guided.x0
        ratio = before.flatten(1).std(1, correction=0) / after.flatten(1).std(1, correction=0)
        # a constant image has no contrast to restore
        factor = self.rescale * ratio.nan_to_num(1.0, 1.0, 1.0) + (1.0 - self.rescale)
        return Prediction.of_x0(x, after * broadcast(factor, x), level, fraction)


@dataclass(frozen=True, slots=True)
class Autoguided:
    r"""Autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself", sec. 3).

    .. math:: \hat x_0 = \hat x_0^{\text{weak}} + w\, (\hat x_0 - \hat x_0^{\text{weak}})

    where the weak model is one of the same task that was trained less or is smaller: the errors that both make are
    extrapolated away. Both are given the conditions. The variance is that of the better one.

    Attributes:
        denoiser: what is wrapped.
        weak: the weaker denoiser, of the same schedule.
        scale: the guidance scale :math:`w`; 1 is none.
        interval: the levels that are guided, :math:`\text{low} < \sigma / \alpha \le \text{high}`.

    Raises:
        InputError: if a number is out of its range.
    """

    denoiser: Denoise
    weak: Denoise
    scale: float
    interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        _check_guidance(self.scale, self.interval)

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        found = self.denoiser(x, level, **cond)
        scale = _within(level, self.interval, self.scale)
        if scale is None:
            return found
        weak = _target(self.weak(x, level, **cond), level)
        return Prediction(x, _extrapolate(weak, _target(found, level), scale), v(level), found.variance_fraction)


@dataclass(frozen=True, slots=True)
class ClassifierGuided:
    r"""Classifier guidance (Dhariwal and Nichol 2021, algorithm 2): the score of a noisy classifier is added.

    .. math::
        \hat\epsilon = \hat\epsilon(x) - w\, \sigma\, \nabla_x \log p(y | x_t), \qquad
        \hat x_0 = \hat x_0(x) + w\, \frac{\sigma^2}{\alpha} \nabla_x \log p(y | x_t)

    With the exact classifier and :math:`w = 1`, this is the exact denoiser of the class, by the rule of Bayes.
    Where :math:`\alpha = 0` nothing tells of the class, and nothing is added.

    Attributes:
        denoiser: what is wrapped.
        log_prob: ``(x, level, **cond)`` to the log-probabilities ``(B,)`` of the wanted classes, differentiable in
            ``x``; the conditions are those that the denoiser is given.
        scale: the guidance scale :math:`w`; 0 is none.
        interval: the levels that are guided, :math:`\text{low} < \sigma / \alpha \le \text{high}`.

    Raises:
        InputError: if a number is out of its range; when called, if there is not one log-probability per sample, or
            it does not depend on ``x``.
    """

    denoiser: Denoise
    log_prob: Callable[..., Tensor]
    scale: float = 1.0
    interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        _check_guidance(self.scale, self.interval)

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        found = self.denoiser(x, level, **cond)
        scale = _within(level, self.interval, self.scale, off=0.0)
        if scale is None or (not isinstance(level.alpha, Tensor) and level.alpha == 0.0):
            return found
        gradient = self._gradient(x, level, cond)
        # both changes in one: that of alpha eps - sigma x0
        change = level.sigma * (level.sigma * level.sigma / level.alpha + level.alpha) * scale
        if isinstance(change, Tensor):
            change = torch.where(torch.as_tensor(level.alpha) > 0.0, change, 0.0)
        target = _target(found, level) - broadcast(change, x) * gradient
        return Prediction(x, target, v(level), found.variance_fraction)

    def _gradient(self, x: Tensor, level: Level, cond: dict[str, Tensor]) -> Float[Tensor, "batch *shape"]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = self.log_prob(leaf, level, **cond)
            if value.shape != x.shape[:1]:
                raise InputError(
                    f"A classifier that guides gives one log-probability per sample, ({len(x)},); "
                    f"this one gives {tuple(value.shape)}."
                )
            if not value.requires_grad:
                raise InputError("A classifier that guides must be differentiable in x; this one is constant.")
            return torch.autograd.grad(value.sum(), leaf)[0]


def _check_guidance(scale: float, interval: tuple[float, float]) -> None:
    if not 0.0 <= scale < math.inf:
        raise InputError(f"A guidance scale is a finite number from 0 on; got {scale}.")
    low, high = interval
    if not 0.0 <= low < high:
        raise InputError(f"The guidance interval needs 0 <= low < high in sigma / alpha; got {low} and {high}.")


def _within(level: Level, interval: tuple[float, float], scale: float, off: float = 1.0) -> Scalar | None:
    """The scale at a level, ``off`` beyond the interval; None if that is all there is."""
    low, high = interval
    # alpha = 0 is at infinity, which the whole interval holds
    ratio = level.noise_to_signal
    if not isinstance(ratio, Tensor):
        return scale if scale != off and low < ratio <= high else None
    inside = (ratio > low) & (ratio <= high)
    return None if scale == off or not bool(inside.any()) else torch.where(inside, scale, off)


def _twice(level: Level) -> Level:
    """The levels of a batch that holds every sample of another twice."""
    values = (level.t, level.alpha, level.sigma)
    return Level(*(value.repeat(2) if isinstance(value, Tensor) and value.ndim else value for value in values))


def _target(found: Prediction, level: Level) -> Tensor:
    r""":math:`\alpha \hat\epsilon - \sigma \hat x_0`, which keeps the digits of both estimates at every level."""
    return found.mix(-1.0 * level.sigma, level.alpha)


def _extrapolate(origin: Tensor, towards: Tensor, scale: Scalar) -> Tensor:
    return origin + broadcast(scale, origin) * (towards - origin)
