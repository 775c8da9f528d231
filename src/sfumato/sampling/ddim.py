"""DDIM, from deterministic to ancestral."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level, broadcast, sqrt
from sfumato.sampling.sample import Memory


def ddim(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    eta: float = 0.0,
) -> Tensor:
    r"""The step of DDIM (J. Song et al. 2021, eqs. 12 and 16).

    :math:`x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\, \hat\epsilon + \varsigma z` with
    :math:`\varsigma^2 = \eta^2 \tilde\beta`; deterministic at :math:`\eta = 0`, ancestral with the small variance at 1.
    """
    prediction = denoise(x, t)
    if eta == 0.0 or s.sigma == 0.0:
        return prediction.mix(s.alpha, s.sigma, consume=memory.reuse)
    variance = eta * eta * posterior_coefficients(t, s)[2]
    mean = prediction.mix(s.alpha, sqrt(s.sigma * s.sigma - variance), consume=memory.reuse)
    return mean.add_(broadcast(sqrt(variance), x) * memory.noise(x))
