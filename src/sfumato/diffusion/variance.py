"""Variances of the reverse process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior_coefficients, transition
from sfumato.diffusion.level import Level, Scalar, broadcast
from sfumato.errors import InputError

ReverseVariance = Callable[[Prediction, Level, Level], Scalar]
r"""The variance of :math:`p_\theta(x_s | x_t)`, from the prediction at ``t`` and the levels ``t`` and ``s``."""


def small(prediction: Prediction, t: Level, s: Level) -> Scalar:
    r"""The posterior's :math:`\tilde\beta`: optimal when the data are a single point (Ho et al. 2020, sec. 3.2)."""
    return posterior_coefficients(t, s)[2]


def large(prediction: Prediction, t: Level, s: Level) -> Scalar:
    r"""The forward :math:`\beta = \sigma^2_{t|s}`: optimal for standard normal data (Ho et al. 2020, sec. 3.2).

    In the last step, to ``s = 0``, no noise is added (their algorithm 2).
    """
    return floored(transition(t, s)[1], s, 0.0)


def floor(levels: Level | Sequence[Level]) -> float:
    r"""What stands for the zero :math:`\tilde\beta` of the last step of a grid: that of the step before it.

    (Nichol and Dhariwal 2021, code, there of the table's own steps.) A grid of one step has no step before: there
    it is the variance of :math:`x_0` given :math:`x_t` for standard normal data,
    :math:`\sigma^2 / (\alpha^2 + \sigma^2)`, which is :math:`\beta` where the variance is preserved.
    """
    nodes = list(levels)
    if len(nodes) >= 3:
        return float(posterior_coefficients(nodes[-3], nodes[-2])[2])
    alpha2, sigma2 = float(nodes[-2].alpha) ** 2, float(nodes[-2].sigma) ** 2
    return sigma2 / (alpha2 + sigma2)


def floored(variance: Scalar, s: Level, lowest: Scalar) -> Scalar:
    """``variance``, and ``lowest`` for those steps that end at the data."""
    if isinstance(s.sigma, Tensor):
        return torch.where(s.sigma == 0.0, lowest, torch.as_tensor(variance))
    return lowest if s.sigma == 0.0 else variance


def decoded(variance: ReverseVariance) -> ReverseVariance:
    r"""``variance``, and in the step to the data that of the noise itself, :math:`\sigma^2 / \alpha^2`.

    (Kingma et al. 2021, whose decoder knows the data as well as their noisy version does.) On a fine grid that ends at
    a noise as large as a part of a bin, the variance of the step before (:func:`floor`) is far too small for a decoder.
    """
    return partial(_decoded, variance=variance)


def _decoded(prediction: Prediction, t: Level, s: Level, variance: ReverseVariance) -> Scalar:
    ratio = t.noise_to_signal
    return floored(variance(prediction, t, s), s, ratio * ratio)


def learned(prediction: Prediction, t: Level, s: Level, *, lowest: float | None = None) -> Scalar:
    r"""The variance that the network learned, between the small and the large one in the logarithm.

    :math:`\Sigma = \exp(v \log \beta + (1 - v) \log \tilde\beta)` (Nichol and Dhariwal 2021, eq. 15), with
    :math:`\beta` and :math:`\tilde\beta` those of the step at hand, one number per dimension.

    Args:
        prediction: that of a denoiser with ``learned_variance``.
        t: the level of ``x``.
        s: the level that is stepped to.
        lowest: the :math:`\tilde\beta` of a step to the data, :func:`floor` of the grid in use; by default that step
            has no noise, as in sampling.

    Raises:
        InputError: if the network did not learn the variance.
    """
    if prediction.variance_fraction is None:
        raise InputError(
            "This network did not learn its reverse variance; train with model.learned_variance, or use small or large."
        )
    fraction = prediction.variance_fraction
    start, width = (broadcast(k, fraction) for k in log_range(t, s, 1.0 if lowest is None else lowest))
    variance = (start + fraction * width).exp()
    if lowest is not None:
        return variance
    if not isinstance(s.sigma, Tensor):
        return variance if s.sigma != 0.0 else 0.0
    return variance * broadcast((s.sigma != 0.0).double(), variance)


def log_range(t: Level, s: Level, lowest: float) -> tuple[Scalar, Scalar]:
    r""":math:`\log\tilde\beta` and :math:`\log\beta - \log\tilde\beta`, with ``lowest`` in the step to the data."""
    tilde = torch.as_tensor(floored(posterior_coefficients(t, s)[2], s, lowest), dtype=torch.float64).log()
    width = torch.as_tensor(transition(t, s)[1], dtype=torch.float64).log() - tilde
    return (tilde, width) if isinstance(t.sigma, Tensor) else (float(tilde), float(width))
