"""Content and detail: what of an image survives the noise, and who draws what when two denoisers share the work."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.analysis.spectrum import radius
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.level import Level, broadcast
from sfumato.diffusion.parameterization import v
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling.sample import Step, sample, seeded_noise

EDGES = (0.125, 0.25)
"""Where coarse ends and fine begins, in cycles per pixel: the two highest octaves below Nyquist are middle and fine."""

BANDS = ("coarse", "middle", "fine")


def band_masks(space: tuple[int, ...], edges: tuple[float, ...] = EDGES) -> Bool[Tensor, "bands *space"]:
    """Which Fourier coefficients are in each band; an edge belongs to the band below it, Nyquist to the last."""
    distance = radius(space)
    limits = (-1.0, *edges, float("inf"))
    return torch.stack([(distance > low + 1e-9) & (distance <= high + 1e-9) for low, high in pairwise(limits)])


def band_correlation(
    one: Float[Tensor, "batch channels *space"],
    two: Float[Tensor, "batch channels *space"],
    edges: tuple[float, ...] = EDGES,
) -> Float64[Tensor, "bands"]:
    r"""The correlation of pairs of images, band by band.

    With the Fourier transforms :math:`A, B` of the images less the mean image of each batch,
    :math:`\rho = \mathrm{Re} \sum \bar A B / \sqrt{\sum |A|^2 \sum |B|^2}` over the images, channels and coefficients
    of a band: 1 for equal images, 0 on average for unrelated ones; NaN where a band is empty.
    """
    a, b = (_transform(x) for x in (one, two))
    masks = band_masks(tuple(one.shape[2:]), edges)
    cross, left, right = (a.conj() * b).real, a.abs().square(), b.abs().square()
    sums = [torch.stack([(v * mask).sum() for mask in masks]) for v in (cross, left, right)]
    # what is left of a constant band is rounding: it correlates with nothing
    floor = 1e-20 * torch.stack([left.sum(), right.sum()]).max()
    rho = sums[0] / (sums[1] * sums[2]).sqrt()
    return torch.where((sums[1] > floor) & (sums[2] > floor), rho, torch.nan)


def _transform(x: Tensor) -> Tensor:
    centred = x.detach().cpu().double()
    return torch.fft.fftn(centred - centred.mean(0), dim=tuple(range(2, x.ndim)), norm="ortho")


@dataclass(frozen=True, slots=True)
class ContentDetail:
    r"""Images that were diffused to a level and drawn anew from there.

    Attributes:
        times: the levels they were taken to.
        bands: the names of the bands.
        correlation: of each image with what was made of it, per band.
        gaussian: the same for Gaussian data of the same spectrum and an exact deterministic sampler.
        original: the images.
        regenerated: what was drawn from each level.
    """

    times: Float64[Tensor, "times"]
    bands: tuple[str, ...]
    correlation: Float64[Tensor, "times bands"]
    gaussian: Float64[Tensor, "times bands"]
    original: Float[Tensor, "batch channels *space"]
    regenerated: Float[Tensor, "times batch channels *space"]


def content_detail(
    denoiser: Denoise,
    images: Float[Tensor, "batch channels *space"],
    levels: Level,
    step: Step,
    *,
    starts: list[int] | None = None,
    seed: int = 0,
    **cond: Any,
) -> ContentDetail:
    """Regenerate images from their own ``x_t``, for levels of a grid.

    Args:
        denoiser: any denoiser.
        images: at least two, or there would be no correlation.
        levels: the grid of the sampler, down to the data.
        step: the sampler.
        starts: which levels of the grid to start at, by index; by default all but the data.
        seed: which noise.
        cond: conditions of the images, passed on to the denoiser.

    Raises:
        InputError: for fewer than two images, vectors, or a start that is no level of the grid with noise.
    """
    if len(images) < 2:
        raise InputError(f"Content and detail are compared over at least 2 images; got {len(images)}.")
    count = len(levels)
    chosen = list(range(count - 1)) if starts is None else starts
    if not chosen or any(not 0 <= i < count - 1 for i in chosen):
        raise InputError(f"The grid has noise at its levels 0 ... {count - 2}; got starts {chosen}.")
    columns = [torch.as_tensor(v) for v in (levels.t, levels.alpha, levels.sigma)]
    spectrum = _transform(images).abs().square().mean((0, 1))
    masks = band_masks(tuple(images.shape[2:]))
    drawn: list[Tensor] = []
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for i in chosen:
        rest = Level(*(column[i:] for column in columns))
        level = next(iter(rest))
        noise = random.normal(seed, "regenerate", 0, len(images), tuple(images.shape[1:])).to(images)
        x = diffuse(images, level, noise)
        for frame in sample(denoiser, x, rest, step, noise=seeded_noise(seed), reuse=True, **cond):
            x = frame.x
        drawn.append(x)
        found.append(band_correlation(images, x))
        expected.append(gaussian_correlation(spectrum, masks, level))
    times = columns[0][torch.tensor(chosen)].double()
    return ContentDetail(times, BANDS, torch.stack(found), torch.stack(expected), images, torch.stack(drawn))


def gaussian_correlation(
    spectrum: Float64[Tensor, "*space"], masks: Bool[Tensor, "bands *space"], level: Level
) -> Float64[Tensor, "bands"]:
    r"""The correlation per band of Gaussian data with what the exact probability flow makes of their :math:`x_t`.

    The flow scales a coefficient of variance :math:`S` from the spread at ``t`` to that of the data, so that the two
    correlate by :math:`\alpha \sqrt{S} / \sqrt{\alpha^2 S + \sigma^2}`; a band is the average, weighted by :math:`S`.
    """
    signal = spectrum * float(level.alpha) ** 2
    rho = (signal / (signal + float(level.sigma) ** 2)).sqrt()
    weights = masks * spectrum
    dims = tuple(range(1, masks.ndim))
    return (weights * rho).sum(dims) / weights.sum(dims)


class Stitched:
    """Two denoisers as one: the first above a time of switching, where content is made, the second below.

    Args:
        content: the denoiser for ``t > switch``.
        detail: the denoiser for ``t <= switch``.
        switch: the time of switching.
    """

    def __init__(self, content: Denoise, detail: Denoise, switch: float) -> None:
        if not 0.0 <= switch <= 1.0:
            raise InputError(f"The time of switching lies between 0 and 1; got {switch}.")
        self.content, self.detail, self.switch = content, detail, switch

    def __call__(self, x: Float[Tensor, "batch *shape"], level: Level, **cond: Tensor) -> Prediction:
        noisy = torch.as_tensor(level.t) > self.switch
        if bool(noisy.all()):
            return self.content(x, level, **cond)
        if not bool(noisy.any()):
            return self.detail(x, level, **cond)
        x0 = torch.empty_like(x)
        for denoiser, rows in ((self.content, noisy), (self.detail, ~noisy)):
            part = Level(*(torch.as_tensor(v)[rows] for v in (level.t, level.alpha, level.sigma)))
            at = rows.to(x.device)
            x0[at] = denoiser(x[at], part, **{k: v[at.to(v.device)] for k, v in cond.items()}).x0
        return Prediction.of_x0(x, x0, level)


class Translated:
    r"""A denoiser of one schedule, asked at the levels of another.

    Two levels of one log-SNR differ in scale alone: if :math:`x = \alpha x_0 + \sigma \epsilon`, then
    :math:`x' = (\sigma' / \sigma)\, x = \alpha' x_0 + \sigma' \epsilon`, of the same data and noise. So the translation
    is exact wherever the denoiser's schedule has the log-SNR that it is asked at.

    Args:
        denoiser: the denoiser.
        schedule: its own schedule.
    """

    def __init__(self, denoiser: Denoise, schedule: Schedule) -> None:
        self.denoiser, self.schedule = denoiser, schedule

    def __call__(self, x: Float[Tensor, "batch *shape"], level: Level, **cond: Tensor) -> Prediction:
        own = self.schedule.at(level.log_snr)
        found = self.denoiser(x * broadcast(own.sigma / level.sigma, x), own, **cond)
        return Prediction(x, found.mix(-level.sigma, level.alpha), v(level), found.variance_fraction)


def translated(denoiser: Denoise, own: Schedule, other: Schedule) -> Denoise:
    """A denoiser of the schedule ``own``, for samplers that walk down the schedule ``other``.

    It is the denoiser itself where the two agree.

    Raises:
        InputError: if ``own`` ends at less noise than ``other``, where the denoiser was not trained.
    """
    times = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)
    one, two = own(times), other(times)
    pairs = ((one.alpha, two.alpha), (one.sigma, two.sigma))
    if all(torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-9, atol=1e-12) for a, b in pairs):
        return denoiser
    end, wanted = float(own(1.0).log_snr), float(other(1.0).log_snr)
    if wanted < end - 1e-9 * max(1.0, abs(end)):
        raise InputError(
            f"The second denoiser's schedule ends at a log-SNR of {end:.4g}, but the first one's at {wanted:.4g}, with "
            "more noise than the second was trained on; give the two in the other order."
        )
    return Translated(denoiser, own)


@dataclass(frozen=True, slots=True)
class Stitching:
    """Samples of one seed from two denoisers, for several times of switching.

    Attributes:
        switches: the times of switching; at 0 all is drawn by the content denoiser, at 1 all by the detail denoiser.
        bands: the names of the bands.
        to_content: the correlation with the sample of the content denoiser alone, per band.
        to_detail: the same with that of the detail denoiser alone.
        images: the samples.
    """

    switches: Float64[Tensor, "switches"]
    bands: tuple[str, ...]
    to_content: Float64[Tensor, "switches bands"]
    to_detail: Float64[Tensor, "switches bands"]
    images: Float[Tensor, "switches batch channels *space"]


def stitching(
    content: Denoise,
    detail: Denoise,
    x: Float[Tensor, "batch channels *space"],
    levels: Level,
    step: Step,
    switches: list[float],
    *,
    seed: int = 0,
    **cond: Any,
) -> Stitching:
    """Draw samples with two denoisers that take turns, from the same noise for each time of switching.

    Args:
        content: the denoiser of the noisy part.
        detail: the denoiser of the rest.
        x: the start, at the first level of the grid.
        levels: a grid that ends at the data.
        step: the sampler.
        switches: the times of switching.
        seed: the noise of stochastic steps.
        cond: conditions, passed on to both.

    Raises:
        InputError: if a time of switching lies outside [0, 1] or there is none.
    """
    if not switches:
        raise InputError("Stitching needs at least one time of switching.")

    def draw(denoiser: Denoise) -> Tensor:
        out = x
        for frame in sample(denoiser, x, levels, step, noise=seeded_noise(seed), reuse=True, **cond):
            out = frame.x
        return out

    images = [draw(Stitched(content, detail, switch)) for switch in switches]
    one, two = draw(content), draw(detail)
    return Stitching(
        torch.tensor(switches, dtype=torch.float64),
        BANDS,
        torch.stack([band_correlation(image, one) for image in images]),
        torch.stack([band_correlation(image, two) for image in images]),
        torch.stack(images),
    )
