"""The steps of DDPM, DDIM and EDM, and the step to the data that solvers share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level, Scalar, broadcast, sqrt
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.variance import ReverseVariance, small
from sfumato.errors import InputError
from sfumato.sampling.coordinates import ratio
from sfumato.sampling.sample import Memory, Predict, Step


def ancestral(
    denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory, *, variance: ReverseVariance = small
) -> Tensor:
    r"""The reverse process of DDPM, :math:`p_\theta(x_s | x_t) = \mathcal N(\tilde\mu(\hat x_0, x_t), \Sigma I)`.

    Between neighbouring steps of a table this is algorithm 2 of Ho et al. 2020. Where a classifier guides, its shift
    times :math:`\Sigma` is added to the mean (:class:`~sfumato.sampling.guidance.ClassifierGuided`).

    Args:
        variance: the reverse variance :math:`\Sigma`: beta tilde (small), beta (large), learned by the network
            (learned), or optimal (analytic).
    """
    prediction = denoise(x, t)
    k0, kt, _ = posterior_coefficients(t, s)
    # x_t = alpha x_0 + sigma eps, so that the mean is a linear combination of the two estimates
    mean = prediction.mix(k0 + kt * t.alpha, kt * t.sigma)
    sigma2 = variance(prediction, t, s)
    if not isinstance(sigma2, Tensor) and sigma2 == 0.0:
        return mean
    if prediction.shift is not None:
        mean.add_(broadcast(sigma2, x) * prediction.shift)
    return mean.add_(broadcast(sqrt(sigma2), x) * memory.noise(x))


def ddim(
    denoise: Predict,
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    eta: float = 0.0,
    variance: ReverseVariance = small,
    clip_data: float | None = None,
    final_sigma: float = 0.0,
) -> Tensor:
    r"""DDIM (J. Song et al. 2021, eqs. 12 and 16), with any reverse variance (Bao et al. 2022, sec. 3).

    With :math:`\varsigma^2 = \eta^2 \tilde\beta` and :math:`k = \alpha_s - \alpha_t \sqrt{\sigma_s^2 - \varsigma^2} /
    \sigma_t`,

    .. math::
        x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\, \hat\epsilon
        + \sqrt{\varsigma^2 + k^2\, \mathrm{Var}[x_0 | x_t]}\; z, \qquad
        \mathrm{Var}[x_0 | x_t] = (\Sigma - \tilde\beta) / k_0^2

    where the latter is implied by the reverse variance :math:`\Sigma` of ancestral sampling; it is 0 for small.

    Args:
        eta: the amount of noise, from 0 (deterministic) to 1 (ancestral sampling).
        variance: the reverse variance :math:`\Sigma`; small adds no noise beyond that of eta.
        clip_data: the greatest magnitude of the estimate of the data; the estimate of the noise is left unchanged, as
            in diffusers, while sampling.clip changes both.
        final_sigma: the standard deviation of the noise left in the sample, for a variance-preserving schedule, as in
            diffusers when it does not set the last alpha to one.
    """
    _check_ddim(eta, clip_data, final_sigma)
    prediction = denoise(x, t)

    def mixed(alpha: Scalar, sigma: Scalar) -> Tensor:
        if clip_data is None:
            return prediction.mix(alpha, sigma)
        data = prediction.x0.clamp(-clip_data, clip_data)
        return broadcast(alpha, x) * data + broadcast(sigma, x) * prediction.eps

    if s.sigma == 0.0:
        return mixed(s.alpha * math.sqrt(1.0 - final_sigma * final_sigma), final_sigma)
    if eta == 0.0 and variance is small:
        return mixed(s.alpha, s.sigma)
    k0, _, tilde = posterior_coefficients(t, s)
    of_eta = eta * eta * tilde
    root = sqrt(s.sigma * s.sigma - of_eta)
    k = s.alpha - t.alpha * root / t.sigma
    sigma2 = of_eta + (k / k0) ** 2 * (variance(prediction, t, s) - tilde)
    sigma2 = sigma2.clamp(min=0.0) if isinstance(sigma2, Tensor) else max(float(sigma2), 0.0)
    return mixed(s.alpha, root).add_(broadcast(sqrt(sigma2), x) * memory.noise(x))


def _check_ddim(eta: float, clip_data: float | None, final_sigma: float) -> None:
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"The eta of DDIM lies between 0 (deterministic) and 1 (ancestral); got {eta}.")
    if clip_data is not None and not clip_data > 0.0:
        raise InputError(f"The clip_data of DDIM is a positive magnitude; got {clip_data}.")
    if not 0.0 <= final_sigma < 1.0:
        raise InputError(f"The final_sigma of DDIM is at least 0 and below 1; got {final_sigma}.")


@dataclass(frozen=True, slots=True)
class Churn:
    r"""The noise that EDM's stochastic sampler adds before each step (Karras et al. 2022, algorithm 2).

    In :math:`\hat x = x / \alpha` and :math:`\hat\sigma = \sigma / \alpha`, the level rises to
    :math:`\hat\sigma' = (1 + \gamma) \hat\sigma`, :math:`\gamma = \min(S_{churn} / N, \sqrt 2 - 1)`, and
    :math:`\hat x' = \hat x + S_{noise} \sqrt{\hat\sigma'^2 - \hat\sigma^2}\; z`, but never above the end of the
    schedule: the first step, which as published begins at :math:`(1 + \gamma) \hat\sigma_{\max}`, has no churn here.

    Attributes:
        churn: S_churn of EDM, the noise added and removed again over all steps. No level rises above the end of the
            schedule, so that the first step has no churn, unlike in EDM.
        churn_low: the least sigma / alpha with churn.
        churn_high: the greatest sigma / alpha with churn; no limit when not given.
        churn_noise: S_noise of EDM, the scale of the added noise.
    """

    schedule: Schedule
    steps: int
    churn: float = 0.0
    churn_low: float = 0.0
    churn_high: float | None = None
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        high = math.inf if self.churn_high is None else self.churn_high
        if not self.churn >= 0.0 or not self.churn_noise > 0.0 or not 0.0 <= self.churn_low < high:
            raise InputError(
                "Churn needs churn >= 0, churn_noise > 0 and 0 <= churn_low < churn_high; "
                f"got {self.churn}, {self.churn_noise}, {self.churn_low} and {self.churn_high}."
            )

    def __call__(self, x: Tensor, t: Level, memory: Memory) -> tuple[Tensor, Level]:
        """``x`` with more noise, and its level."""
        start = ratio(t)
        gamma = min(self.churn / self.steps, math.sqrt(2.0) - 1.0)
        outside = start < self.churn_low or (self.churn_high is not None and start > self.churn_high)
        if gamma == 0.0 or outside or t.alpha == 0.0:
            return x, t
        end = min((1.0 + gamma) * start, ratio(self.schedule(1.0)))
        if end <= start:
            return x, t
        raised = self.schedule.at(-2.0 * math.log(end))
        std = float(raised.alpha) * self.churn_noise * math.sqrt(end * end - start * start)
        return x.mul(float(raised.alpha / t.alpha)).add_(memory.noise(x), alpha=std), raised


def gaussian_spread(levels: Level, step: Step, std: float) -> float:
    """The standard deviation of samples for normal data of this ``std``, with the exact denoiser.

    For steps without memory: with a linear denoiser each multiplies by a factor and adds independent noise.
    """

    def denoise(x: Tensor, level: Level) -> Prediction:
        signal = float(level.alpha) * std * std
        return Prediction.of_x0(x, x * (signal / (float(level.alpha) * signal + float(level.sigma) ** 2)), level)

    unit = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    spread = float(levels[0].sigma)
    for index, (t, s) in enumerate(itertools.pairwise(levels)):
        carried, added = step(denoise, unit, t, s, Memory(lambda x: 1.0 - unit, index)).flatten().tolist()
        spread = math.hypot(carried * spread, added)
    return spread


def euler(denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory, *, churn: Churn | None = None) -> Tensor:
    r"""Euler's step in :math:`x / \alpha` and :math:`\sigma / \alpha`, which is DDIM; with ``churn`` before it."""
    if churn is not None:
        x, t = churn(x, t, memory)
    return denoise(x, t).mix(s.alpha, s.sigma)


