"""Variances of the reverse process."""

from __future__ import annotations

from collections.abc import Callable

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior_coefficients, transition
from sfumato.diffusion.level import Level, Scalar

ReverseVariance = Callable[[Prediction, Level, Level], Scalar]
r"""The variance of :math:`p_\theta(x_s | x_t)`, from the prediction at ``t`` and the levels ``t`` and ``s``."""


def small(prediction: Prediction, t: Level, s: Level) -> Scalar:
    r"""The posterior's :math:`\tilde\beta`: optimal when the data are a single point (Ho et al. 2020, sec. 3.2)."""
    return posterior_coefficients(t, s)[2]


def large(prediction: Prediction, t: Level, s: Level) -> Scalar:
    r"""The forward :math:`\beta = \sigma^2_{t|s}`: optimal for standard normal data (Ho et al. 2020, sec. 3.2).

    In the last step, to ``s = 0``, no noise is added (their algorithm 2).
    """
    return transition(t, s)[1] if s.sigma != 0.0 else 0.0
