"""Super-resolution of pictures of any size: tiles that are sampled together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato import random
from sfumato.conditioning.low_resolution import LowResolution
from sfumato.conditioning.network import Conditioned
from sfumato.conditioning.resampling import consistent, in_range
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.level import Level
from sfumato.errors import InputError, SfumatoWarning, check_arguments, require_memory
from sfumato.io.progress import Progress, progress_bar
from sfumato.models.batch import SamplingBatch
from sfumato.models.model import MOST_IMAGES, Model
from sfumato.networks.attention import Attention
from sfumato.networks.layers import Coordinates
from sfumato.sampling.sample import check_grid, initial, seeded_noise
from sfumato.sampling.tiles import Tiled

TILE = 192
"""The most input pixels of a tile, per axis, unless another number is asked for or the network takes one size only."""
FIELDS = 12
"""About how many numbers per value of the result are in memory at once, at least: estimates that solvers remember, the
noise, the result."""


def low_resolution_of(model: Model) -> tuple[str, LowResolution]:
    """The name of the condition that is a low resolution, and the condition."""
    found = [(name, c) for name, c in model.conditions.items() if isinstance(c, LowResolution)]
    if len(found) != 1:
        has = ", ".join(f"{name} ({c.summary})" for name, c in model.conditions.items()) or "none"
        raise InputError(
            "Upscaling needs a model of super-resolution, with one condition of kind low_resolution; the conditions "
            f"of this one: {has}."
        )
    return found[0]


def passes(model: Model, scale: int | None = None) -> int:
    """How often a picture goes through the model, one after the other, to become ``scale`` times larger."""
    factor = low_resolution_of(model)[1].factor
    scale = factor if scale is None else scale
    count = 0 if factor < 2 else round(math.log(max(scale, 1), factor))
    if count < 1 or factor**count != scale:
        reached = ", ".join(str(factor**n) for n in range(1, 4))
        able = f"makes pictures {factor} times larger, and in several passes {reached} ..."
        raise InputError(f"This model {able if factor > 1 else 'keeps sizes'}; it can't reach a scale of {scale}.")
    return count


def upscale(
    model: Model,
    picture: Float[Tensor, "channels height width"],
    *,
    scale: int | None = None,
    seed: int = 0,
    index: int = 0,
    tile: int | None = None,
    overlap: int = 20,
    progress: Progress = None,
    **options: Any,
) -> Float[Tensor, "channels high wide"]:
    r"""Enlarge a picture of any size by a model of super-resolution.

    Tiles share one field of noise and are blended at each step of the sampler, so that they fit together without seams,
    and the network never sees more than some of them at once. Of a picture of the size that the model was trained on
    the result is that of ``model.sample(first=index, seed=seed, low_resolution=picture)``.

    Grey pictures go through a model of colours as colours without hue. A channel of opacity, the second or fourth one,
    is enlarged by bicubic interpolation.

    ::

        from sfumato import pretrained

        photos = sfumato.load(pretrained.path("photos"))
        large = sfumato.upscale(photos, images[0], steps=8)

    Args:
        model: a model with a condition of kind ``low_resolution``.
        picture: values in [-1, 1]: grey or RGB, either with opacity or without.
        scale: the upscaling factor, a power of that of the model (default: that of the model).
        seed: the seed of the noise.
        index: the index of the sample of the seed; each is another sample for the same input.
        tile: the largest side of a tile in pixels of the input; 0 takes the whole picture at once (default: 192, or
            the size of a network that takes one only).
        overlap: the least overlap of neighbouring tiles in pixels of the input, at most half a tile.
        progress: False for no progress bar, or a function that is called with the percentage that is done; by default
            a bar is shown in terminals and notebooks.
        options: as for :meth:`Model.sample`: ``steps``, ``solver``, ``grid``, ``guidance``, ``input_noise``,
            ``sampling``, ..., and other conditions by name.

    Returns:
        float32 values in [-1, 1], on the CPU.
    """
    check_arguments(upscale, locals())
    count, channels = passes(model, scale), model.info.shape[0]
    _, condition = low_resolution_of(model)
    picture = picture.detach().cpu()
    if picture.ndim != 3 or picture.shape[0] not in (1, 2, 3, 4) or 0 in picture.shape:
        raise InputError(f"A picture has shape (1 to 4 channels, height, width); got {tuple(picture.shape)}.")
    if not bool(picture.isfinite().all()) or float(picture.abs().max()) > 1.05:
        raise InputError("A picture has values from -1 to 1; bytes become that by bytes / 127.5 - 1.")
    if overlap < 0 or (tile is not None and tile < 0):
        raise InputError(f"A tile and its overlap are numbers of pixels of the input; got {tile} and {overlap}.")
    if not 0 <= index < MOST_IMAGES:
        raise InputError(f"The index of a sample lies between 0 and 2^40; got {index}.")
    colours, opacity = (picture[:-1], picture[-1:]) if picture.shape[0] in (2, 4) else (picture, None)
    grey = colours.shape[0] == 1
    if not grey and channels != colours.shape[0]:
        raise InputError(f"This model enlarges pictures of {channels} channel, and this one has colours; give it grey.")
    size = math.prod(picture.shape[1:]) * condition.factor ** (2 * count) * channels
    require_memory(FIELDS * size, "The enlarged picture and what its sampling remembers", "the scale", model.device)

    values = colours.float().expand(channels, -1, -1)
    work = [condition.factor ** (2 * number) for number in range(count)]
    with progress_bar("upscaling", 100, progress) as advance:
        for number in range(count):

            def part(fraction: float, number: int = number) -> None:
                advance(round(100 * (sum(work[:number]) + work[number] * fraction) / sum(work)))

            seed_of_pass = seed if number == 0 else random.fold(seed, "upscale", number)
            values = _once(model, values, seed_of_pass, index, tile, overlap, options, part)
    values = values.mean(0, keepdim=True) if grey else values
    return values if opacity is None else torch.cat([values, bicubic(opacity.float(), condition.factor**count)])


def bicubic(picture: Float[Tensor, "channels height width"], scale: int) -> Float[Tensor, "channels high wide"]:
    """The picture enlarged by bicubic interpolation, in [-1, 1]."""
    return functional.interpolate(picture[None], scale_factor=scale, mode="bicubic")[0].clamp(-1.0, 1.0)


def _once(
    model: Model,
    picture: Float[Tensor, "channels height width"],
    seed: int,
    index: int,
    tile: int | None,
    overlap: int,
    options: dict[str, Any],
    advance: Callable[[float], object],
) -> Float[Tensor, "channels high wide"]:
    """Once through the model; ``advance`` is told the fraction that is done."""
    name, condition = low_resolution_of(model)
    factor, (height, width) = condition.factor, picture.shape[1:]
    sampling, solver, grid, cond = model.settings(options)
    constrained = sampling.guidance.consistent
    sampling = sampling.override({"guidance.consistent": False})  # of the whole, not of each tile
    if isinstance(grid, Level):
        check_grid(grid)
    denoise, levels, step = model.sampler(sampling, grid, solver)
    check_grid(levels)

    # the network knows nothing of pictures that are smaller than those of its training
    tiled = _tiled(model, tile, overlap, sampling.batch_size)
    sides = zip((height, width), tiled.tile if tiled.exact else model.info.shape[1:], strict=True)
    high, wide = (math.ceil(max(side * factor, least) / tiled.multiple) * tiled.multiple for side, least in sides)
    low = mirrored(picture, high // factor, wide // factor)
    given = model.given({**cond, name: low}, seed, index, 1, input_noise=sampling.input_noise)
    tensors = {key: rows.to(model.device) for key, rows in given.items()}

    done = 0

    def tell(tiles: int, of: int) -> None:
        # a second call within a step shows the same again
        advance((done + tiles / of) / (len(levels) - 1))

    tiled = replace(tiled, denoiser=denoise, advance=tell)
    if tile == 0:
        tiled = replace(tiled, tile=(high, wide), overlap=0)
    elif len(tiled.windows(high, wide)) > 1:
        _warn_of_context(model)
    whole, clean = tiled, picture[None].to(model.device)
    if constrained is not False:
        whole = consistent(tiled, model.conditions, clean, require=bool(constrained))
    shape, temperature = (model.info.shape[0], high, wide), sampling.temperature
    x = initial(levels, shape, seed, first=index, temperature=temperature).to(model.device)
    x = model.denoiser.start(x, levels[0], **tensors) if isinstance(model.denoiser, Denoiser) else x
    batch = SamplingBatch(whole, x, levels, step, seeded_noise(seed, index, temperature), tensors, 0)
    training = model.module.training
    model.module.eval()
    try:
        for frame in batch.frames():
            done, x = done + 1, frame.x
    finally:
        model.module.train(training)
    x = x[..., : height * factor, : width * factor].float()
    x = x.clamp(-1.0, 1.0) if whole is tiled else in_range(x, clean, factor, condition.down)
    return x[0].cpu()


def _tiled(model: Model, tile: int | None, overlap: int, batch_size: int) -> Tiled:
    """How a picture is cut; what predicts the tiles is put in its place later."""
    name, condition = low_resolution_of(model)
    network = getattr(model.denoiser, "network", None)
    network = network.network if isinstance(network, Conditioned) else network
    height, width = model.info.shape[1:]
    divisor = getattr(network, "factor", None)
    multiple = math.lcm(condition.factor, divisor or 1)
    # a network that does not say what divides its sizes may take that of its training only
    exact = divisor is None and tile is None
    side = max((TILE if tile is None else tile) * condition.factor // multiple, 1) * multiple
    sides = (height, width) if exact else (side, side)
    shared = min(math.ceil(overlap * condition.factor / multiple), min(sides) // multiple // 2) * multiple
    pixels = batch_size * height * width
    return Tiled(model.denoiser, sides, shared, multiple, exact, {name: condition.factor}, pixels)


def mirrored(
    picture: Float[Tensor, "channels height width"], rows: int, columns: int
) -> Float[Tensor, "channels {rows} {columns}"]:
    """The picture, continued by its mirror images to the right and below up to a size."""
    missing = ((0, 0), (0, rows - picture.shape[1]), (0, columns - picture.shape[2]))
    # that of torch mirrors once only
    return torch.from_numpy(np.pad(picture.numpy(), missing, mode="reflect"))


def _warn_of_context(model: Model) -> None:
    """Say that a network looks beyond the neighbourhood of a pixel, so that tiles differ from the whole."""
    kinds = (nn.GroupNorm, nn.InstanceNorm2d, Attention, Coordinates)
    found = sorted({type(m).__name__ for m in model.module.modules() if isinstance(m, kinds)})
    if found:
        warnings.warn(
            f"This network has {' and '.join(found)}, which depend on all of a tile: a picture in tiles differs a "
            "little from the same picture without. Larger tiles differ less.",
            SfumatoWarning,
            stacklevel=4,
        )
