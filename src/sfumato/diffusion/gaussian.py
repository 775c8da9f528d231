"""Gaussian transitions of the forward process and their posteriors."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.diffusion.level import Level, Scalar, broadcast


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A Gaussian with covariance ``variance * I``; ``variance`` broadcasts against ``mean``."""

    mean: Float[Tensor, "batch *shape"]
    variance: float | Tensor


def diffuse(
    x0: Float[Tensor, "batch *shape"], level: Level, noise: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch *shape"]:
    r"""A draw of the diffusion kernel: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` (Ho et al. 2020, eq. 4)."""
    at = level.like(x0)
    return at.alpha * x0 + at.sigma * noise


def transition(t: Level, s: Level) -> tuple[Scalar, Scalar]:
    r"""Scale and variance of :math:`q(x_t | x_s) = \mathcal N(\alpha_{t|s} x_s, \sigma^2_{t|s} I)`, ``s`` before ``t``.

    :math:`\alpha_{t|s} = \alpha_t / \alpha_s` and :math:`\sigma^2_{t|s} = \sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2`
    (Kingma et al. 2021, eq. 20).
    Between neighbouring steps of a discrete schedule these are :math:`\sqrt{1 - \beta_t}` and :math:`\beta_t`.
    """
    scale = t.alpha / s.alpha
    return scale, t.sigma * t.sigma - scale * scale * s.sigma * s.sigma


def posterior_coefficients(t: Level, s: Level) -> tuple[Scalar, Scalar, Scalar]:
    r"""The numbers :math:`k_0, k_t, \tilde\beta` of :func:`posterior`."""
    scale, variance = transition(t, s)
    ratio = s.sigma * s.sigma / (t.sigma * t.sigma)
    return s.alpha * variance / (t.sigma * t.sigma), scale * ratio, variance * ratio


def posterior(x0: Float[Tensor, "batch *shape"], x_t: Float[Tensor, "batch *shape"], t: Level, s: Level) -> Gaussian:
    r"""The posterior :math:`q(x_s | x_t, x_0) = \mathcal N(k_0 x_0 + k_t x_t, \tilde\beta I)`, any ``s`` before ``t``.

    .. math::
        k_0 = \frac{\alpha_s \sigma_{t|s}^2}{\sigma_t^2}, \qquad
        k_t = \frac{\alpha_{t|s} \sigma_s^2}{\sigma_t^2}, \qquad
        \tilde\beta = \frac{\sigma_{t|s}^2 \sigma_s^2}{\sigma_t^2}

    (Ho et al. 2020, eqs. 6 and 7, for neighbouring steps; Kingma et al. 2021, app. A.2, for any pair.)
    At ``s = 0`` the mean is :math:`x_0` and the variance 0.
    """
    k0, kt, variance = (broadcast(k, x_t) for k in posterior_coefficients(t, s))
    return Gaussian(k0 * x0 + kt * x_t, variance)
