"""The denoising loss, and the terms added to it when a variance or a schedule is learned."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.diffusion.bound import discretized_gaussian
from sfumato.diffusion.denoiser import Denoise, Denoiser, Prediction
from sfumato.diffusion.gaussian import diffuse, posterior_coefficients
from sfumato.diffusion.learned_schedule import LearnedSchedule, prior_nats
from sfumato.diffusion.level import Level, broadcast, float64
from sfumato.diffusion.schedule import Discrete
from sfumato.diffusion.variance import floor, log_range
from sfumato.diffusion.weighting import OutputWeight, Weight, simple
from sfumato.errors import InputError

# the share of the variational bound in the hybrid loss (Nichol and Dhariwal 2021, sec. 3.1)
VLB_SHARE = 1e-3

Batch = Float[Tensor, "batch *shape"]


def denoising_loss(
    denoiser: Denoise, x0: Batch, level: Level, noise: Batch, weight: Weight = simple, **cond: Tensor
) -> Float[Tensor, "batch"]:
    r"""The weighted denoising loss per sample, averaged over the dimensions of a sample.

    :math:`w(\lambda)\, \frac1D \lVert \hat\epsilon(\alpha x_0 + \sigma \epsilon) - \epsilon \rVert^2`; with
    ``weight = simple`` this is :math:`L_{\text{simple}}` (Ho et al. 2020, eq. 14) divided by the number of dimensions.
    """
    return _weighted(denoiser(diffuse(x0, level, noise), level, **cond), x0, level, noise, weight)


def training_loss(
    denoiser: Denoiser,
    x0: Batch,
    level: Level,
    noise: Batch,
    weight: Weight = simple,
    *,
    bins: int = 256,
    power: int = 2,
    **cond: Tensor,
) -> Float[Tensor, "batch"]:
    r"""The per-sample training loss: :func:`denoising_loss`, or the hybrid loss where the variance is learned.

    Errors are squared, or with ``power`` 1 taken by their absolute value (Saharia et al. 2021, eq. 6).

    A learned schedule uses :func:`learned_schedule_loss` instead, whatever the weight. The hybrid loss is
    :math:`L_{\text{simple}} + 0.001\, L_{\text{vlb}}` (Nichol and Dhariwal 2021, eq. 16), with :math:`T L_{t-1}` at a
    uniform step for :math:`L_{\text{vlb}}`, in bits; both are per dimension. ``bins`` is the number of data values.
    """
    if isinstance(denoiser.schedule, LearnedSchedule):
        return learned_schedule_loss(denoiser, denoiser.schedule, x0, level, noise, bins=bins, **cond)
    prediction = denoiser(diffuse(x0, level, noise), level, **cond)
    loss = _weighted(prediction, x0, level, noise, weight, power)
    if not denoiser.learned_variance:
        return loss
    schedule = denoiser.schedule
    if not isinstance(schedule, Discrete):
        raise InputError("A learned variance is trained between the steps of a table of betas; this schedule has none.")
    return loss + VLB_SHARE * schedule.steps * learned_variance_bound(prediction, x0, noise, level, schedule, bins=bins)


def _weighted(
    prediction: Prediction, x0: Tensor, level: Level, noise: Tensor, weight: Weight, power: int = 2
) -> Tensor:
    by_output = isinstance(weight, OutputWeight)
    error = prediction.output_error(x0, noise) if by_output else prediction.eps - noise
    error = (error.abs() if power == 1 else error.square()).flatten(1).mean(1)
    return error if by_output else error * broadcast(weight(level), error)


def learned_variance_bound(
    prediction: Prediction, x0: Batch, noise: Batch, t: Level, schedule: Discrete, *, bins: int = 256
) -> Float[Tensor, "batch"]:
    r"""The bound's term for one step of a table, as a function of the learned variance alone.

    Per dimension and in bits, with the mean detached (Nichol and Dhariwal 2021, sec. 3.1): with the learned fraction
    ``v`` of :math:`r = \log\beta - \log\tilde\beta`,

    .. math::
        D_{KL} = \tfrac12 \left(v r - 1 + e^{-v r} \left(1
        + k_0^2 (\hat x_0 - x_0)^2 / \tilde\beta\right)\right) / \log 2,

    and for the step to the data, the discretized likelihood with ``bins`` values in [-1, 1] (Ho et al. 2020, eq. 13).
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
        # at s = 0 the mean is the data estimate itself
        log_std = 0.5 * torch.as_tensor(start + log_ratio)[last]
        step = step.index_put((last,), _bin_nats(x0[last], error[last], log_std, bins))
    return step.flatten(1).mean(1) / math.log(2.0)


def learned_schedule_loss(
    denoiser: Denoise,
    schedule: LearnedSchedule,
    x0: Batch,
    level: Level,
    noise: Batch,
    *,
    bins: int = 256,
    **cond: Tensor,
) -> Float[Tensor, "batch"]:
    r"""The bound in continuous time, in nats per dimension, which also trains the schedule (Kingma et al. 2021).

    .. math::
        L = D_{KL}(q(x_1 | x_0) \| p(x_1)) - \log p(x_0 | x_{t_0})
        + \tfrac{1 - t_0}{2}\, |\lambda'(t)|\, \lVert \hat\epsilon - \epsilon \rVert^2

    at uniform :math:`t \in [t_0, 1]`, the time of the level, with the discretized decoder. The network and the ends of
    the schedule descend its gradient. Its mean does not depend on the schedule between the ends, but its variance does:
    the shape's gradient is that of the square of the last term, :math:`2 \ell\, \partial \ell` (app. I).
    """
    t = float64(level.t).expand(len(x0)).clamp(min=schedule.start)
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
    # x / alpha at t_0 is the data plus noise of this standard deviation
    log_std = (-0.5 * high).to(x0)
    decoder = _bin_nats(x0, log_std.exp() * noise, log_std, bins).flatten(1).mean(1)
    return diffusion + decoder + prior_nats(x0, low.to(x0.device)).to(x0.dtype)


def _bin_nats(x0: Tensor, error: Tensor, log_std: Tensor, bins: int) -> Tensor:
    r""":math:`-\log \int p` over the bin of ``x0``, for a normal distribution with mean ``x0 + error``."""
    return -discretized_gaussian(x0, x0 + error, (2.0 * log_std).exp(), bins).to(x0.dtype)
