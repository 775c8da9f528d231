"""Euler's and Heun's steps on the probability flow, with the churn of EDM."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.sampling.churn import Churn
from sfumato.sampling.final_step import remember, to_data
from sfumato.sampling.sample import Memory


def euler(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    churn: Churn | None = None,
) -> Tensor:
    r"""Euler's step in :math:`\hat x = x / \alpha` and :math:`\hat\sigma = \sigma / \alpha`, which is that of DDIM.

    Args:
        churn: fresh noise before the step (Karras et al. 2022, algorithm 2 without its correction).
    """
    if churn is not None:
        x, t = churn(x, t, memory)
    return denoise(x, t).mix(s.alpha, s.sigma, consume=memory.reuse)


def heun(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    churn: Churn | None = None,
    ending: int | None = None,
) -> Tensor:
    r"""Heun's step of the probability-flow ODE (Karras et al. 2022, algorithm 1; with churn, algorithm 2).

    In :math:`\hat x = x / \alpha` and :math:`\hat\sigma = \sigma / \alpha` the flow of every schedule is
    :math:`d\hat x / d\hat\sigma = \hat\epsilon`. Two evaluations of the denoiser; one, and first order, in a step that
    starts where nothing of the data is left, and one in the step to the data.

    Args:
        churn: fresh noise before the step.
        ending: how many predictions the step to the data extrapolates, at most
            (:func:`~sfumato.sampling.final_step.to_data`); by default 2, and 1 with churn. 1 as published.

    Raises:
        InputError: if ``ending`` is out of range.
    """
    if ending is None:
        ending = 2 if churn is None else 1
    if churn is not None:
        x, t = churn(x, t, memory)
    first = denoise(x, t)
    estimates = remember(memory, t, first, ending)
    if s.sigma == 0.0:
        return to_data(estimates, s, ending)
    euler = first.mix(s.alpha, s.sigma)
    if t.alpha == 0.0:
        return euler
    # alpha_s (x_t / alpha_t + (h / 2) (eps_t + eps_s)): the Euler step plus half of the change of slope
    half = float(0.5 * (s.sigma - t.sigma * s.alpha / t.alpha))
    return euler.add(denoise(euler, s).eps, alpha=half).add_(first.eps, alpha=-half)
