"""Predictor and corrector: Langevin steps between the steps of any sampler."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling.ancestral import ancestral
from sfumato.sampling.sample import Memory, Step


def predictor_corrector(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    predictor: Step = ancestral,
    corrections: int = 1,
    snr: float = 0.16,
) -> Tensor:
    r"""A step of a sampler and then Langevin dynamics at the level it reached (Song et al. 2021, algorithm 1).

    .. math::
        x \leftarrow x + \delta \nabla_x \log q_s(x) + \sqrt{2 \delta}\; z, \qquad \delta = 2 r^2 \sigma_s^2

    with the score :math:`-\hat\epsilon / \sigma_s`. The published :math:`\delta = 2 (r \lVert z \rVert /
    \lVert \nabla \log q \rVert)^2` takes norms over the batch, so that an image would depend on its neighbours; here
    the expectation of the score's is used, which of pure noise is :math:`\sqrt D / \sigma_s`. ``corrections`` more
    evaluations in each step; there is none at the data.

    Args:
        predictor: a sampler whose steps do not count on ``x`` being where they left it; no multistep solver.
        corrections: Langevin steps at each level.
        snr: the signal-to-noise ratio :math:`r`, below 0.7: the noise of a Langevin step grows with its square.

    Raises:
        InputError: if a number is out of range.
    """
    if corrections < 0 or not 0.0 < snr < 0.7:
        raise InputError(
            f"Langevin needs corrections of at least 0 and snr between 0 and 0.7; got {corrections} and {snr}."
        )
    x = predictor(denoise, x, t, s, memory)
    if s.sigma == 0.0:
        return x
    delta = 2.0 * snr * snr * float(s.sigma) ** 2
    for _ in range(corrections):
        moved = x.add(denoise(x, s).eps, alpha=-delta / float(s.sigma))
        x = moved.add_(memory.noise(x), alpha=math.sqrt(2.0 * delta))
    return x
