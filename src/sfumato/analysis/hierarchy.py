"""The diffusion model as a hierarchical VAE: how many bits each latent carries."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.analysis._gaussian import FittedGaussian
from sfumato.analysis.schedules import LossCurve
from sfumato.diffusion.level import Level
from sfumato.errors import InputError


@dataclass(frozen=True, slots=True)
class Hierarchy:
    r"""The bits per dimension that each latent adds to those above it.

    Attributes:
        times: the level :math:`t` of the latents, rising.
        bits: what the step from :math:`t` to the latent below it adds, :math:`L_{t-1}` of the bound.
        below: the sum of the bits of this and all higher levels: what is known once this step is done.
    """

    times: Float64[Tensor, "n"]
    bits: Float64[Tensor, "n"]
    below: Float64[Tensor, "n"]

    @property
    def total(self) -> float:
        return float(self.bits.sum())

    def half(self) -> float:
        """The time above which half of the bits are carried."""
        return float(self.times[self.below >= 0.5 * self.below[0]][-1])


def hierarchy(ledger: Iterable[tuple[float, float]]) -> Hierarchy:
    """The hierarchy of a variational bound.

    Args:
        ledger: pairs of a time and the bits per dimension of its term, in any order.

    Raises:
        InputError: if there is none, or a term is not finite.
    """
    pairs = sorted(ledger)
    if not pairs:
        raise InputError("A ledger needs at least one term.")
    if not all(math.isfinite(bits) for _, bits in pairs):
        raise InputError("A ledger has a term that is not finite: leave out the step to continuous data.")
    times, bits = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return Hierarchy(times, bits, bits.flip(0).cumsum(0).flip(0))


def gaussian_ledger(data: FittedGaussian, levels: Level) -> list[tuple[float, float]]:
    r"""The ledger of Gaussian data in closed form, in bits per dimension, between levels that all have noise.

    The best :math:`p(x_s | x_t)` leaves a divergence of :math:`I(x_0; x_s | x_t) = I(x_0; x_s) - I(x_0; x_t)`, with
    :math:`I(x_0; x_t) = \frac12 \sum_i \log_2 (1 + \lambda_i \alpha^2 / \sigma^2)`.

    Raises:
        InputError: if a level is free of noise, where continuous data carry infinitely many bits.
    """
    order = sorted(levels, key=lambda level: float(level.t))
    if any(float(level.sigma) <= 0.0 for level in order):
        raise InputError("The information of continuous data is infinite at sigma = 0; leave t = 0 out.")
    snr = torch.tensor([[math.exp(float(level.log_snr))] for level in order], dtype=torch.float64)
    known = 0.5 * torch.log1p(snr * data.variances).sum(1) / math.log(2.0) / len(data.mean)
    return list(zip([float(level.t) for level in order[1:]], (known[:-1] - known[1:]).tolist(), strict=True))


def loss_ledger(curve: LossCurve) -> list[tuple[float, float]]:
    r"""The ledger that a loss curve implies, in bits per dimension, between its levels.

    With the variance of the posterior, :math:`L_{t \to s} = \frac12 (\mathrm{SNR}_s - \mathrm{SNR}_t)\,
    \mathbb E \lVert x_0 - \hat x_0 \rVert^2` (Kingma et al. 2021, eq. 13), and the error of the data is that of the
    noise over :math:`\mathrm{SNR}_t`.
    """
    order = curve.times.argsort()
    snr, loss, times = curve.log_snr[order].exp(), curve.measured[order], curve.times[order]
    bits = 0.5 * (snr[:-1] / snr[1:] - 1.0) * loss[1:] / math.log(2.0)
    return list(zip(times[1:].tolist(), bits.tolist(), strict=True))
