"""Sampling from the reverse process itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level, broadcast, sqrt
from sfumato.diffusion.variance import ReverseVariance, small
from sfumato.sampling.sample import Memory


def ancestral(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    variance: ReverseVariance = small,
) -> Tensor:
    r"""A draw of :math:`p_\theta(x_s | x_t) = \mathcal N(\tilde\mu(\hat x_0, x_t), \sigma^2 I)` for any pair of levels.

    Between neighbouring steps this is algorithm 2 of Ho et al. 2020.
    """
    prediction = denoise(x, t)
    k0, kt, _ = posterior_coefficients(t, s)
    # x_t = alpha x_0 + sigma eps, so that the mean is one combination of the two estimates
    spread = variance(prediction, t, s)
    mean = prediction.mix(k0 + kt * t.alpha, kt * t.sigma, consume=memory.reuse)
    if not isinstance(spread, Tensor) and spread == 0.0:
        return mean
    return mean.add_(broadcast(sqrt(spread), x) * memory.noise(x))
