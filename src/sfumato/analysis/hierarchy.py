"""The diffusion model as a hierarchical VAE: how many bits each latent carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.analysis import Images
from sfumato.diffusion.bound import latent_terms, variational_bound
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.gaussian import posterior_coefficients
from sfumato.diffusion.level import Level, Scalar
from sfumato.diffusion.likelihood import first_noise
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.variance import ReverseVariance, small
from sfumato.errors import InputError


@dataclass(frozen=True, slots=True)
class Hierarchy:
    r"""The terms of the variational bound, in bits per dimension, from the highest latent down to the data.

    They are :math:`L_T`, the cost of the highest latent under the prior, if it is counted; :math:`L_{t-1}`, what each
    step from a latent to the one below it adds; :math:`L_0`, that of quantized data given the lowest latent.
    """

    times: Float64[Tensor, "n"]  # falling
    prior: float | None
    bits: Float64[Tensor, "n-1"]
    decoder: float | None

    @property
    def known(self) -> Float64[Tensor, "n"]:
        """What is known of the data once each latent is: the sum of the terms down to it."""
        start = torch.tensor([self.prior or 0.0], dtype=torch.float64)
        return torch.cat([start, self.bits]).cumsum(0)

    @property
    def total(self) -> float:
        """The sum of all terms: the variational bound if there is a decoder."""
        return float(self.known[-1]) + (self.decoder or 0.0)

    def half(self) -> float:
        """The time by which half of the bits of all latents are known."""
        known = self.known
        return float(self.times[known >= 0.5 * known[-1]][0])


def latent_levels(schedule: Schedule, steps: int, bins: int | None) -> Level:
    """A grid of latents, even in the log-SNR, from ``t = 1`` down to where quantized data are nearly certain.

    It ends at the least noise of training, and at least the noise of a quarter of a bin.
    """
    lowest = max(first_noise(schedule), 0.0 if bins is None else 0.5 / (bins - 1))
    end = schedule(1.0)
    # latents below a log-SNR of -9 carry next to nothing: one step spans them
    start = max(float(end.log_snr), -9.0)
    last = max(-2.0 * math.log(lowest), start + 1e-3)
    inner = schedule.at(torch.linspace(start, last, steps + 1, dtype=torch.float64))
    skip = int(float(end.log_snr) > start - 1e-6)
    return Level.cat([end, inner[skip:]])


def gaussian_variance(data: GaussianOracle) -> ReverseVariance:
    r"""The reverse variance that is optimal for Gaussian data, also in the step to the data.

    :math:`\tilde\beta + k_0^2 \frac1D \sum_i \frac{\lambda_i \sigma^2}{\alpha^2 \lambda_i + \sigma^2}` (Bao et al.
    2022, eq. 8, for Gaussian data).
    """
    variances = data.variances

    def variance(prediction: Prediction, t: Level, s: Level) -> Scalar:
        k0, _, tilde = posterior_coefficients(t, s)
        signal, noise = float(t.alpha) ** 2, float(t.sigma) ** 2
        return tilde + k0 * k0 * float((variances * noise / (signal * variances + noise)).mean())

    return variance


def hierarchy(
    denoiser: Denoise,
    images: Images,
    levels: Level,
    *,
    bins: int | None,
    variance: ReverseVariance = small,
    seed: int = 0,
    **cond: Any,
) -> Hierarchy:
    """The variational bound averaged over images, latent by latent, with a decoder if the data have ``bins`` values."""
    if bins is None:
        prior, steps = latent_terms(denoiser, images, levels, variance, seed=seed, **cond)
        decoder = None
    else:
        to_data = Level.cat([levels, Level(0.0, 1.0, 0.0)])
        bound = variational_bound(denoiser, images, to_data, variance, bins=bins, seed=seed, **cond)
        prior, steps, decoder = bound.prior, bound.steps, float(bound.decoder.mean())
    view = Hierarchy(torch.as_tensor(levels.t), float(prior.mean()), steps.mean(0).cpu(), decoder)
    if not math.isfinite(view.total):
        raise InputError("A term of the bound is not finite: the denoiser gives numbers that are not.")
    return view


def gaussian_hierarchy(data: GaussianOracle, levels: Level) -> Hierarchy:
    r"""The bits of the latents of Gaussian data in closed form; all levels must have noise.

    The best :math:`p(x_s | x_t)` leaves a divergence of :math:`I(x_0; x_s | x_t) = I(x_0; x_s) - I(x_0; x_t)`, with
    :math:`I(x_0; x_t) = \frac12 \sum_i \log_2 (1 + \lambda_i \alpha^2 / \sigma^2)`.
    """
    if bool((torch.as_tensor(levels.sigma) <= 0.0).any()):
        raise InputError("The information of continuous data is infinite at sigma = 0; leave t = 0 out.")
    times = torch.as_tensor(levels.t)
    if bool((times.diff() >= 0.0).any()):
        raise InputError("The latents of a hierarchy fall strictly in time, from noise to the data.")
    snr = torch.tensor([[math.exp(float(level.log_snr))] for level in levels], dtype=torch.float64)
    known = 0.5 * torch.log1p(snr * data.variances).mean(1) / math.log(2.0)
    return Hierarchy(times, None, known.diff(), None)