def heun(
    denoise: Predict,
    x: Tensor,
    t: Level,
    s: Level,
    memory: Memory,
    *,
    churn: Churn | None = None,
    final_order: int | None = None,
) -> Tensor:
    r"""Heun's step of the probability-flow ODE (Karras et al. 2022, algorithm 1; with churn, algorithm 2).

    In :math:`\hat x = x / \alpha` and :math:`\hat\sigma = \sigma / \alpha` the flow of every schedule is
    :math:`d\hat x / d\hat\sigma = \hat\epsilon`. A step makes two predictions, one at the ends (:func:`at_an_end`).

    Args:
        churn: noise added before the step.
        final_order: how many predictions the step to the data extrapolates (:func:`to_data`), 1 as published; by
            default 2, and 1 with churn.
    """
    if final_order is None:
        final_order = 2 if churn is None else 1
    if churn is not None:
        x, t = churn(x, t, memory)
    first = denoise(x, t)
    ended = at_an_end(first, t, s, memory, final_order)
    if ended is not None:
        return ended
    predicted = first.mix(s.alpha, s.sigma)
    # alpha_s (x_t / alpha_t + (h / 2) (eps_t + eps_s)): the Euler step plus half of the change of slope
    half = float(0.5 * (s.sigma - t.sigma * s.alpha / t.alpha))
    return predicted.add(denoise(predicted, s).eps, alpha=half).add_(first.eps, alpha=-half)


