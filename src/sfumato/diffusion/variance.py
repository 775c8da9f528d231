"""Variances of the reverse process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.gaussian import diffuse, posterior_coefficients, transition
from sfumato.diffusion.level import Level, Scalar, as_given, broadcast, float64
from sfumato.errors import InputError

# the variance of p(x_s | x_t), from the prediction at t and the levels t and s
ReverseVariance = Callable[[Prediction, Level, Level], Scalar]


def small(prediction: Prediction, t: Level, s: Level) -> Scalar:
    r"""The posterior :math:`\tilde\beta`: optimal when the data are a single point (Ho et al. 2020, sec. 3.2)."""
    return posterior_coefficients(t, s)[2]


def large(prediction: Prediction, t: Level, s: Level) -> Scalar:
    r"""The forward :math:`\sigma^2_{t|s}`: optimal for standard normal data (Ho et al. 2020); 0 for ``s`` = 0."""
    return floored(transition(t, s)[1], s, 0.0)


def floor(levels: Level | Sequence[Level]) -> float:
    r"""The value that replaces the zero :math:`\tilde\beta` of a grid's last step: that of the step before.

    (Nichol and Dhariwal 2021, code.) In a grid of one step it is :math:`\sigma^2 / (\alpha^2 + \sigma^2)`.
    """
    nodes = list(levels)
    if len(nodes) >= 3:
        return float(posterior_coefficients(nodes[-3], nodes[-2])[2])
    alpha2, sigma2 = float(nodes[-2].alpha) ** 2, float(nodes[-2].sigma) ** 2
    return sigma2 / (alpha2 + sigma2)


def floored(variance: Scalar, s: Level, lowest: Scalar) -> Scalar:
    """``variance``, or ``lowest`` for steps that end at the data."""
    if isinstance(s.sigma, Tensor):
        return torch.where(s.sigma == 0.0, lowest, torch.as_tensor(variance))
    return lowest if s.sigma == 0.0 else variance


def decoded(variance: ReverseVariance) -> ReverseVariance:
    r"""``variance``, but in the step to the data the noise variance :math:`\sigma^2 / \alpha^2` (Kingma et al. 2021).

    Where the noise at a grid's end is a fraction of a bin, :func:`floor` is far too small for a decoder.
    """

    def with_decoder(prediction: Prediction, t: Level, s: Level) -> Scalar:
        ratio = t.noise_to_signal
        return floored(variance(prediction, t, s), s, ratio * ratio)

    return with_decoder


def learned(prediction: Prediction, t: Level, s: Level, *, lowest: float | None = None) -> Scalar:
    r"""The variance that the network has learned, interpolated between the logarithms of small and large.

    :math:`\Sigma = \exp(v \log \beta + (1 - v) \log \tilde\beta)`, one number per dimension (Nichol and Dhariwal 2021,
    eq. 15). ``lowest`` is the :math:`\tilde\beta` of a step to the data (:func:`floor`); without it, that step adds no
    noise.
    """
    if prediction.variance_fraction is None:
        raise InputError(
            "This network has not learned its reverse variance; train with model.learned_variance, or use small or "
            "large."
        )
    fraction = prediction.variance_fraction
    start, width = (broadcast(k, fraction) for k in log_range(t, s, 1.0 if lowest is None else lowest))
    variance = (start + fraction * width).exp()
    if lowest is None and isinstance(s.sigma, Tensor):
        return variance * broadcast((s.sigma != 0.0).double(), variance)
    return 0.0 if lowest is None and s.sigma == 0.0 else variance


def log_range(t: Level, s: Level, lowest: float) -> tuple[Scalar, Scalar]:
    r""":math:`\log\tilde\beta` and :math:`\log\beta - \log\tilde\beta`, with ``lowest`` in the step to the data."""
    tilde = float64(floored(posterior_coefficients(t, s)[2], s, lowest)).log()
    width = float64(transition(t, s)[1]).log() - tilde
    return as_given(tilde, t.sigma), as_given(width, t.sigma)


# how Gamma is estimated: from the error of the estimate of the data, or from the norm of the predicted noise
Estimator = Literal["error", "norm"]


@dataclass(frozen=True)
class Gamma:
    r"""A table of :math:`\Gamma(\lambda) = \tfrac1D \mathbb E \lVert \hat\epsilon(x, \lambda) \rVert^2` by log-SNR.

    It is :math:`\sigma^2` times the :math:`\Gamma` of Bao et al. 2022, sec. 3, averaged over ``samples`` images (0 for
    exact expectations) by an ``estimator`` of :func:`estimate`. It belongs to a denoiser and its data, not to a
    schedule or a grid.
    """

    log_snr: tuple[float, ...]
    gamma: tuple[float, ...]
    samples: int = 0
    estimator: Estimator = "norm"

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise(self.log_snr))
        finite = all(map(math.isfinite, (*self.log_snr, *self.gamma)))
        if not (len(self.log_snr) == len(self.gamma) > 0 and rising and finite and min(self.gamma) >= 0.0):
            raise InputError("A table of Gamma needs finite levels that rise strictly, and a number >= 0 for each.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Gamma:
        try:
            log_snr, gamma = (tuple(float(number) for number in values[key]) for key in ("log_snr", "gamma"))
            samples, estimator = int(values["samples"]), values.get("estimator", "norm")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"These are not the values of a table of Gamma ({error!r}).") from None
        _check_estimator(estimator)
        return cls(log_snr, gamma, samples, estimator)

    def monotone(self) -> Gamma:
        r"""The table in which the posterior variance of the data never rises towards less noise.

        It is the isotonic regression of :math:`V = \frac{\sigma^2}{\alpha^2} (1 - \Gamma)` (Ayer et al. 1955), weighted
        by inverse variance: :math:`\mathrm{SNR}^2` when Gamma is equally uncertain everywhere, as for the mean norm of
        the noise, and :math:`V^{-2}` for a mean error.
        """
        from scipy.optimize import isotonic_regression

        snr = np.exp(self.log_snr)
        spread = (1.0 - np.array(self.gamma)) / snr
        weights = snr**2 if self.estimator == "norm" else 1.0 / np.maximum(spread, 1e-12 / snr) ** 2
        fit = isotonic_regression(spread, weights=weights, increasing=False)
        return replace(self, gamma=tuple(max(0.0, float(number)) for number in 1.0 - snr * fit.x))

    def data_variance(self, level: Level) -> Scalar:
        r"""The mean posterior variance of the data, :math:`\frac{\sigma^2}{\alpha^2} (1 - \Gamma)`, never negative.

        Between the levels of the table the logit of :math:`1 - \Gamma` is linear in the log-SNR, as it is for Gaussian
        data. At :math:`\alpha = 0` the value of the noisiest level is used.
        """
        at = float64(level.log_snr)
        known = torch.tensor(self.log_snr, dtype=torch.float64, device=at.device)
        low, high = self.log_snr[0], self.log_snr[-1]
        at = torch.where(at == -math.inf, low, at)
        slack = 1e-6 * max(1.0, abs(low), abs(high))
        if bool(((at < low - slack) | (at > high + slack)).any()):
            raise InputError(
                f"Gamma is known from log-SNR {low:.4g} to {high:.4g}, but a step starts outside; estimate it on the "
                "levels of this grid."
            )
        gamma = torch.tensor(self.gamma, dtype=torch.float64, device=at.device).clamp(1e-12, 1.0 - 1e-12)
        logit = torch.log1p(-gamma) - gamma.log()
        if len(self.gamma) > 1:
            right = torch.searchsorted(known, at.contiguous()).clamp(1, len(known) - 1)
            fraction = ((at - known[right - 1]) / (known[right] - known[right - 1])).clamp(0.0, 1.0)
            logit = torch.lerp(logit[right - 1], logit[right], fraction)
        # a table of one level is broadcast
        return as_given((logit.sigmoid() * (-at).exp()).reshape(at.shape), level.alpha)


def _check_estimator(estimator: str) -> None:
    if estimator not in get_args(Estimator):
        raise InputError(f"The estimator of Gamma is error or norm; got {estimator!r}.")


# clean data (B, *shape), alone or with conditions; B may differ from batch to batch
Batch = Float[Tensor, "..."] | tuple[Float[Tensor, "..."], dict[str, Tensor]]


@torch.no_grad()
def estimate(
    denoiser: Denoise,
    batches: Iterable[Batch],
    levels: Level,
    *,
    estimator: Estimator = "error",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Gamma:
    r"""Gamma of a denoiser, in one pass over the data with each image at every noisy level (Bao et al. 2022, sec. 3).

    Since :math:`V_t = \tfrac1D \mathbb E \operatorname{tr} Var[x_0 | x_t]` is :math:`\frac{\sigma^2}{\alpha^2} (1 -
    \Gamma)`, there are two estimators. The squared error :math:`\tfrac1D \mathbb E \lVert x_0 - \hat x_0 \rVert^2` is
    :math:`V_t` itself for the exact denoiser, to within the same few per cent at every level; for any other denoiser it
    is the optimal variance of :math:`x_0` around its estimates (Bao et al. 2022, "Estimating the Optimal Covariance").
    The published norm of :math:`\hat\epsilon` is subtracted from 1, which leaves only sampling error where almost
    everything is noise. :math:`V_t` is at most that of :math:`\hat x_0 = x / \alpha`, so that Gamma is at least 0.

    The noise depends only on the seed, the image and the level.

    Args:
        estimator: estimate from the squared error of the data estimates (error), or from the norm of the predicted
            noise (norm), as published.
        progress: called with the number of images done.
    """
    _check_estimator(estimator)
    steps = [level for level in levels if level.sigma != 0.0]
    if not steps or any(level.alpha == 0.0 for level in steps):
        raise InputError("Gamma needs levels with noise and with signal: sigma and alpha above 0.")
    totals, start = torch.zeros(len(steps), dtype=torch.float64), 0
    for batch in batches:
        x0, cond = batch if isinstance(batch, tuple) else (batch, dict[str, Tensor]())
        for k, level in enumerate(steps):
            noise = random.normal(seed, "analytic", start, len(x0), tuple(x0.shape[1:]), step=k).to(x0)
            prediction = denoiser(diffuse(x0, level, noise), level, **cond)
            value = prediction.eps if estimator == "norm" else prediction.x0 - x0
            totals[k] += value.double().square().flatten(1).mean(1).sum().cpu()
        start += len(x0)
        if progress is not None:
            progress(start)
    if start == 0:
        raise InputError("Gamma can't be estimated without data.")
    log_snr = torch.tensor([float(level.log_snr) for level in steps], dtype=torch.float64)
    means = totals / start if estimator == "norm" else (1.0 - log_snr.exp() * totals / start).clamp(min=0.0)
    order = log_snr.argsort()
    return Gamma(tuple(log_snr[order].tolist()), tuple(means[order].tolist()), start, estimator)


def analytic(
    gamma: Gamma, *, radius: float = 1.0, to_data: bool = False, last: Level | None = None, pixels: float = 2.0
) -> ReverseVariance:
    r"""The optimal reverse variance for a denoiser, among those with one number per step.

    .. math::
        \sigma^2 = \tilde\beta + k_0^2 \min\left(\frac{\sigma_t^2}{\alpha_t^2} (1 - \Gamma_t),\ r^2\right)

    (Bao et al. 2022, theorems 1 and 2), for any pair of levels.

    Args:
        radius: half the width of the range of the data.
        to_data: whether the step to the data has this variance too, as the decoder of a bound needs.
        last: the last noisy level of the grid in use. In the step that ends there, the noise is clipped so that
            :math:`\mathbb E |\sigma z| \le 2 r p / 255` (app. F of the paper).
        pixels: ``p``, in units of 1/255 of the range; 1 or 2 in the paper.
    """
    if radius <= 0.0 or pixels <= 0.0:
        raise InputError(f"radius and pixels must be positive; got {radius} and {pixels}.")
    end = math.inf if last is None else float(last.log_snr) - 1e-9
    # E|z| = sqrt(2 / pi) for a normal z
    most = (2.0 * radius * pixels / 255.0) ** 2 * math.pi / 2.0

    def variance(prediction: Prediction, t: Level, s: Level) -> Scalar:
        k0, _, tilde = posterior_coefficients(t, s)
        value = tilde + k0 * k0 * float64(gamma.data_variance(t)).clamp(max=radius * radius)
        log_snr, sigma = (float64(number).to(value.device) for number in (s.log_snr, s.sigma))
        value = torch.where((log_snr >= end) & (sigma != 0.0), value.clamp(max=most), value)
        return as_given(value if to_data else torch.where(sigma != 0.0, value, 0.0), t.alpha)

    return variance
