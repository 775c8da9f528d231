"""Editing images with a model: inpainting, SDEdit, DDIM inversion, interpolation."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.conditioning.base import given_tensors
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.gaussian import diffuse
from sfumato.errors import InputError, SfumatoWarning, check_arguments
from sfumato.io.progress import Progress, progress_bar
from sfumato.models.batch import SamplingBatch, collected
from sfumato.models.model import Model, as_model
from sfumato.sampling import editing
from sfumato.sampling.editing import Inpainting, Inversion, below, resampled, slerp
from sfumato.sampling.sample import initial, seeded_noise

_SLACK = 1e-3
"""How far beyond [-1, 1] the values of an image may lie, for rounding."""


def inpaint(
    model: Model | Denoise,
    image: Float[Tensor, "..."],
    mask: Tensor,
    count: int = 15,
    *,
    repeats: int = 10,
    jump: int = 1,
    progress: Progress = None,
    **options: Any,
) -> Float[Tensor, "count channels *space"]:
    """Fill in what a mask leaves out of an image, by RePaint (Lugmayr et al. 2022).

    Args:
        model: a model, or any denoiser with a schedule.
        image: ``(C, *space)`` in [-1, 1], or one for each of ``count``; values outside the mask are ignored.
        mask: true, or 1, where the image is kept: ``(*space)``, ``(1 or C, *space)``, or one for each of ``count``.
        count: number of results.
        repeats: how often each stretch of the trajectory is resampled, so that new and old fit; 1 only replaces.
        jump: the length of a stretch in steps.
        progress, options: as for :meth:`sfumato.Model.sample`: seed, first, steps, conditions, ...
    """
    check_arguments(inpaint, locals())
    image, mask = torch.as_tensor(image), torch.as_tensor(mask)
    space = image.shape[-(mask.ndim if mask.ndim < image.ndim else image.ndim) :]
    model = as_model(model, image.shape if image.ndim <= len(space) + 1 else image.shape[1:])
    known = _mask(model, mask, count)
    images = _image(model, image, count, known)
    if bool(known.all()):
        raise InputError("The mask keeps all of the image, so there is nothing to inpaint; it is true where to keep.")
    if not bool(known.any()):
        text = (
            "The mask keeps nothing of the image, so all of it is sampled; it is true, white or opaque where to keep."
        )
        warnings.warn(text, SfumatoWarning, stacklevel=2)

    def edit(batch: SamplingBatch) -> SamplingBatch:
        given, kept = _part(images, batch).to(batch.x), _part(known, batch).to(batch.x.device)
        start = batch.levels[0]
        # the prior of the known part is that of the diffused image, not pure noise
        x = batch.x + start.alpha * torch.where(kept, given, 0.0)
        levels = resampled(batch.levels, repeats, jump)
        return dataclasses.replace(batch, x=x, levels=levels, step=Inpainting(batch.step, given, kept))

    return collected(model.batches(count, stepwise=True, **options), edit, count, progress, "inpainting")


def sdedit(
    model: Model | Denoise,
    image: Float[Tensor, "..."],
    strength: float = 0.5,
    count: int = 15,
    *,
    progress: Progress = None,
    **options: Any,
) -> Float[Tensor, "count channels *space"]:
    r"""Sample an image again from its noisy version (SDEdit, Meng et al. 2022, algorithm 1).

    Sampling starts from :math:`\alpha_t x_0 + \sigma_t \epsilon` at ``strength`` times the time of the first level, and
    takes the steps of the grid that are left from there.

    Args:
        model: a model, or any denoiser with a schedule.
        image: ``(C, *space)`` in [-1, 1], or one for each of ``count``. A bare denoiser takes images or vectors: two or
            four axes are one for each.
        strength: how much is sampled again, above 0 and up to 1, where only a trace of the image is left.
        count: number of results.
        progress, options: as for :meth:`sfumato.Model.sample`: seed, first, steps, conditions, ...
    """
    check_arguments(sdedit, locals())
    if not 0.0 < strength <= 1.0:
        raise InputError(
            f"The strength of SDEdit lies above 0 (leave the image) and up to 1 (sample all again); got {strength}."
        )
    image = torch.as_tensor(image)
    model = as_model(model, image.shape[1:] if image.ndim in (2, 4) else image.shape)
    images = _image(model, image, count)

    def edit(batch: SamplingBatch) -> SamplingBatch:
        top = batch.levels[0]
        start = top if strength == 1.0 else model.denoiser.schedule(strength * float(top.t))
        # the same noise at every strength: that of the seed
        noise = batch.x / float(top.sigma)
        x = diffuse(_part(images, batch).to(batch.x).expand_as(noise), start, noise)
        return dataclasses.replace(batch, x=x, levels=below(batch.levels, start))

    return collected(model.batches(count, stepwise=True, **options), edit, count, progress, "SDEdit")


def invert(
    model: Model | Denoise, images: Float[Tensor, "..."], *, progress: Progress = None, **options: Any
) -> Inversion:
    """The noise that images come from, by the probability flow backwards (DDIM inversion), and how well it works.

    Args:
        model: a model, or any denoiser with a schedule.
        images: ``(C, *space)`` or ``(N, C, *space)`` in [-1, 1]. A bare denoiser takes images or vectors: two or four
            axes are several.
        progress, options: as for :meth:`sfumato.Model.sample`; the solver must be deterministic.

    Returns:
        On the CPU: the noise, with which :func:`interpolate` and samplers can begin, what is sampled from it, and the
        root mean square of the difference for each image.
    """
    images = torch.as_tensor(images)
    model = as_model(model, images.shape[1:] if images.ndim in (2, 4) else images.shape)
    shape = model.info.shape
    count = len(images) if images.ndim == len(shape) + 1 else 1
    every = _image(model, images, count).expand(count, *shape)
    parts: list[Inversion] = []
    with progress_bar("DDIM inversion", count, progress) as advance:
        for batch in model.batches(count, stepwise=True, **options):
            # a step that chooses its own length can also go up
            up = batch.step if getattr(getattr(batch.step, "func", None), "__name__", "") == "adaptive" else None
            given = _part(every, batch).to(batch.x)
            inversion = editing.invert(batch.denoise, given, batch.levels, batch.step, up=up, **batch.cond)
            parts.append(Inversion(inversion.noise.cpu(), inversion.reconstruction.cpu(), inversion.error.cpu()))
            advance(batch.start + len(batch))
    return Inversion(
        torch.cat([part.noise for part in parts]),
        torch.cat([part.reconstruction for part in parts]),
        torch.cat([part.error for part in parts]),
    )


def interpolate(
    model: Model | Denoise,
    start: int | Float[Tensor, "channels *space"],
    end: int | Float[Tensor, "channels *space"],
    count: int = 8,
    *,
    progress: Progress = None,
    **options: Any,
) -> Float[Tensor, "count channels *space"]:
    """Images between two, sampled from noises on the arc between theirs (Song et al. 2021, app. D.5).

    Args:
        model: a model, or any denoiser with a schedule, which needs a noise for ``start``.
        start: a seed, whose image 0 is the first; or noise at the first level, such as that of :func:`invert`.
        end: the same for the last image.
        count: number of images, both ends among them.
        progress, options: as for :meth:`sfumato.Model.sample`; conditions that are not given are those of the first
            image, for all. A stochastic solver adds the same noise to all images.
    """
    check_arguments(interpolate, locals())
    if count < 2:
        raise InputError(f"An interpolation needs at least 2 images, its ends; got {count}.")
    if not isinstance(model, Model) and not isinstance(start, Tensor):
        raise InputError("Between seeds a model interpolates, which knows its shape; give a denoiser noises.")
    model = as_model(model, start.shape if isinstance(start, Tensor) else ())
    if getattr(model.denoiser, "base", None) is not None:
        raise InputError("A residual model does not start from pure noise, so that there is none to interpolate.")
    shape, seed = model.info.shape, start if isinstance(start, int) else 0
    for noise in (start, end):
        if isinstance(noise, Tensor) and tuple(noise.shape) != shape:
            raise InputError(f"A noise has shape {tuple(noise.shape)}, but this model samples from noise of {shape}.")

    temperature = model.settings(options)[0].temperature

    def edit(batch: SamplingBatch) -> SamplingBatch:
        ends = [
            initial(batch.levels, shape, n, temperature=temperature)[0] if isinstance(n, int) else n.float()
            for n in (start, end)
        ]
        fractions = torch.linspace(0.0, 1.0, count, dtype=torch.float64)
        x = slerp(ends[0], ends[1], fractions[batch.start : batch.start + len(batch)])
        noise_of_first = seeded_noise(seed, temperature=temperature)

        def same(x: Tensor) -> Tensor:
            return noise_of_first(x[:1]).expand_as(x)

        unnamed = {name: condition for name, condition in model.conditions.items() if name not in options}
        # those of the first image, for all
        first = given_tensors(unnamed, {}, 1, seed=seed)
        shared = {key: rows.to(batch.x.device).expand(len(batch), *rows.shape[1:]) for key, rows in first.items()}
        cond = {**batch.cond, **shared}
        return dataclasses.replace(batch, x=x.to(batch.x), noise=same, cond=cond)

    batches = model.batches(count, stepwise=True, seed=seed, **options)
    return collected(batches, edit, count, progress, "interpolation")


def _part(values: Tensor, batch: SamplingBatch) -> Tensor:
    """Those of a batch, or the one for all."""
    return values if len(values) == 1 else values[batch.start : batch.start + len(batch)]


def _image(
    model: Model, image: Tensor, count: int, known: Tensor | None = None
) -> Float[Tensor, "images channels *space"]:
    shape = model.info.shape
    if tuple(image.shape) != shape and tuple(image.shape[1:]) != shape:
        raise InputError(f"The image has shape {tuple(image.shape)}, but this model takes {shape}, (channels, *space).")
    images = image if image.ndim == len(shape) + 1 else image[None]
    if len(images) not in (1, count):
        raise InputError(f"There are {len(images)} images for {count} results; give one, or one for each.")
    visible = images if known is None else torch.where(known.to(images.device), images, 0.0)
    if not bool((visible.abs() <= 1.0 + _SLACK).all()):
        raise InputError("The values of an image must lie in [-1, 1]; map them there first.")
    return images


def _mask(model: Model, mask: Tensor, count: int) -> Tensor:
    shape = model.info.shape
    space = shape[1:]
    given = tuple(mask.shape)
    fits = [space, (1, *space), shape, (1, 1, *space), (1, *shape), (count, 1, *space), (count, *shape)]
    if given not in fits:
        raise InputError(f"The mask has shape {given}, but the images of this model are {space}, channel by channel.")
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            "A mask is 1 or true where the image is kept, 0 or false elsewhere; this one has other values."
        )
    known = mask.bool()
    if known.ndim == len(space):
        known = known[None]
    return known if known.ndim == len(shape) + 1 else known[None]
