"""Fourier analysis of the forward process: which frequencies drown in the noise, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError


@dataclass(frozen=True, slots=True)
class Rings:
    """The Fourier frequencies of a signal or an image, gathered by their distance from zero.

    Attributes:
        frequency: the mean radial frequency of each ring, in cycles per sample (1/2 is Nyquist along an axis).
        count: how many Fourier coefficients lie in it.
        index: the ring of each coefficient, in the order of ``torch.fft.fftn``.
    """

    frequency: Float64[Tensor, "rings"]
    count: Int64[Tensor, "rings"]
    index: Int64[Tensor, "*space"]


def radius(space: tuple[int, ...]) -> Float64[Tensor, "*space"]:
    """The radial frequency of every Fourier coefficient, in cycles per sample.

    Raises:
        InputError: for data without space.
    """
    if not space:
        raise InputError("A spectrum needs signals or images; these data are vectors, without space.")
    along = [torch.fft.fftfreq(side, dtype=torch.float64) for side in space]
    return sum((f.square() for f in torch.meshgrid(*along, indexing="ij")), torch.zeros(space).double()).sqrt()


def rings(space: tuple[int, ...]) -> Rings:
    """Rings as wide as the spacing of frequencies along the longest side; none is empty."""
    distance = radius(space)
    nearest = (distance * max(space)).round().long()
    _, index, count = nearest.unique(return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, index.flatten(), distance.flatten())
    return Rings(total / count, count, index)


def power(images: Float[Tensor, "batch channels *space"]) -> Float64[Tensor, "batch rings"]:
    r"""The power of each image per Fourier coefficient, averaged over a ring and over channels.

    The transform is unitary, so that (Parseval) :math:`\sum_r n_r S_r = \frac1C \lVert x \rVert^2` for rings of
    :math:`n_r` coefficients, and white noise of variance 1 has :math:`S = 1` at every frequency.
    """
    space = tuple(images.shape[2:])
    where = rings(space)
    dims = tuple(range(2, images.ndim))
    squares = torch.fft.fftn(images.detach().cpu().double(), dim=dims, norm="ortho").abs().square().mean(1)
    total = torch.zeros(len(images), len(where.count), dtype=torch.float64)
    return total.index_add_(1, where.index.flatten(), squares.flatten(1)) / where.count


@dataclass(frozen=True, slots=True)
class SpectrumView:
    r"""The power spectrum of :math:`x_t`, :math:`\alpha^2 S(f) + \sigma^2`, analytic and measured.

    Attributes:
        times: where it was taken.
        alpha: the scale of the data there.
        frequency: the radial frequency of each ring, in cycles per pixel; the first is 0, the mean.
        count: how many Fourier coefficients are in each ring.
        data: :math:`S(f)`, the spectrum of the data.
        signal: what is left of it, :math:`\alpha^2 S(f)`.
        noise: the noise, :math:`\sigma^2` at every frequency.
        measured: the mean spectrum of images that were diffused.
        error: the standard error of ``measured - signal - noise``, from the noise alone.
        drowned_above: at each time, the frequency above which the noise is the stronger; infinite where it is
            nowhere, 0 where it is everywhere.
        drowning_time: when the noise becomes as strong as the data at each frequency, :math:`\alpha^2 S = \sigma^2`;
            NaN where that never happens.
    """

    times: Float64[Tensor, "times"]
    alpha: Float64[Tensor, "times"]
    frequency: Float64[Tensor, "rings"]
    count: Int64[Tensor, "rings"]
    data: Float64[Tensor, "rings"]
    signal: Float64[Tensor, "times rings"]
    noise: Float64[Tensor, "times"]
    measured: Float64[Tensor, "times rings"]
    error: Float64[Tensor, "times rings"]
    drowned_above: Float64[Tensor, "times"]
    drowning_time: Float64[Tensor, "rings"]

    @property
    def analytic(self) -> Float64[Tensor, "times rings"]:
        return self.signal + self.noise[:, None]


def spectrum(
    images: Float[Tensor, "batch channels *space"],
    schedule: Schedule,
    times: Float64[Tensor, "times"],
    *,
    seed: int = 0,
) -> SpectrumView:
    """The spectrum of images on their way to noise.

    Args:
        images: signals or images of any shape, at least two.
        schedule: the forward process.
        times: where the spectrum is wanted.
        seed: which noise.

    Raises:
        InputError: for vectors, or fewer than two images.
    """
    if len(images) < 2:
        raise InputError(f"A spectrum with its standard error needs at least 2 images; got {len(images)}.")
    where, clean = rings(tuple(images.shape[2:])), power(images)
    levels, data = schedule(times), clean.mean(0)
    alpha, sigma = torch.as_tensor(levels.alpha), torch.as_tensor(levels.sigma)
    signal, noise = alpha.square()[:, None] * data, sigma.square()
    measured, error = torch.empty_like(signal), torch.empty_like(signal)
    x0 = images.detach().cpu().double()
    for i, level in enumerate(levels):
        fresh = random.normal(seed, "spectrum", 0, len(images), tuple(images.shape[1:]), step=i).double()
        found = power(diffuse(x0, level, fresh))
        measured[i] = found.mean(0)
        # each image is compared with its own spectrum: how much images differ is no error of the measurement
        error[i] = (found - float(level.alpha) ** 2 * clean).std(0) / math.sqrt(len(images))
    above = torch.tensor([drowned_above(where.frequency, data, level) for level in levels], dtype=torch.float64)
    return SpectrumView(
        times,
        alpha,
        where.frequency,
        where.count,
        data,
        signal,
        noise,
        measured,
        error,
        above,
        drowning_time(data, schedule),
    )


def drowned_above(frequency: Float64[Tensor, "rings"], data: Float64[Tensor, "rings"], level: Level) -> float:
    r"""The frequency above which :math:`\alpha^2 S(f) < \sigma^2`, interpolated between rings."""
    if float(level.sigma) == 0.0:
        return math.inf
    excess = (data * float(level.alpha) ** 2).log() - 2.0 * math.log(float(level.sigma))
    stronger = (excess > 0.0).nonzero()
    if len(stronger) == 0:
        return 0.0
    last = int(stronger[-1])
    if last == len(frequency) - 1:
        return math.inf
    fraction = float(excess[last] / (excess[last] - excess[last + 1]))
    return float(torch.lerp(frequency[last], frequency[last + 1], fraction))


def drowning_time(data: Float64[Tensor, "rings"], schedule: Schedule) -> Float64[Tensor, "rings"]:
    r"""The time of :math:`\log\mathrm{SNR} = -\log S(f)`, where signal and noise are equally strong."""
    wanted = -data.log()
    last = float(schedule(1.0).log_snr)
    times = torch.as_tensor(schedule.at(wanted.clamp(min=last)).t)
    return torch.where(wanted < last, math.nan, times)
