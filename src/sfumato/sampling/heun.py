"""Heun's second-order step on the probability flow."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.sampling.sample import Memory


def heun(denoise: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level, memory: Memory) -> Tensor:
    r"""Heun's step of the probability-flow ODE (Karras et al. 2022, algorithm 1).

    In :math:`\hat x = x / \alpha` and :math:`\hat\sigma = \sigma / \alpha` the flow of every schedule is
    :math:`d\hat x / d\hat\sigma = \hat\epsilon`. Two evaluations of the denoiser;
    one, and first order, in the step that ends at the data and in
    one that starts where nothing of the data is left.
    """
    first = denoise(x, t)
    euler = first.mix(s.alpha, s.sigma)
    if s.sigma == 0.0 or t.alpha == 0.0:
        return euler
    # alpha_s (x_t / alpha_t + (h / 2) (eps_t + eps_s)): the Euler step plus half of the change of slope
    half = 0.5 * (s.sigma - t.sigma * s.alpha / t.alpha)
    return euler + half * (denoise(euler, s).eps - first.eps)
