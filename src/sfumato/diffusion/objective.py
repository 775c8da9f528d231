"""Training objectives: what is drawn, what is compared, how it is weighted."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.diffusion.bound import discretized_gaussian
from sfumato.diffusion.continuous import Learned, prior_nats
from sfumato.diffusion.denoiser import Denoise, Denoiser, Prediction
from sfumato.diffusion.gaussian import diffuse, posterior_coefficients
from sfumato.diffusion.level import Level, broadcast
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.diffusion.variance import floor, log_range
from sfumato.diffusion.weighting import OfDenoiser, OutputWeight, Weight, edm_weight, simple
from sfumato.errors import InputError

__all__ = [
    "TimeLaw",
    "Weight",
    "denoising_loss",
    "edm_weight",
    "learned_schedule_loss",
    "learned_variance_bound",
    "log_normal_sigma",
    "simple",
    "training_loss",
    "uniform_times",
]

VLB_SHARE = 1e-3
"""The share of the variational bound in the hybrid loss (Nichol and Dhariwal 2021, sec. 3.1)."""


def denoising_loss(
    denoiser: Denoise,
    x0: Float[Tensor, "batch *shape"],
    level: Level,
    noise: Float[Tensor, "batch *shape"],
    weight: Weight = simple,
    **cond: Tensor,
) -> Float[Tensor, "batch"]:
    r"""The weighted denoising loss per sample, averaged over the dimensions of a sample.

    :math:`w(\lambda)\, \frac1D \lVert \hat\epsilon(\alpha x_0 + \sigma \epsilon) - \epsilon \rVert^2`; with
    ``weight = simple`` this is :math:`L_{\text{simple}}` (Ho et al. 2020, eq. 14) over the number of dimensions.

    Args:
        denoiser: the denoiser to train.
        x0: clean data.
        level: the noise level of each sample, shape ``(B,)``, or one for all.
        noise: standard normal noise of the shape of ``x0``.
        weight: the weighting of the squared error of the noise.
        cond: conditions, passed on untouched.
    """
    return _weighted(denoiser(diffuse(x0, level, noise), level, **cond), x0, level, noise, weight)


def training_loss(
    denoiser: Denoiser,
    x0: Float[Tensor, "batch *shape"],
    level: Level,
    noise: Float[Tensor, "batch *shape"],
    weight: Weight | OfDenoiser = simple,
    *,
    bins: int = 256,
    **cond: Tensor,
) -> Float[Tensor, "batch"]:
    r"""What is minimized in training, per sample: :func:`denoising_loss`, hybrid where the variance is learned.

    A learned schedule has a loss of its own, :func:`learned_schedule_loss`, whatever the weight.

    The hybrid loss is :math:`L_{\text{simple}} + 0.001\, L_{\text{vlb}}` (Nichol and Dhariwal 2021, eq. 16): one
    pass of the network serves both, and :math:`T L_{t-1}` at a uniform step is an unbiased :math:`L_{\text{vlb}}`.
    Both are per dimension, the first a squared error and the second in bits, as in the authors' code. In nats the share
    would be :math:`0.001 / \log 2 = 0.00144`.

    Args:
        denoiser: the denoiser to train.
        x0: clean data.
        level: the noise level of each sample, shape ``(B,)``, or one for all.
        noise: standard normal noise of the shape of ``x0``.
        weight: the weighting of the squared error of the noise.
        bins: the number of values of the data, where a learned variance or schedule is taught by their likelihood.
        cond: conditions, passed on untouched.

    Raises:
        InputError: if a variance is to be learned on a schedule that has no steps.
    """
    if isinstance(denoiser.schedule, Learned):
        return learned_schedule_loss(denoiser, denoiser.schedule, x0, level, noise, bins=bins, **cond)
    made = weight.make(denoiser) if isinstance(weight, OfDenoiser) else weight
    prediction = denoiser(diffuse(x0, level, noise), level, **cond)
    loss = _weighted(prediction, x0, level, noise, made)
    if not denoiser.learned_variance:
        return loss
    schedule = denoiser.schedule
    if not isinstance(schedule, Discrete):
        raise InputError("A learned variance is trained between the steps of a table of betas; this schedule has none.")
    return loss + VLB_SHARE * schedule.steps * learned_variance_bound(prediction, x0, noise, level, schedule, bins=bins)


def _weighted(prediction: Prediction, x0: Tensor, level: Level, noise: Tensor, weight: Weight) -> Tensor:
    if isinstance(weight, OutputWeight):
        return prediction.output_error(x0, noise).square().flatten(1).mean(1)
    error = (prediction.eps - noise).square().flatten(1).mean(1)
    return error * broadcast(weight(level), error)


def learned_variance_bound(
    prediction: Prediction,
    x0: Float[Tensor, "batch *shape"],
    noise: Float[Tensor, "batch *shape"],
    t: Level,
    schedule: Discrete,
    *,
    bins: int = 256,
) -> Float[Tensor, "batch"]:
    r"""The term of the bound of one step of a table, as a function of the learned variance alone.

    Per dimension and in bits, with the mean detached (Nichol and Dhariwal 2021, sec. 3.1): with
    :math:`r = \log\beta - \log\tilde\beta`, the learned fraction ``v`` and the error of the mean,

    .. math::
        D_{KL} = \tfrac12 \left(v r - 1 + e^{-v r} \left(1
        + k_0^2 (\hat x_0 - x_0)^2 / \tilde\beta\right)\right) / \log 2,

    and in the step to the data the likelihood of the bins of the data in [-1, 1] (Ho et al. 2020, eq. 13).

    Args:
        prediction: the prediction for ``diffuse(x0, t, noise)``.
        x0: clean data.
        noise: the noise of ``x_t``.
        t: the level of each sample, or one for all.
        schedule: the table whose steps are learned.
        bins: the number of values of the data, 256 for 8-bit images.
    """
    fraction = prediction.variance_fraction
    if fraction is None:
        raise InputError("The bound of a learned variance needs a network that learns it: model.learned_variance.")
    s = schedule.previous(t)
    start, width = (broadcast(k, x0) for k in log_range(t, s, floor(schedule.last_steps())))
    error = prediction.x0.detach() - x0
    k0 = broadcast(posterior_coefficients(t, s)[0], x0)
    log_ratio = fraction * width
    spread = (k0 * error).square() * torch.exp(-torch.as_tensor(start, dtype=x0.dtype, device=x0.device))
    step = 0.5 * (log_ratio - 1.0 + (-log_ratio).exp() * (1.0 + spread))
    last = torch.as_tensor(s.sigma == 0.0, device=x0.device).reshape(-1).expand(len(x0))
    if bool(last.any()):
        # at s = 0 the mean is the estimate of the data itself
        log_std = 0.5 * torch.as_tensor(start + log_ratio)[last]
        step = step.index_put((last,), _bin_nats(x0[last], error[last], log_std, bins))
    return step.flatten(1).mean(1) / math.log(2.0)


def learned_schedule_loss(
    denoiser: Denoise,
    schedule: Learned,
    x0: Float[Tensor, "batch *shape"],
    level: Level,
    noise: Float[Tensor, "batch *shape"],
    *,
    bins: int = 256,
    **cond: Tensor,
) -> Float[Tensor, "batch"]:
    r"""The bound in continuous time, in nats per dimension, which also teaches the schedule (Kingma et al. 2021).

    .. math::
        L = D_{KL}(q(x_1 | x_0) \| p(x_1)) - \log p(x_0 | x_{t_0})
        + \tfrac{1 - t_0}{2}\, |\lambda'(t)|\, \lVert \hat\epsilon - \epsilon \rVert^2

    at uniform :math:`t \in [t_0, 1]`; the decoder is that of the bins of the data (the paper's is the density at each
    of the values, normalized). The network and the ends of the schedule descend its gradient. Its mean does not depend
    on what lies between the ends, but its variance does: there the gradient is that of the square of the last term,
    :math:`2 \ell\, \partial \ell` (there, app. I).

    Args:
        denoiser: the denoiser.
        schedule: its schedule; it is read again here, so that the gradients can be told apart.
        x0: clean data.
        level: the level of each sample, of which only the time is taken.
        noise: the noise, of the diffused data and of the decoder alike.
        bins: the number of values of the data, 256 for 8-bit images.
        cond: conditions.
    """
    t = torch.as_tensor(level.t, dtype=torch.float64).expand(len(x0)).clamp(min=schedule.start)
    fraction, steepness = schedule.shape(t)
    high, low = schedule.log_snr_range()
    log_snr = high + (low - high) * fraction
    at = Level(t, log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt())
    prediction = denoiser(diffuse(x0, at, noise), at, **cond)
    error = (prediction.eps - noise).square().flatten(1).mean(1)
    scale = 0.5 * (1.0 - schedule.start) * (high - low) * steepness
    diffusion = broadcast(scale, error) * error
    twice = 2.0 * diffusion.detach().to(t)

    def of_square(gradient: Tensor) -> Tensor:
        return gradient * twice

    for between in (fraction, steepness):
        if between.requires_grad:
            between.register_hook(of_square)
    # x / alpha at t_0 is the data and noise of this standard deviation
    log_std = (-0.5 * high).to(x0)
    decoder = _bin_nats(x0, log_std.exp() * noise, log_std, bins).flatten(1).mean(1)
    return diffusion + decoder + prior_nats(x0, low.to(x0.device)).to(x0.dtype)


def _bin_nats(x0: Tensor, error: Tensor, log_std: Tensor, bins: int) -> Tensor:
    r""":math:`-\log \int p` over the bin of ``x0``, for a normal distribution with mean ``x0 + error``."""
    return -discretized_gaussian(x0, x0 + error, (2.0 * log_std).exp(), bins).to(x0.dtype)


TimeLaw = Callable[[Float64[Tensor, "batch"]], Level]
"""The law of the training levels, as a map of uniform numbers in [0, 1) (so that those may be stratified)."""


def uniform_times(schedule: Schedule) -> TimeLaw:
    r"""Uniform ``t``: over (0, 1], or the steps :math:`1 / T, \dots, 1` of a discrete schedule (Ho et al. 2020).

    Where a continuous schedule ends at :math:`\alpha = 0`, its very end is left out: noise prediction and the weights
    of the bound are not finite there, and nothing is learned of a point. A learned schedule is trained from where
    the data are decoded on.
    """
    if isinstance(schedule, Learned):
        return lambda u: schedule(schedule.start + (1.0 - schedule.start) * (1.0 - u))
    last = 1.0 if isinstance(schedule, Discrete) or schedule(1.0).alpha != 0.0 else 1.0 - 1e-5

    def law(u: Float64[Tensor, "batch"]) -> Level:
        if isinstance(schedule, Discrete):
            return schedule((u * schedule.steps).floor().add(1.0).clamp(max=schedule.steps) / schedule.steps)
        return schedule((1.0 - u).clamp(1e-5, last))

    return law


def log_normal_sigma(schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> TimeLaw:
    r""":math:`\ln(\sigma / \alpha) \sim \mathcal N(m, s^2)` (Karras et al. 2022), cut where the schedule ends."""
    if std <= 0.0:
        raise InputError(f"The standard deviation of log sigma must be positive; got {std}.")
    lowest = schedule(1.0).log_snr

    def law(u: Float64[Tensor, "batch"]) -> Level:
        normal = torch.special.ndtri(u.clamp(1e-6, 1.0 - 1e-6))
        return schedule.at((-2.0 * (mean + std * normal)).clamp(min=float(lowest)))

    return law
