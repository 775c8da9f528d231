"""Noise schedules as curves, and the training loss over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.diffusion.objective import denoising_loss
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError


@dataclass(frozen=True, slots=True)
class ScheduleCurves:
    r"""What a schedule does from the data to the noise.

    Attributes:
        times: :math:`i / N`, from 0 to 1.
        alpha: the scale of the data.
        sigma: the noise.
        log_snr: infinite at the data.
        beta: :math:`N \beta_i`, the noise that each step adds per unit of time, of steps ``1 ... N``.
    """

    times: Float64[Tensor, "n"]
    alpha: Float64[Tensor, "n"]
    sigma: Float64[Tensor, "n"]
    log_snr: Float64[Tensor, "n"]
    beta: Float64[Tensor, "n-1"]


def curves(schedule: Schedule, points: int = 1000) -> ScheduleCurves:
    r"""The curves of a schedule on ``points`` steps, or on its own when it has a table.

    Whatever the schedule, :math:`\beta_i = 1 - \bar\alpha_i / \bar\alpha_{i-1}` is that of the variance-preserving
    process with the same signal-to-noise ratio, :math:`\bar\alpha = \alpha^2 / (\alpha^2 + \sigma^2)`, so that
    schedules can be compared; of a table it is the table.

    Raises:
        InputError: for less than one step.
    """
    steps = schedule.steps if isinstance(schedule, Discrete) else points
    if steps < 1:
        raise InputError(f"A curve needs at least 1 step; got {steps}.")
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    levels = schedule(times)
    alpha, sigma = torch.as_tensor(levels.alpha), torch.as_tensor(levels.sigma)
    log_snr = torch.as_tensor(levels.log_snr)
    # log alpha_bar = -log(1 + 1 / SNR), without cancellation near the data
    log_alpha_bar = -torch.nn.functional.softplus(-log_snr)
    return ScheduleCurves(times, alpha, sigma, log_snr, -steps * torch.expm1(log_alpha_bar.diff()))


def gaussian_loss(data: GaussianOracle, levels: Level) -> Float64[Tensor, "levels"]:
    r"""The least loss of a denoiser of Gaussian data, per dimension, on the error of :math:`\hat\epsilon`.

    :math:`\frac1D \mathbb E \lVert \hat\epsilon - \epsilon \rVert^2 =
    \frac1D \sum_i \frac{\alpha^2 \lambda_i}{\alpha^2 \lambda_i + \sigma^2}`: the posterior variance of the data
    times :math:`\alpha^2 / \sigma^2`.
    """
    alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (levels.alpha, levels.sigma))
    signal = alpha.square() * data.variances
    # at sigma = 0 the limit: an axis without spread adds nothing, however small the noise
    return torch.where(signal > 0.0, signal / (signal + sigma.square()).clamp(min=1e-300), 0.0).mean(1)


@dataclass(frozen=True, slots=True)
class LossCurve:
    r"""The denoising loss over time, on the error of :math:`\hat\epsilon` and per dimension.

    Attributes:
        times: where it was taken.
        log_snr: the same levels by their log signal-to-noise ratio.
        measured: the mean loss of the denoiser on the data.
        error: its standard error over the data.
        gaussian: the loss of the best denoiser for a Gaussian fitted to the data, in closed form.
    """

    times: Float64[Tensor, "n"]
    log_snr: Float64[Tensor, "n"]
    measured: Float64[Tensor, "n"]
    error: Float64[Tensor, "n"]
    gaussian: Float64[Tensor, "n"]


def loss_over_time(
    denoiser: Denoise,
    images: Float[Tensor, "batch *shape"],
    levels: Level,
    reference: GaussianOracle,
    *,
    seed: int = 0,
    batch_size: int = 500,
    **cond: Any,
) -> LossCurve:
    """The loss of a denoiser at each of some levels, beside the closed form of a Gaussian.

    Args:
        denoiser: any denoiser.
        images: the data, at least two.
        levels: where the loss is wanted; none of them free of noise.
        reference: the Gaussian that was fitted to the training data.
        seed: which noise.
        batch_size: how many data at once.
        cond: conditions of the data, passed on to the denoiser.

    Raises:
        InputError: for fewer than two data, or a level without noise.
    """
    if len(images) < 2:
        raise InputError(f"A loss with its standard error needs at least 2 data; got {len(images)}.")
    if bool((torch.as_tensor(levels.sigma) <= 0.0).any()):
        raise InputError("There is no loss at sigma = 0, where there is nothing to denoise; leave t = 0 out.")
    means: list[float] = []
    errors: list[float] = []
    for i, level in enumerate(levels):
        parts: list[Tensor] = []
        for start in range(0, len(images), batch_size):
            x0 = images[start : start + batch_size]
            noise = random.normal(seed, "loss over time", start, len(x0), tuple(x0.shape[1:]), step=i).to(x0)
            here: dict[str, Any] = {name: value[start : start + batch_size] for name, value in cond.items()}
            with torch.no_grad():
                parts.append(denoising_loss(denoiser, x0, level, noise, **here).double().cpu())
        losses = torch.cat(parts)
        means.append(float(losses.mean()))
        errors.append(float(losses.std()) / math.sqrt(len(losses)))
    return LossCurve(
        torch.as_tensor(levels.t),
        torch.as_tensor(levels.log_snr),
        torch.tensor(means, dtype=torch.float64),
        torch.tensor(errors, dtype=torch.float64),
        gaussian_loss(reference, levels),
    )