def edm_euler(**options: Any) -> Step:
    """Euler's first-order steps, with the churn of EDM (Karras et al. 2022); without churn they are DDIM."""
    churn = Churn(**options)
    return partial(euler, churn=churn if churn.churn > 0.0 else None)


def edm_heun(**options: Any) -> Step:
    """Heun's second-order steps, two predictions each, with the churn of EDM (Karras et al. 2022)."""
    churn = Churn(**options)
    return partial(heun, churn=churn if churn.churn > 0.0 else None)


# the least ratio between the sigma / alpha of two predictions that are extrapolated to the data
MIN_RATIO = 1.3
# a level, with the prediction or the estimate of the data there
Estimate = tuple[Level, Prediction | Tensor]


def to_data(estimates: Sequence[Estimate], s: Level, order: int) -> Tensor:
    r"""The step to the data, from the predictions :math:`\hat x_0` at the last levels.

    Along the flow :math:`\hat x_0` is a smooth function of :math:`\hat\sigma^2`, whose value at 0 is the sample:
    :math:`x = \sum_j w_j \hat x_0^{(j)}` with :math:`w_j = \prod_{k \ne j} \hat\sigma_k^2 / (\hat\sigma_k^2 -
    \hat\sigma_j^2)`, over up to ``order`` ``estimates``, the latest first. With one estimate this is the step of DDIM,
    whose error is :math:`O(\hat\sigma^2)`. Levels within a factor ``MIN_RATIO`` of one already used are skipped:
    close levels would amplify the errors of the predictions; the sum of :math:`|w_j|` is at most 13.
    """
    used = [estimates[0]]
    for level, estimate in estimates[1:]:
        if len(used) < order and MIN_RATIO * ratio(used[-1][0]) <= ratio(level) < math.inf:
            used.append((level, estimate))
    squares = [ratio(level) ** 2 for level, _ in used]
    weights = [
        float(s.alpha) * math.prod(other / (other - this) for k, other in enumerate(squares) if k != j)
        for j, this in enumerate(squares)
    ]
    # a new tensor, because an estimate may be the network's own output, or be shown to the user
    data = (estimate if isinstance(estimate, Tensor) else estimate.x0 for _, estimate in used)
    out = next(data).mul(weights[0])
    for x0, weight in zip(data, weights[1:], strict=True):
        out.add_(x0, alpha=weight)
    return out


def remember(memory: Memory, level: Level, estimate: Prediction | Tensor, order: int) -> list[Estimate]:
    """Store a prediction for the step to the data to extrapolate; returns up to ``order`` of them, latest first."""
    check_final_order(order)
    before: list[Estimate] = memory.state.get("estimates", [])
    kept: list[Estimate] = [(level, estimate)]
    for k, past in enumerate(before):
        # a prediction between two close neighbours is not needed
        if k + 1 == len(before) or ratio(before[k + 1][0]) > MIN_RATIO**2 * ratio(kept[-1][0]):
            kept.append(past)
    memory.state["estimates"] = kept[:order]
    return kept[:order]


def at_an_end(first: Prediction, t: Level, s: Level, memory: Memory, order: int) -> Tensor | None:
    r"""A single step at an end: :func:`to_data`, or first order from :math:`\alpha = 0`; None in between."""
    estimates = remember(memory, t, first, order)
    if s.sigma == 0.0:
        return to_data(estimates, s, order)
    return first.mix(s.alpha, s.sigma) if t.alpha == 0.0 else None


def check_final_order(order: int) -> None:
    if not 1 <= order <= 4:
        raise InputError(f"The step to the data extrapolates 1 (first order) to 4 predictions; got {order}.")
