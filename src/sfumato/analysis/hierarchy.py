"""The diffusion model as a hierarchical VAE: how many bits each latent carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.diffusion.bound import Bound, latent_terms, quantized, variational_bound
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
    r"""The ledger of a hierarchical VAE, in bits per dimension, from the highest latent down to the data.

    Attributes:
        times: the level :math:`t` of each latent, falling.
        prior: :math:`L_T`, what the highest latent costs under the prior; None where it is not part of the ledger.
        bits: what the step from each latent to the one below it adds, :math:`L_{t-1}`; the lowest latent has no step.
        decoder: :math:`L_0`, the cost of quantized data given the lowest latent; None where there is no decoder.
    """

    times: Float64[Tensor, "n"]
    prior: float | None
    bits: Float64[Tensor, "n-1"]
    decoder: float | None

    @property
    def known(self) -> Float64[Tensor, "n"]:
        """The sum of the terms down to each latent: what is known of the data once it is drawn."""
        start = torch.tensor([self.prior or 0.0], dtype=torch.float64)
        return torch.cat([start, self.bits]).cumsum(0)

    @property
    def total(self) -> float:
        """All terms: the variational bound if there is a decoder."""
        return float(self.known[-1]) + (self.decoder or 0.0)

    def half(self) -> float:
        """The time of the first latent that is drawn with half of the bits of all latents known."""
        known = self.known
        return float(self.times[known >= 0.5 * known[-1]][0])


def grey_values(images: Float[Tensor, "batch *shape"]) -> int | None:
    """How many values from -1 to 1 quantized images can have (256 for 8 bits, 17 for the digits); None for others.

    It is the coarsest grid of at most 256 values on which all of them lie.
    """
    found = images.detach().double().unique()
    gaps = found.diff()
    gaps = gaps[gaps > 1e-4]
    candidates = [round(2.0 / float(gaps.min())) + 1] if len(gaps) else []
    for bins in (*candidates, 256):
        if 2 <= bins <= 256:
            try:
                quantized(images, bins)
            except InputError:
                continue
            return bins
    return None


def latent_levels(schedule: Schedule, steps: int, bins: int | None) -> Level:
    r"""A grid of latents from ``t = 1`` down to where the value of quantized data is nearly certain.

    It is even in the log-SNR, in which the bits of natural data are spread most evenly, up to the first level a
    network of this schedule has seen, and at most up to the noise of a quarter of a bin.

    Raises:
        InputError: for less than one step.
    """
    if steps < 1:
        raise InputError(f"A hierarchy needs at least 1 step; got {steps}.")
    lowest = max(first_noise(schedule), 0.0 if bins is None else 0.5 / (bins - 1))
    end = schedule(1.0)
    # above this there is next to nothing: one step spans it
    start = max(float(end.log_snr), -9.0)
    top = max(-2.0 * math.log(lowest), start + 1e-3)
    inner = schedule.at(torch.linspace(start, top, steps + 1, dtype=torch.float64))
    columns = [torch.as_tensor(v) for v in (inner.t, inner.alpha, inner.sigma)]
    first = [torch.tensor([v], dtype=torch.float64) for v in (end.t, end.alpha, end.sigma)]
    if float(end.log_snr) > start - 1e-6:
        columns = [column[1:] for column in columns]
    return Level(*(torch.cat(pair) for pair in zip(first, columns, strict=True)))


def gaussian_variance(data: GaussianOracle) -> ReverseVariance:
    r"""The reverse variance that is optimal for Gaussian data, also in the step to the data.

    :math:`\tilde\beta + k_0^2 \frac1D \sum_i \frac{\lambda_i \sigma^2}{\alpha^2 \lambda_i + \sigma^2}`: the sum is the
    mean error of the best linear denoiser (Bao et al. 2022, eq. 8, for Gaussian data). That of the best denoiser of
    data to which the Gaussian was fitted is no larger on average. Levels are those of floats.
    """
    variances = data.variances

    def variance(prediction: Prediction, t: Level, s: Level) -> Scalar:
        k0, _, tilde = posterior_coefficients(t, s)
        signal, noise = float(t.alpha) ** 2, float(t.sigma) ** 2
        return tilde + k0 * k0 * float((variances * noise / (signal * variances + noise)).mean())

    return variance


def hierarchy(
    denoiser: Denoise,
    images: Float[Tensor, "batch *shape"],
    levels: Level,
    *,
    bins: int | None,
    variance: ReverseVariance = small,
    seed: int = 0,
    batch_size: int = 500,
    **cond: Any,
) -> Hierarchy:
    """The variational bound of images, averaged over them, latent by latent.

    Args:
        denoiser: any denoiser.
        images: the data.
        levels: the latents, from noise to the lowest, which still has noise.
        bins: the number of values of quantized data, for the decoder; None leaves it out.
        variance: the reverse variance.
        seed: which noise.
        batch_size: how many images at once.
        cond: conditions of the images, passed on to the denoiser.

    Raises:
        InputError: as :func:`sfumato.diffusion.bound.variational_bound` does, or if a term is not finite.
    """
    columns = [torch.as_tensor(v, dtype=torch.float64) for v in (levels.t, levels.alpha, levels.sigma)]
    data = [torch.tensor([v], dtype=torch.float64) for v in (0.0, 1.0, 0.0)]
    to_data = Level(*(torch.cat(pair) for pair in zip(columns, data, strict=True)))
    priors: list[Tensor] = []
    steps: list[Tensor] = []
    decoders: list[Tensor] = []
    for start in range(0, max(1, len(images)), batch_size):
        x0 = images[start : start + batch_size]
        here: dict[str, Any] = {name: value[start : start + batch_size] for name, value in cond.items()}
        if bins is None:
            prior, terms = latent_terms(denoiser, x0, levels, variance, seed=seed, first=start, **here)
        else:
            found: Bound = variational_bound(denoiser, x0, to_data, variance, bins=bins, seed=seed, first=start, **here)
            prior, terms = found.prior, found.steps
            decoders.append(found.decoder.cpu())
        priors.append(prior.cpu())
        steps.append(terms.cpu())
    decoder = float(torch.cat(decoders).mean()) if decoders else None
    view = Hierarchy(columns[0], float(torch.cat(priors).mean()), torch.cat(steps).mean(0), decoder)
    if not math.isfinite(view.total):
        raise InputError("A term of the bound is not finite: the denoiser gives numbers that are not.")
    return view


def gaussian_hierarchy(data: GaussianOracle, levels: Level) -> Hierarchy:
    r"""The ledger of Gaussian data in closed form, between latents that all have noise.

    The best :math:`p(x_s | x_t)` leaves a divergence of :math:`I(x_0; x_s | x_t) = I(x_0; x_s) - I(x_0; x_t)`, with
    :math:`I(x_0; x_t) = \frac12 \sum_i \log_2 (1 + \lambda_i \alpha^2 / \sigma^2)`.

    Raises:
        InputError: if the levels do not fall, or one is free of noise, where continuous data carry infinite bits.
    """
    stops = list(levels)
    if any(float(level.sigma) <= 0.0 for level in stops):
        raise InputError("The information of continuous data is infinite at sigma = 0; leave t = 0 out.")
    if bool((torch.as_tensor(levels.t).reshape(-1).diff() >= 0.0).any()):
        raise InputError("The latents of a hierarchy fall strictly in time, from noise to the data.")
    snr = torch.tensor([[math.exp(float(level.log_snr))] for level in stops], dtype=torch.float64)
    known = 0.5 * torch.log1p(snr * data.variances).mean(1) / math.log(2.0)
    times = torch.tensor([float(level.t) for level in stops], dtype=torch.float64)
    return Hierarchy(times, None, known.diff(), None)
