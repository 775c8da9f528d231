"""Frequencies of images: which drown in the noise and when, what survives it, and two denoisers that share the work."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sfumato import random
from sfumato.analysis import Images
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.level import Level, broadcast
from sfumato.diffusion.parameterization import v
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling.sample import Step, sample, seeded_noise

BANDS = ("coarse", "middle", "fine")
EDGES = (0.125, 0.25)
"""The limits between the bands, in cycles per pixel: the two highest octaves below Nyquist are middle and fine."""


class Rings(NamedTuple):
    """Frequencies binned by radius: the mean of each ring (1/2 is Nyquist), its number of coefficients, their rings."""

    frequency: Float64[Tensor, "rings"]
    coefficients: Int64[Tensor, "rings"]
    ring: Int64[Tensor, "*space"]


def radius(space: tuple[int, ...]) -> Float64[Tensor, "*space"]:
    """The radial frequency of every Fourier coefficient, in cycles per pixel."""
    if not space:
        raise InputError("A spectrum needs signals or images; these data are vectors, without spatial axes.")
    along = [torch.fft.fftfreq(side, dtype=torch.float64) for side in space]
    return sum((f.square() for f in torch.meshgrid(*along, indexing="ij")), torch.zeros(space).double()).sqrt()


def rings(space: tuple[int, ...]) -> Rings:
    """Rings as wide as the spacing of frequencies along the longest side, for the order of ``torch.fft.fftn``."""
    distance = radius(space)
    _, index, count = (distance * max(space)).round().unique(return_inverse=True, return_counts=True)
    return Rings(torch.bincount(index.flatten(), distance.flatten()) / count, count, index)


def power(images: Images) -> Float64[Tensor, "batch rings"]:
    """The power of each image per Fourier coefficient, averaged over a ring and over channels.

    The transform is unitary: white noise of variance 1 has :math:`S = 1` at every frequency.
    """
    bins = rings(tuple(images.shape[2:]))
    dims = tuple(range(2, images.ndim))
    squares = torch.fft.fftn(images.detach().cpu().double(), dim=dims, norm="ortho").abs().square().mean(1)
    total = torch.zeros(len(images), len(bins.coefficients), dtype=torch.float64)
    return total.index_add_(1, bins.ring.flatten(), squares.flatten(1)) / bins.coefficients


class Spectrum(NamedTuple):
    """The power spectrum of :math:`x_t` at some levels, in closed form and measured."""

    levels: Level
    frequency: Float64[Tensor, "rings"]  # of each ring, in cycles per pixel; the first is 0, the mean
    data: Float64[Tensor, "rings"]  # S(f)
    analytic: Float64[Tensor, "times rings"]  # alpha^2 S(f) + sigma^2
    measured: Float64[Tensor, "times rings"]  # the mean of diffused images
    error: Float64[Tensor, "times rings"]  # the standard error of measured - analytic, from the noise alone
    drowning_time: Float64[Tensor, "rings"]  # when the noise becomes as strong as the data; NaN where it never does


def spectrum(images: Images, schedule: Schedule, times: Float64[Tensor, "times"], *, seed: int = 0) -> Spectrum:
    """The power spectrum of at least two images at some times of the forward process."""
    if len(images) < 2:
        raise InputError(f"A spectrum with its standard error needs at least 2 images; got {len(images)}.")
    clean, levels, x0 = power(images), schedule(times), images.detach().cpu().double()
    data, rows = clean.mean(0), list[tuple[Tensor, ...]]()
    for i, level in enumerate(levels):
        noise = random.normal(seed, "spectrum", 0, len(images), tuple(images.shape[1:]), step=i).double()
        diffused, signal = power(diffuse(x0, level, noise)), float(level.alpha) ** 2
        # each image is compared with its own spectrum: how much images differ is no error of the measurement
        error = (diffused - signal * clean).std(0) / math.sqrt(len(images))
        rows.append((signal * data + float(level.sigma) ** 2, diffused.mean(0), error))
    analytic, measured, error = (torch.stack(column) for column in zip(*rows, strict=True))
    frequency = rings(tuple(images.shape[2:])).frequency
    return Spectrum(levels, frequency, data, analytic, measured, error, drowning_time(data, schedule))


def drowning_time(data: Float64[Tensor, "rings"], schedule: Schedule) -> Float64[Tensor, "rings"]:
    r"""The time at which :math:`\alpha^2 S(f) = \sigma^2`, that is :math:`\log\mathrm{SNR} = -\log S(f)`."""
    log_snr = -data.log()
    last = float(schedule(1.0).log_snr)
    times = torch.as_tensor(schedule.at(log_snr.clamp(min=last)).t)
    return torch.where(log_snr < last, math.nan, times)


def band_masks(space: tuple[int, ...]) -> Bool[Tensor, "bands *space"]:
    """Which Fourier coefficients are in each band; an edge belongs to the band below it."""
    distance = radius(space)
    limits = (-1.0, *EDGES, math.inf)
    return torch.stack([(distance > low + 1e-9) & (distance <= high + 1e-9) for low, high in pairwise(limits)])


def band_correlation(one: Images, two: Images) -> Float64[Tensor, "bands"]:
    r"""The correlation of pairs of images, band by band; NaN where a band is empty.

    With the Fourier transforms :math:`A, B` of the images minus the mean image of each batch,
    :math:`\rho = \mathrm{Re} \sum \bar A B / \sqrt{\sum |A|^2 \sum |B|^2}` over the images, channels and coefficients
    of a band.
    """
    a, b = _transform(one), _transform(two)
    masks = band_masks(tuple(one.shape[2:]))
    cross, left, right = (
        torch.stack([(values * mask).sum() for mask in masks])
        for values in ((a.conj() * b).real, a.abs().square(), b.abs().square())
    )
    # what is left of a constant band is rounding: it correlates with nothing
    least = 1e-20 * torch.stack([a.abs().square().sum(), b.abs().square().sum()]).max()
    return torch.where((left > least) & (right > least), cross / (left * right).sqrt(), torch.nan)


def _transform(x: Tensor) -> Tensor:
    centred = x.detach().cpu().double()
    return torch.fft.fftn(centred - centred.mean(0), dim=tuple(range(2, x.ndim)), norm="ortho")


class ContentDetail(NamedTuple):
    """Images regenerated from each time, and their correlation with the originals per band, also for Gaussian data."""

    times: Float64[Tensor, "times"]
    correlation: Float64[Tensor, "times bands"]
    gaussian: Float64[Tensor, "times bands"]
    original: Images
    regenerated: Float[Tensor, "times batch channels *space"]


def content_detail(
    denoiser: Denoise, images: Images, levels: Level, step: Step, *, starts: list[int], seed: int = 0, **cond: Any
) -> ContentDetail:
    """Regenerate at least two images from their own ``x_t``, at the levels with indices ``starts`` of the grid."""
    if len(images) < 2:
        raise InputError(f"Content and detail are compared over at least 2 images; got {len(images)}.")
    if any(not 0 <= i < len(levels) - 1 for i in starts):
        raise InputError(f"The grid has noise at its levels 0 ... {len(levels) - 2}; got starts {starts}.")
    spectrum = _transform(images).abs().square().mean((0, 1))
    masks = band_masks(tuple(images.shape[2:]))
    noise = random.normal(seed, "regenerate", 0, len(images), tuple(images.shape[1:])).to(images)
    regenerated = [_sample(denoiser, diffuse(images, levels[i], noise), levels[i:], step, seed, cond) for i in starts]
    correlation = torch.stack([band_correlation(images, x) for x in regenerated])
    gaussian = torch.stack([gaussian_correlation(spectrum, masks, levels[i]) for i in starts])
    times = torch.as_tensor(levels[starts].t).double()
    return ContentDetail(times, correlation, gaussian, images, torch.stack(regenerated))


def _sample(denoiser: Denoise, x: Tensor, levels: Level, step: Step, seed: int, cond: dict[str, Any]) -> Tensor:
    for frame in sample(denoiser, x, levels, step, noise=seeded_noise(seed), **cond):
        x = frame.x
    return x


def gaussian_correlation(
    spectrum: Float64[Tensor, "*space"], masks: Bool[Tensor, "bands *space"], level: Level
) -> Float64[Tensor, "bands"]:
    r"""The correlation per band of Gaussian data with what the exact probability flow makes of their :math:`x_t`.

    :math:`\alpha \sqrt{S} / \sqrt{\alpha^2 S + \sigma^2}`, averaged over a band with weights :math:`S`.
    """
    signal = spectrum * float(level.alpha) ** 2
    rho = (signal / (signal + float(level.sigma) ** 2)).sqrt()
    weights = masks * spectrum
    dims = tuple(range(1, masks.ndim))
    return (weights * rho).sum(dims) / weights.sum(dims)


def stitched(content: Denoise, detail: Denoise, switch: float) -> Denoise:
    """Two denoisers as one: ``content`` for times ``t > switch``, ``detail`` for the rest."""

    def denoise(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        noisy = torch.as_tensor(level.t) > switch
        if bool(noisy.all()):
            return content(x, level, **cond)
        if not bool(noisy.any()):
            return detail(x, level, **cond)
        x0 = torch.empty_like(x)
        for denoiser, rows in ((content, noisy), (detail, ~noisy)):
            at = rows.to(x.device)
            part = {name: value[rows.to(value.device)] for name, value in cond.items()}
            x0[at] = denoiser(x[at], level[rows], **part).x0
        return Prediction.of_x0(x, x0, level)

    return denoise


def at_any_level(denoiser: Denoise, trained: Schedule) -> Denoise:
    r"""A denoiser of the schedule ``trained``, for levels of any schedule, where ``trained`` reaches their log-SNR.

    Two levels of one log-SNR differ in scale only: if :math:`x = \alpha x_0 + \sigma \epsilon`, then
    :math:`x' = (\sigma' / \sigma)\, x = \alpha' x_0 + \sigma' \epsilon`, of the same data and noise.
    """

    def denoise(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        known = trained.at(level.log_snr)
        prediction = denoiser(x * broadcast(known.sigma / level.sigma, x), known, **cond)
        return Prediction(x, prediction.mix(-level.sigma, level.alpha), v(level), prediction.variance_fraction)

    return denoise


def translated(denoiser: Denoise, trained: Schedule, other: Schedule) -> Denoise:
    """A denoiser of the schedule ``trained`` for samplers on the schedule ``other``; itself where the two agree."""
    times = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)
    one, two = trained(times), other(times)
    pairs = ((one.alpha, two.alpha), (one.sigma, two.sigma))
    if all(torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-9, atol=1e-12) for a, b in pairs):
        return denoiser
    end, needed = float(trained(1.0).log_snr), float(other(1.0).log_snr)
    if needed < end - 1e-9 * max(1.0, abs(end)):
        raise InputError(
            f"The second denoiser was trained down to a log-SNR of {end:.4g}, but the first one's schedule ends at "
            f"{needed:.4g}, with more noise; give the two in the other order."
        )
    return at_any_level(denoiser, trained)


class Stitching(NamedTuple):
    """Samples for some switching times (0: the content denoiser alone), correlated with those of either, per band."""

    switches: Float64[Tensor, "switches"]
    to_content: Float64[Tensor, "switches bands"]
    to_detail: Float64[Tensor, "switches bands"]
    images: Float[Tensor, "switches batch channels *space"]


def stitching(
    one: Denoise,
    two: Denoise,
    x: Images,
    levels: Level,
    step: Step,
    switches: list[float],
    *,
    seed: int = 0,
    **cond: Any,
) -> Stitching:
    """Sample with two denoisers that take turns, from the same start ``x`` and noise for each switching time."""
    denoisers = [one, two, *(stitched(one, two, switch) for switch in switches)]
    first, second, *images = (_sample(denoiser, x, levels, step, seed, cond) for denoiser in denoisers)
    to_first, to_second = (torch.stack([band_correlation(x, alone) for x in images]) for alone in (first, second))
    return Stitching(torch.tensor(switches, dtype=torch.float64), to_first, to_second, torch.stack(images))
