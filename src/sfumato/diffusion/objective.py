"""Training objectives: what is drawn, what is compared, how it is weighted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.level import Level, Scalar, broadcast
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError

Weight = Callable[[Level], Scalar]
r"""A weighting: a function of the level, on the squared error of :math:`\hat\epsilon`."""


def simple(level: Level) -> Scalar:
    r""":math:`w = 1`: :math:`L_{\text{simple}}` of Ho et al. 2020, eq. 14."""
    return 1.0


def edm_weight(sigma_data: float) -> Weight:
    r"""The weight of EDM, which makes the error of the network's output count alike at every level.

    On the error of :math:`\hat x_0` it is :math:`(\hat\sigma^2 + \sigma_d^2) / (\hat\sigma \sigma_d)^2`
    (Karras et al. 2022, table 1); since :math:`\hat\epsilon - \epsilon = -(\hat x_0 - x_0) / \hat\sigma`,
    on the error of :math:`\hat\epsilon` it is
    :math:`(\hat\sigma^2 + \sigma_d^2) / \sigma_d^2`.
    """
    return partial(_edm_weight, sigma_data=sigma_data)


def _edm_weight(level: Level, sigma_data: float) -> Scalar:
    ratio = level.noise_to_signal / sigma_data
    return 1.0 + ratio * ratio


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
    prediction = denoiser(diffuse(x0, level, noise), level, **cond)
    error = (prediction.eps - noise).square().flatten(1).mean(1)
    return error * broadcast(weight(level), error)


TimeLaw = Callable[[Float64[Tensor, "batch"]], Level]
"""The law of the training levels, as a map of uniform numbers in [0, 1) (so that those may be stratified)."""


def uniform_times(schedule: Schedule) -> TimeLaw:
    r"""Uniform ``t``: over (0, 1], or the steps :math:`1 / T, \dots, 1` of a discrete schedule (Ho et al. 2020)."""

    def law(u: Float64[Tensor, "batch"]) -> Level:
        if isinstance(schedule, Discrete):
            return schedule((u * schedule.steps).floor().add(1.0).clamp(max=schedule.steps) / schedule.steps)
        return schedule((1.0 - u).clamp(min=1e-5))

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
