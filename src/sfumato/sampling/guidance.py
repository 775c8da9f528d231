"""Guidance and clipping: denoisers that wrap denoisers, for samplers and bounds alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level, Scalar, broadcast, float64
from sfumato.diffusion.parameterization import v
from sfumato.errors import InputError

# the interval of sigma / alpha that holds every level
EVERYWHERE = (0.0, math.inf)


@dataclass(frozen=True, slots=True)
class Clipped:
    r"""Clip the estimate of the data to the data range (code of Ho et al. 2020).

    At high noise, an error in the predicted noise becomes an error in the data :math:`\sigma / \alpha` times as large.
    """

    denoiser: Denoise
    low: float = -1.0
    high: float = 1.0

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        prediction = self.denoiser(x, level, **cond)
        clipped = prediction.x0.clamp(self.low, self.high)
        return Prediction.of_x0(x, clipped, level, prediction.variance_fraction, prediction.shift)


@dataclass(frozen=True, slots=True)
class Thresholded:
    r"""Dynamic thresholding (Saharia et al. 2022, "Imagen", sec. 2.3): clipping that keeps contrast within the range.

    With :math:`s` the percentile of :math:`|\hat x_0|` over a sample, but at least the ``limit`` :math:`l` of the data,
    the estimate becomes :math:`\operatorname{clip}(\hat x_0, -s, s)\, l / s`: a guided sample that is too bright is
    scaled back where clipping would saturate it. The ``percentile`` is the fraction of values that are not clipped.

    A ``cap`` on :math:`s` keeps the contrast of samples in which a few values are extreme; a cap equal to the limit is
    plain clipping.
    """

    denoiser: Denoise
    percentile: float = 0.995
    limit: float = 1.0
    cap: float = math.inf

    def __post_init__(self) -> None:
        if not (0.0 < self.percentile <= 1.0 and 0.0 < self.limit <= self.cap):
            needs = "a percentile in (0, 1], a positive limit and a cap that is not below it"
            raise InputError(
                f"Dynamic thresholding needs {needs}; got {self.percentile:g}, {self.limit:g} and {self.cap:g}."
            )

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        prediction = self.denoiser(x, level, **cond)
        x0 = prediction.x0
        # torch has quantiles only for float32 and float64
        magnitude = x0.abs().flatten(1)
        magnitude = magnitude if magnitude.dtype == torch.float64 else magnitude.float()
        s = magnitude.quantile(self.percentile, dim=1).clamp(self.limit, self.cap).to(x0.dtype)
        s = s.reshape(-1, *[1] * (x0.ndim - 1))
        scaled = x0.clamp(-s, s) * (self.limit / s)
        return Prediction.of_x0(x, scaled, level, prediction.variance_fraction, prediction.shift)


@dataclass(frozen=True, slots=True)
class Consistent:
    r"""Keep estimates consistent with a low-resolution image (range-null-space projection; Wang et al. 2023, "DDNM").

    .. math:: \hat x_0 \leftarrow \hat x_0 + D^+ (y - D \hat x_0)

    With the pseudo-inverse :math:`D^+` of down-sampling, :math:`D`, it is the smallest change after which the
    down-sampled estimate is exactly :math:`y`; the model decides only what :math:`y` does not determine.

    Attributes:
        denoiser: the denoiser whose estimates are corrected.
        low: the low-resolution images without noise, or the name of the condition that holds them. Rows of NaN stand
            for no image. If the estimate is larger, for example padded, its upper left corner is corrected.
        factor: the ratio of the image's sides to those of the low-resolution image.
        down: :math:`D`, from images to low-resolution images.
        up: :math:`D^+`.
        level: the name of the condition that holds the noise level of ``low``, which has to be 0.
        strict: whether noisy images and images of another size raise an error; otherwise their estimates are unchanged.
    """

    denoiser: Denoise
    low: Tensor | str
    factor: int
    down: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    level: str | None = None
    strict: bool = True

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        prediction = self.denoiser(x, level, **cond)
        low = cond.get(self.low) if isinstance(self.low, str) else self.low
        if low is None:
            return prediction
        if self.level is not None and bool((cond[self.level] > 0.0).any()):
            if not self.strict:
                return prediction
            raise InputError(
                f"Estimates can be kept consistent only with a low resolution without noise, but {self.level} is above "
                "0; use input_noise 0, or leave guidance.consistent out."
            )
        unknown = low.flatten(1).isnan().all(1)
        if bool(unknown.all()):
            return prediction
        height, width = (side * self.factor for side in low.shape[2:])
        if x.shape[2:] != (height, width) and (isinstance(self.low, str) or x.shape[2] < height or x.shape[3] < width):
            if not self.strict:
                return prediction
            sides = "x".join(map(str, low.shape[2:]))
            raise InputError(
                f"Consistent estimates need a low resolution {self.factor} times smaller than the images, which are "
                f"{x.shape[2]}x{x.shape[3]}; this one is {sides}."
            )
        x0 = prediction.x0.clone()
        corner = x0[..., :height, :width]
        change = self.up(low.to(x0) - self.down(corner))
        corner += torch.where(unknown[:, None, None, None], 0.0, change)
        return Prediction.of_x0(x, x0, level, prediction.variance_fraction, prediction.shift)


def null_labels(cond: dict[str, Tensor]) -> dict[str, Tensor]:
    """The null condition for class labels: -1 for each."""
    for name, value in cond.items():
        if value.is_floating_point() or value.dtype == torch.bool:
            raise InputError(f"The condition {name!r} does not hold class labels: pass null to ClassifierFree.")
    return {name: torch.full_like(value, -1) for name, value in cond.items()}


@dataclass(frozen=True, slots=True)
class ClassifierFree:
    r"""Classifier-free guidance (Ho and Salimans 2022, eq. 6): away from the null condition, towards the one given.

    .. math:: \hat\epsilon = \hat\epsilon(x) + w\, (\hat\epsilon(x | c) - \hat\epsilon(x))

    and the same for :math:`\hat x_0`. A scale of 0 is unconditional, 1 is the condition without guidance; the paper's
    :math:`w` is this one minus 1. Both predictions are made in one batch of twice the size; the variance is that of the
    conditional prediction.

    Attributes:
        scale: the guidance scale :math:`w`.
        rescale: :math:`\phi`, from 0 (none) to 1: how far each estimate of the data is scaled to the standard deviation
            of the conditional estimate, :math:`\hat x_0 (\phi\, s_c / s + 1 - \phi)` (Lin et al. 2024, eq. 16).
        interval: the guided levels, :math:`\text{low} < \sigma / \alpha \le \text{high}` (Kynkäänniemi et al. 2024);
            elsewhere only the conditional prediction is made.
        null: maps all conditions to their null versions; by default that of class labels, -1.
    """

    denoiser: Denoise
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = EVERYWHERE
    null: Callable[[dict[str, Tensor]], dict[str, Tensor]] = null_labels

    def __post_init__(self) -> None:
        _check_guidance(self.scale, self.interval)
        if not 0.0 <= self.rescale <= 1.0:
            raise InputError(f"The rescaling of guidance lies between 0 and 1; got {self.rescale}.")

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        if not cond:
            raise InputError("Classifier-free guidance needs a condition; none was given.")
        scale = _within(level, self.interval, self.scale, off=1.0)
        if scale is None:
            return self.denoiser(x, level, **cond)
        null = self.null(cond)
        both = {name: torch.cat([given, null[name]]) for name, given in cond.items()}
        double = level.map(lambda value: value.repeat(2) if isinstance(value, Tensor) and value.ndim else value)
        prediction = self.denoiser(torch.cat([x, x]), double, **both)
        with_condition, without = _target(prediction, double).chunk(2)
        fraction = prediction.variance_fraction
        if fraction is not None:
            fraction = fraction.chunk(2)[0]
        guided = Prediction(x, without + broadcast(scale, x) * (with_condition - without), v(level), fraction)
        if self.rescale == 0.0:
            return guided
        before, after = Prediction(x, with_condition, v(level)).x0, guided.x0
        ratio = before.flatten(1).std(1, correction=0) / after.flatten(1).std(1, correction=0)
        # a constant image has no contrast to restore
        factor = self.rescale * ratio.nan_to_num(1.0, 1.0, 1.0) + (1.0 - self.rescale)
        return Prediction.of_x0(x, after * broadcast(factor, x), level, fraction)


@dataclass(frozen=True, slots=True)
class Autoguided:
    r"""Autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself", sec. 3).

    .. math:: \hat x_0 = \hat x_0^{\text{weak}} + w\, (\hat x_0 - \hat x_0^{\text{weak}})

    where the weak model has the same task and schedule, but was trained less or is smaller: errors that both make are
    extrapolated away. Both receive the conditions. The variance is that of the better model.
    """

    denoiser: Denoise
    weak: Denoise
    scale: float
    interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        _check_guidance(self.scale, self.interval)

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        strong = self.denoiser(x, level, **cond)
        scale = _within(level, self.interval, self.scale, off=1.0)
        if scale is None:
            return strong
        weak = _target(self.weak(x, level, **cond), level)
        target = weak + broadcast(scale, x) * (_target(strong, level) - weak)
        return Prediction(x, target, v(level), strong.variance_fraction)


@dataclass(frozen=True, slots=True)
class ClassifierGuided:
    r"""Classifier guidance (Dhariwal and Nichol 2021): the gradient of a noisy classifier is added.

    With the rule ``"eps"`` (their algorithm 2) it is added to the score, for any solver:

    .. math::
        \hat\epsilon = \hat\epsilon(x) - w\, \sigma\, \nabla_x \log p(y | x_t), \qquad
        \hat x_0 = \hat x_0(x) + w\, \frac{\sigma^2}{\alpha} \nabla_x \log p(y | x_t)

    With the exact classifier and :math:`w = 1`, this is the exact denoiser of the class, by Bayes' rule. With the
    rule ``"mean"`` (their algorithm 1) it is added to the mean of a step of :func:`~sfumato.sampling.steps.ancestral`
    with the variance :math:`\Sigma`, and not to the estimates:

    .. math:: x_s \sim \mathcal N(\tilde\mu + w\, \Sigma\, \nabla_x \log p(y | x_t), \Sigma)

    Both agree in the limit of many steps. At :math:`\alpha = 0`, where ``x`` does not depend on the class, nothing is
    added. Clipping comes first, as in the authors' code: this wrapper goes around :class:`Clipped`.

    ``log_prob`` maps ``(x, level, **cond)`` to the log-probabilities ``(B,)`` of the classes, differentiable in ``x``.
    The conditions named in ``only`` are passed to the classifier, but not to the denoiser.
    """

    denoiser: Denoise
    log_prob: Callable[..., Tensor]
    scale: float = 1.0
    interval: tuple[float, float] = EVERYWHERE
    rule: Literal["eps", "mean"] = "eps"
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_guidance(self.scale, self.interval)

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        others = {name: value for name, value in cond.items() if name not in self.only}
        prediction = self.denoiser(x, level, **others)
        scale = _within(level, self.interval, self.scale, off=0.0)
        if scale is None or (not isinstance(level.alpha, Tensor) and level.alpha == 0.0):
            return prediction
        if isinstance(level.alpha, Tensor):
            scale = torch.where(float64(level.alpha) > 0.0, scale, 0.0)
        gradient = self._gradient(x, level, cond)
        if self.rule == "mean":
            return prediction.shifted(broadcast(scale, x) * gradient)
        # both changes at once, as the change of alpha eps - sigma x0
        change = level.sigma * (level.sigma * level.sigma / level.alpha + level.alpha) * scale
        if isinstance(change, Tensor):
            change = change.nan_to_num(0.0)
        target = _target(prediction, level) - broadcast(change, x) * gradient
        return Prediction(x, target, v(level), prediction.variance_fraction)

    def _gradient(self, x: Tensor, level: Level, cond: dict[str, Tensor]) -> Float[Tensor, "batch *shape"]:
        if torch.is_inference_mode_enabled():
            raise InputError("Classifier guidance computes a gradient; sample under torch.no_grad, not inference_mode.")
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = self.log_prob(leaf, level, **cond)
            if value.shape != x.shape[:1] or not value.requires_grad:
                raise InputError(
                    "A guiding classifier must return one log-probability per sample, differentiable in x; this one "
                    f"returns {tuple(value.shape)} for {len(x)} samples."
                )
            return torch.autograd.grad(value.sum(), leaf)[0]


def _check_guidance(scale: float, interval: tuple[float, float]) -> None:
    if not 0.0 <= scale < math.inf:
        raise InputError(f"A guidance scale must be a finite number of at least 0; got {scale}.")
    low, high = interval
    if not 0.0 <= low < high:
        raise InputError(f"The guidance interval needs 0 <= low < high in sigma / alpha; got {low} and {high}.")


def _within(level: Level, interval: tuple[float, float], scale: float, off: float) -> Scalar | None:
    """The scale at a level, ``off`` outside the interval; None if it is ``off`` for the whole batch."""
    low, high = interval
    ratio = level.noise_to_signal
    if not isinstance(ratio, Tensor):
        return scale if scale != off and low < ratio <= high else None
    inside = (ratio > low) & (ratio <= high)
    return None if scale == off or not bool(inside.any()) else torch.where(inside, scale, off)


def _target(prediction: Prediction, level: Level) -> Tensor:
    r""":math:`\alpha \hat\epsilon - \sigma \hat x_0`, which keeps both estimates accurate at every level."""
    return prediction.mix(-1.0 * level.sigma, level.alpha)
