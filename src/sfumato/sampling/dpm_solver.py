"""DPM-Solver++."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.sampling.sample import Memory


def dpm_solver_pp_2m(
    denoise: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level, memory: Memory
) -> Tensor:
    r"""The second-order multistep of DPM-Solver++ (Lu et al. 2022, algorithm 2), one evaluation of the denoiser.

    With :math:`\lambda = \log(\alpha / \sigma)`, :math:`h = \lambda_s - \lambda_t`, the ratio :math:`r` of the step
    before to this one, :math:`D = (1 + \frac{1}{2r}) \hat x_0^{(t)} - \frac{1}{2r} \hat x_0^{(\text{before})}` and

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s (e^{-h} - 1) D.

    The first step and the one that ends at the data are first order, which is DDIM.
    """
    prediction = denoise(x, t)
    log_ratio = 0.5 * float(t.log_snr)
    before: tuple[float, Tensor] | None = memory.state.get("before")
    estimate = prediction.x0
    memory.state["before"] = (log_ratio, estimate)
    if before is None or s.sigma == 0.0:
        return prediction.mix(s.alpha, s.sigma)
    h = 0.5 * float(s.log_snr) - log_ratio
    half = 0.5 * h / (log_ratio - before[0])
    gain = -float(s.alpha) * math.expm1(-h)
    out = estimate.mul((1.0 + half) * gain).add_(before[1], alpha=-half * gain)
    return out.add_(x, alpha=float(s.sigma / t.sigma))
