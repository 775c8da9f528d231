"""Gaussian transitions of the forward process and their posteriors."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.diffusion.level import Level, Scalar, broadcast, sqrt
from sfumato.errors import InputError, SfumatoWarning

TERMINAL_ALPHA_BAR = 1e-4
r"""The largest :math:`\bar\alpha_T` that passes for zero: the linear table of Ho et al. 2020 ends at 4e-5."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A Gaussian with covariance ``variance * I``; ``variance`` broadcasts against ``mean``."""

    mean: Float[Tensor, "batch *shape"]
    variance: float | Tensor

    def draw(self, noise: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The sample that standard normal ``noise`` makes."""
        return self.mean + sqrt(self.variance) * noise


def diffuse(
    x0: Float[Tensor, "batch *shape"], level: Level, noise: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch *shape"]:
    r"""A draw of the diffusion kernel: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` (Ho et al. 2020, eq. 4)."""
    at = level.like(x0)
    return at.alpha * x0 + at.sigma * noise


def diffusion_kernel(x0: Float[Tensor, "batch *shape"], t: Level) -> Gaussian:
    r"""The diffusion kernel :math:`q(x_t | x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2 I)` (Ho et al. 2020, eq. 4)."""
    at = t.like(x0)
    return Gaussian(at.alpha * x0, at.sigma * at.sigma)


def transition(t: Level, s: Level) -> tuple[Scalar, Scalar]:
    r"""Scale and variance of :math:`q(x_t | x_s) = \mathcal N(\alpha_{t|s} x_s, \sigma^2_{t|s} I)`, ``s`` before ``t``.

    :math:`\alpha_{t|s} = \alpha_t / \alpha_s` and :math:`\sigma^2_{t|s} = \sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2`
    (Kingma et al. 2021, app. A).
    Between neighbouring steps of a discrete schedule these are :math:`\sqrt{1 - \beta_t}` and :math:`\beta_t`.
    """
    scale = t.alpha / s.alpha
    return scale, t.sigma * t.sigma - scale * scale * s.sigma * s.sigma


def forward_transition(x_s: Float[Tensor, "batch *shape"], t: Level, s: Level) -> Gaussian:
    r"""The forward kernel :math:`q(x_t | x_s) = \mathcal N(\alpha_{t|s} x_s, \sigma^2_{t|s} I)`, ``s`` before ``t``.

    Between neighbouring steps of a table it is :math:`\mathcal N(\sqrt{1 - \beta_t}\, x_{t-1}, \beta_t I)`
    (Ho et al. 2020, eq. 2).
    """
    scale, variance = (broadcast(k, x_s) for k in transition(t, s))
    return Gaussian(scale * x_s, variance)


def forward_chain(
    x0: Float[Tensor, "batch *shape"], levels: Level, noise: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Level, Float[Tensor, "batch *shape"]]]:
    r"""A draw of the joint chain :math:`q(x_{1:T} | x_0) = \prod_t q(x_t | x_{t-1})` (Ho et al. 2020, eq. 2).

    Yields each level from the least noise to the most, with the sample there.

    Args:
        x0: clean data.
        levels: a grid, such as a sampler's, which is walked the other way; the data at its end are not yielded.
        noise: a source of standard normal noise of the shape of its argument, fresh at each call.

    Raises:
        InputError: if the grid has no noisy level or its times are not strictly monotone.

    Warns:
        SfumatoWarning: the chain reaches ``t = 1`` with signal left (:func:`warn_of_signal`).
    """
    steps = list(levels)
    if steps and steps[0].t > steps[-1].t:
        steps.reverse()
    before = steps.pop(0) if steps and steps[0].sigma == 0.0 else Level(0.0, 1.0, 0.0)
    if not steps or any(t.t <= s.t for s, t in itertools.pairwise([before, *steps])):
        raise InputError("A chain needs a grid of at least one noisy level, whose times rise or fall strictly.")
    warn_of_signal(steps[-1])
    x = before.alpha * x0
    for s, t in itertools.pairwise([before, *steps]):
        x = forward_transition(x, t, s).draw(noise(x))
        yield t, x


def warn_of_signal(last: Level) -> None:
    r"""Warn when a variance-preserving schedule ends with signal, :math:`\bar\alpha_T` not near zero.

    Then :math:`x_T` keeps :math:`\sqrt{\bar\alpha_T}` of the data's amplitude, which a sampler that starts at
    :math:`\mathcal N(0, I)` does not give it (Lin et al. 2024).

    Args:
        last: the last level of a chain; only one of floats at ``t = 1`` is looked at.

    Warns:
        SfumatoWarning: :math:`\bar\alpha_T` exceeds 1e-4.
    """
    if isinstance(last.alpha, Tensor) or isinstance(last.sigma, Tensor) or last.t != 1.0:
        return
    alpha_bar = last.alpha * last.alpha
    if abs(alpha_bar + last.sigma * last.sigma - 1.0) < 1e-9 and alpha_bar > TERMINAL_ALPHA_BAR:
        warnings.warn(
            f"alpha_bar_T = {alpha_bar:.3g} is not near zero: {100.0 * last.alpha:.2g} % of the data's amplitude "
            f"is left at t = 1, where alpha_bar_T of at most {TERMINAL_ALPHA_BAR:g} passes for noise; raise the last "
            "betas or the number of steps.",
            SfumatoWarning,
            stacklevel=3,
        )


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

    (Ho et al. 2020, eqs. 6 and 7, for neighbouring steps; Kingma et al. 2021, app. A, for any pair.)
    At ``s = 0`` the mean is :math:`x_0` and the variance 0.
    """
    k0, kt, variance = (broadcast(k, x_t) for k in posterior_coefficients(t, s))
    return Gaussian(k0 * x0 + kt * x_t, variance)
