"""DDIM, from deterministic to ancestral."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level, broadcast, sqrt
from sfumato.diffusion.variance import ReverseVariance, small
from sfumato.errors import InputError
from sfumato.sampling.sample import Memory


def ddim(
    denoise: Callable[[Tensor, Level], Prediction],
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    eta: float = 0.0,
    variance: ReverseVariance = small,
) -> Tensor:
    r"""The step of DDIM (J. Song et al. 2021, eqs. 12 and 16), of any reverse variance (Bao et al. 2022, sec. 3).

    With :math:`\varsigma^2 = \eta^2 \tilde\beta` and the weight of the data in the mean,
    :math:`k = \alpha_s - \alpha_t \sqrt{\sigma_s^2 - \varsigma^2} / \sigma_t`,

    .. math::
        x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\, \hat\epsilon
        + \sqrt{\varsigma^2 + k^2\, \mathrm{Var}[x_0 | x_t]}\; z

    where :math:`\mathrm{Var}[x_0 | x_t] = (\Sigma - \tilde\beta) / k_0^2` is what a reverse variance :math:`\Sigma` of
    ancestral sampling says of the data. The small variance says 0: then :math:`\eta = 0` is deterministic. At
    :math:`\eta = 1` the step is ancestral with variance :math:`\Sigma`.

    Raises:
        InputError: if ``eta`` does not lie in [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"The eta of DDIM lies between 0 (deterministic) and 1 (ancestral); got {eta}.")
    prediction = denoise(x, t)
    if s.sigma == 0.0 or (eta == 0.0 and variance is small):
        return prediction.mix(s.alpha, s.sigma, consume=memory.reuse)
    k0, _, tilde = posterior_coefficients(t, s)
    own = eta * eta * tilde
    root = sqrt(s.sigma * s.sigma - own)
    k = s.alpha - t.alpha * root / t.sigma
    # the variance is read before the prediction is consumed: a learned one belongs to it
    spread = own + (k / k0) ** 2 * (variance(prediction, t, s) - tilde)
    mean = prediction.mix(s.alpha, root, consume=memory.reuse)
    spread = spread.clamp(min=0.0) if isinstance(spread, Tensor) else max(float(spread), 0.0)
    return mean.add_(broadcast(sqrt(spread), x) * memory.noise(x))
