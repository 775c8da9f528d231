"""Gaussian transitions of the forward process and their posteriors."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from sfumato.diffusion.level import Data, Level, Scalar, broadcast, sqrt
from sfumato.errors import InputError, SfumatoWarning

# the largest alpha_bar_T that counts as zero: the linear table of Ho et al. 2020 ends at 4e-5
TERMINAL_ALPHA_BAR = 1e-4


@dataclass(frozen=True, slots=True)
class IsotropicGaussian:
    """A Gaussian with covariance ``variance * I``; ``variance`` broadcasts against ``mean``."""

    mean: Data
    variance: float | Tensor

    def sample(self, noise: Data) -> Data:
        """The sample given by standard normal ``noise``."""
        return self.mean + sqrt(self.variance) * noise


def diffuse(x0: Data, level: Level, noise: Data) -> Data:
    r"""A sample of the diffusion kernel: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` (Ho et al. 2020, eq. 4)."""
    at = level.like(x0)
    return at.alpha * x0 + at.sigma * noise


def diffusion_kernel(x0: Data, t: Level) -> IsotropicGaussian:
    r"""The kernel :math:`q(x_t | x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2 I)` (Ho et al. 2020, eq. 4)."""
    at = t.like(x0)
    return IsotropicGaussian(at.alpha * x0, at.sigma * at.sigma)


def transition(t: Level, s: Level) -> tuple[Scalar, Scalar]:
    r"""Scale and variance of :math:`q(x_t | x_s) = \mathcal N(\alpha_{t|s} x_s, \sigma^2_{t|s} I)`, ``s`` before ``t``.

    :math:`\alpha_{t|s} = \alpha_t / \alpha_s` and :math:`\sigma^2_{t|s} = \sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2`
    (Kingma et al. 2021, app. A); between neighbouring steps of a table, :math:`\sqrt{1 - \beta_t}` and :math:`\beta_t`.
    """
    scale = t.alpha / s.alpha
    return scale, t.sigma * t.sigma - scale * scale * s.sigma * s.sigma


def forward_transition(x_s: Data, t: Level, s: Level) -> IsotropicGaussian:
    """The forward kernel :math:`q(x_t | x_s)` of :func:`transition` (Ho et al. 2020, eq. 2, for neighbours)."""
    scale, variance = (broadcast(k, x_s) for k in transition(t, s))
    return IsotropicGaussian(scale * x_s, variance)


def forward_process(x0: Data, levels: Level, noise: Callable[[Tensor], Tensor]) -> Iterator[tuple[Level, Data]]:
    r"""A sample of the forward process :math:`q(x_{1:T} | x_0) = \prod_t q(x_t | x_{t-1})` (Ho et al. 2020, eq. 2).

    Yields each level with the sample at that level, from the least noise to the most. The levels must be strictly
    increasing or decreasing.
    """
    steps = list(levels)
    if steps and steps[0].t > steps[-1].t:
        steps.reverse()
    before = steps.pop(0) if steps and steps[0].sigma == 0.0 else Level(0.0, 1.0, 0.0)
    if not steps or any(t.t <= s.t for s, t in itertools.pairwise([before, *steps])):
        raise InputError("The forward process needs at least one noisy level, and times that strictly rise or fall.")
    warn_of_signal(steps[-1])
    x = before.alpha * x0
    for s, t in itertools.pairwise([before, *steps]):
        x = forward_transition(x, t, s).sample(noise(x))
        yield t, x


def warn_of_signal(last: Level) -> None:
    r"""Warn when a variance-preserving schedule ends with signal: :math:`\bar\alpha_T` exceeds 1e-4 (Lin et al. 2024).

    Levels made of tensors, and levels before ``t = 1``, are not checked.
    """
    if isinstance(last.alpha, Tensor) or isinstance(last.sigma, Tensor) or last.t != 1.0:
        return
    alpha_bar = last.alpha * last.alpha
    if abs(alpha_bar + last.sigma * last.sigma - 1.0) < 1e-9 and alpha_bar > TERMINAL_ALPHA_BAR:
        warnings.warn(
            f"alpha_bar_T = {alpha_bar:.3g} is not near zero: {100.0 * last.alpha:.2g} % of the data's amplitude is "
            "left at t = 1; raise the last betas or the number of steps.",
            SfumatoWarning,
            stacklevel=3,
        )


def posterior_coefficients(t: Level, s: Level) -> tuple[Scalar, Scalar, Scalar]:
    r"""The coefficients :math:`k_0, k_t, \tilde\beta` of :func:`posterior`."""
    scale, variance = transition(t, s)
    ratio = s.sigma * s.sigma / (t.sigma * t.sigma)
    return s.alpha * variance / (t.sigma * t.sigma), scale * ratio, variance * ratio


def posterior(x0: Data, x_t: Data, t: Level, s: Level) -> IsotropicGaussian:
    r"""The posterior :math:`q(x_s | x_t, x_0) = \mathcal N(k_0 x_0 + k_t x_t, \tilde\beta I)`, ``s`` before ``t``.

    .. math::
        k_0 = \frac{\alpha_s \sigma_{t|s}^2}{\sigma_t^2}, \qquad
        k_t = \frac{\alpha_{t|s} \sigma_s^2}{\sigma_t^2}, \qquad
        \tilde\beta = \frac{\sigma_{t|s}^2 \sigma_s^2}{\sigma_t^2}

    (Ho et al. 2020, eqs. 6 and 7, for neighbouring steps; Kingma et al. 2021, app. A, for any pair.)
    """
    k0, kt, variance = (broadcast(k, x_t) for k in posterior_coefficients(t, s))
    return IsotropicGaussian(k0 * x0 + kt * x_t, variance)
