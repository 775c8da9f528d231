"""Editing images with a trained model: painting what is missing, redrawing, finding their noise, going between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.config import SamplingConfig
from sfumato.diffusion.gaussian import diffuse
from sfumato.errors import InputError
from sfumato.models.model import Draw, Model
from sfumato.sampling import editing
from sfumato.sampling.editing import Inpainting, Inversion, below, resampled, slerp
from sfumato.sampling.sample import initial, seeded_noise

_SLACK = 1e-3
"""How far beyond [-1, 1] the values of an image may lie, for rounding."""


def inpaint(
    model: Model,
    image: Float[Tensor, "..."],
    mask: Tensor,
    count: int = 1,
    *,
    repeats: int = 10,
    jump: int = 1,
    seed: int = 0,
    first: int = 0,
    labels: Int[Tensor, "count"] | int | str | None = None,
    sampling: SamplingConfig | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "count channels *space"]:
    """Paint what is missing in an image, by RePaint (Lugmayr et al. 2022).

    Args:
        model: a trained model.
        image: ``(C, *space)`` in [-1, 1], or one for each of ``count``; what it holds beyond the mask is not looked at.
        mask: true, or 1, where the image is kept: ``(*space)``, ``(1 or C, *space)``, or one for each of ``count``.
        count: how many answers.
        repeats: how often each stretch of the way is walked, for the new to fit the old; 1 only puts the old in place.
        jump: the length of a stretch in steps.
        seed: which answers; answer ``i`` of a seed is the same whatever the batch size.
        first: the number of the first answer.
        labels: the class of the image, as for :meth:`~sfumato.Model.sample`.
        sampling: the sampler, its steps and guidance; by default those of the configuration.
        batch_size: images computed at once.
        progress: called after each batch with the number of images done.

    Raises:
        InputError: if the image or the mask does not fit the model, the mask keeps all, or as ``Model.sample`` does.
    """
    known = _mask(model, mask, count)
    images = _image(model, image, count, known)
    sampling = (sampling or model.config.sampling).stepwise(model.fitted)
    if bool(known.all()):
        raise InputError("The mask keeps all of the image, so there is nothing to paint; it is true where to keep.")

    def edit(draw: Draw) -> Draw:
        own, kept = _part(images, draw).to(draw.x), _part(known, draw).to(draw.x.device)
        start = next(iter(draw.levels))
        # the prior of the known part is that of the image diffused, not pure noise
        x = draw.x + start.alpha * torch.where(kept, own, 0.0)
        levels = resampled(draw.levels, repeats, jump)
        return dataclasses.replace(draw, x=x, levels=levels, step=Inpainting(draw.step, own, kept))

    return _drawn(model, count, edit, seed, first, labels, sampling, batch_size, progress)


def sdedit(
    model: Model,
    image: Float[Tensor, "..."],
    strength: float = 0.5,
    count: int = 1,
    *,
    seed: int = 0,
    first: int = 0,
    labels: Int[Tensor, "count"] | int | str | None = None,
    sampling: SamplingConfig | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "count channels *space"]:
    r"""Redraw an image from its noisy version (SDEdit, Meng et al. 2022, algorithm 1).

    Sampling starts from :math:`\alpha_t x_0 + \sigma_t \epsilon` at ``strength`` times the time of the first level, and
    takes the steps of the grid that are left from there. At 1 all is drawn anew, but for the trace of the image that
    the schedule leaves in its noise.

    Args:
        model: a trained model.
        image: ``(C, *space)`` in [-1, 1], or one for each of ``count``.
        strength: how much is drawn anew, in (0, 1].
        count: how many answers.
        seed, first, labels, sampling, batch_size, progress: as for :func:`inpaint`.

    Raises:
        InputError: if the strength is out of its range, the image does not fit, or as ``Model.sample`` does.
    """
    if not 0.0 < strength <= 1.0:
        raise InputError(
            f"The strength of SDEdit lies above 0 (leave the image) and up to 1 (all anew); got {strength}."
        )
    images = _image(model, image, count)
    sampling = (sampling or model.config.sampling).stepwise(model.fitted)

    def edit(draw: Draw) -> Draw:
        top = next(iter(draw.levels))
        start = top if strength == 1.0 else model.denoiser.schedule(strength * float(top.t))
        # the same noise at every strength: that of the seed
        noise = draw.x / float(top.sigma)
        x = diffuse(_part(images, draw).to(draw.x).expand_as(noise), start, noise)
        return dataclasses.replace(draw, x=x, levels=below(draw.levels, start))

    return _drawn(model, count, edit, seed, first, labels, sampling, batch_size, progress)


def invert(
    model: Model,
    images: Float[Tensor, "..."],
    *,
    labels: Int[Tensor, "count"] | int | str | None = None,
    sampling: SamplingConfig | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Inversion:
    """The noise that images come from, by the probability flow backwards (DDIM inversion), and how well it gives them.

    Args:
        model: a trained model.
        images: ``(C, *space)`` or ``(N, C, *space)`` in [-1, 1].
        labels: their classes, as for :meth:`~sfumato.Model.sample`.
        sampling: a deterministic sampler, and the grid; by default those of the configuration.
        batch_size: images computed at once.
        progress: called after each batch with the number of images done.

    Returns:
        On the processor: the noise, with which :func:`interpolate` and samplers can begin, what is drawn from it, and
        the root mean square of the difference for each image.

    Raises:
        InputError: if the images do not fit, the sampler draws noise, or as ``Model.sample`` does.
    """
    shape = model.facts.shape
    count = len(images) if images.ndim == len(shape) + 1 else 1
    batch = _image(model, images, count).expand(count, *shape)
    sampling = (sampling or model.config.sampling).stepwise(model.fitted)
    parts: list[Inversion] = []
    both_ways = sampling.sampler.kind == "adaptive"
    for draw in model.draws(count, labels=labels, sampling=sampling, batch_size=batch_size):
        up = draw.step if both_ways else None
        of = _part(batch, draw).to(draw.x)
        found = editing.invert(draw.denoise, of, draw.levels, draw.step, up=up, **draw.cond)
        parts.append(Inversion(found.noise.cpu(), found.reconstruction.cpu(), found.error.cpu()))
        if progress is not None:
            progress(draw.start + len(draw))
    return Inversion(
        torch.cat([part.noise for part in parts]),
        torch.cat([part.reconstruction for part in parts]),
        torch.cat([part.error for part in parts]),
    )


def interpolate(
    model: Model,
    start: int | Float[Tensor, "channels *space"],
    end: int | Float[Tensor, "channels *space"],
    count: int = 8,
    *,
    labels: Int[Tensor, "count"] | int | str | None = None,
    sampling: SamplingConfig | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "count channels *space"]:
    """Images between two, drawn from noises on the arc between theirs (Song et al. 2021, app. D.5).

    Args:
        model: a trained model.
        start: a seed, whose image 0 is the first; or noise at the first level, such as that of :func:`invert`.
        end: the same for the last image.
        count: how many images, both ends among them.
        labels: their class; by default that of the first image, for all.
        sampling: the sampler; a stochastic one draws the same noise for all images.
        batch_size: images computed at once.
        progress: called after each batch with the number of images done.

    Raises:
        InputError: if there are fewer than 2 images, a noise does not fit, or as ``Model.sample`` does.
    """
    if count < 2:
        raise InputError(f"An interpolation needs at least 2 images, its ends; got {count}.")
    shape, seed = model.facts.shape, start if isinstance(start, int) else 0
    for noise in (start, end):
        if isinstance(noise, Tensor) and tuple(noise.shape) != shape:
            raise InputError(f"A noise has shape {tuple(noise.shape)}, but this model draws from noise of {shape}.")
    if labels is None and model.facts.classes:
        law = (sampling or model.config.sampling).classes
        labels = model.classes_of(None, law, seed, 0, 1)
        labels = None if labels is None else int(labels[0])

    def edit(draw: Draw) -> Draw:
        ends = [initial(draw.levels, shape, n)[0] if isinstance(n, int) else n.float() for n in (start, end)]
        fractions = torch.linspace(0.0, 1.0, count, dtype=torch.float64)
        x = slerp(ends[0], ends[1], fractions[draw.start : draw.start + len(draw)])
        one = seeded_noise(seed)

        def same(x: Tensor) -> Tensor:
            return one(x[:1]).expand_as(x)

        return dataclasses.replace(draw, x=x.to(draw.x), noise=same)

    return _drawn(model, count, edit, seed, 0, labels, sampling, batch_size, progress)


def _drawn(
    model: Model,
    count: int,
    edit: Callable[[Draw], Draw],
    seed: int,
    first: int,
    labels: Int[Tensor, "count"] | int | str | None,
    sampling: SamplingConfig | None,
    batch_size: int | None,
    progress: Callable[[int], None] | None,
) -> Float[Tensor, "count channels *space"]:
    done: list[Tensor] = []
    for draw in model.draws(count, seed=seed, first=first, labels=labels, sampling=sampling, batch_size=batch_size):
        done.append(edit(draw).images())
        if progress is not None:
            progress(draw.start + len(draw))
    return torch.cat(done)


def _part(values: Tensor, draw: Draw) -> Tensor:
    """Those of a batch, or the one for all."""
    return values if len(values) == 1 else values[draw.start : draw.start + len(draw)]


def _image(
    model: Model, image: Tensor, count: int, known: Tensor | None = None
) -> Float[Tensor, "images channels *space"]:
    shape = model.facts.shape
    if tuple(image.shape) != shape and tuple(image.shape[1:]) != shape:
        raise InputError(f"The image has shape {tuple(image.shape)}, but this model draws {shape}, (channels, *space).")
    images = image if image.ndim == len(shape) + 1 else image[None]
    if len(images) not in (1, count):
        raise InputError(f"There are {len(images)} images for {count} answers; give one, or one for each.")
    looked_at = images if known is None else torch.where(known.to(images.device), images, 0.0)
    if not bool((looked_at.abs() <= 1.0 + _SLACK).all()):
        raise InputError("The values of an image must lie in [-1, 1]; map them there first.")
    return images


def _mask(model: Model, mask: Tensor, count: int) -> Tensor:
    shape = model.facts.shape
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
