"""Images: sizes and channels, images and masks from files, grids, animations, and files of samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import atomic_write, read_npy
from sfumato.io.lettering import lettered
from sfumato.io.pictures import png_facts
from sfumato.io.ranges import Range, range_of, signed
from sfumato.io.reading import quiet, read_header, read_pixels, reason

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

CHANNELS = {"grey": 1, "rgb": 3, "rgba": 4}
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
"""The formats of animations, by suffix."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)[:, None, None]  # ITU-R BT.601
_TILE = 48  # the least height of an image in a grid: smaller ones are enlarged by a whole factor


class Decoded(NamedTuple):
    """An image file, decoded."""

    pixels: Array  # (C, H, W): uint8, or for more bits than 8 float32, the numbers of the file as they are
    low: float  # the extremes of its values, before it was resized
    high: float
    depth: str = "8-bit"  # or integer or float, as :class:`~sfumato.io.reading.Header` says


def decode_image(
    source: Path | BytesIO, size: tuple[int, int] | None = None, channels: str | None = None, crop: str = "center"
) -> Decoded:
    """An image file as :func:`~sfumato.io.reading.read_pixels` reads it, at a size and with channels.

    :func:`fit` and :func:`to_channels` say what ``size``, ``crop`` and ``channels`` do; None keeps what the file has.
    Errors are those of the decoders: :func:`~sfumato.io.reading.reason` words them.
    """
    pixels = read_pixels(source, size)
    colours = pixels[:3]
    low, high = float(colours.min()), float(colours.max())
    if pixels.dtype == np.uint8:
        pixels = pixels if size is None else resize(pixels, size, crop)
        return Decoded(pixels if channels is None else to_channels(pixels, channels), low, high)
    if not math.isfinite(low + high):
        raise ValueError("values that are not finite")
    if channels == "rgba":
        raise ValueError("more than 8 bits, which have no alpha: pass --data.channels grey or rgb")
    plane = Image.fromarray(pixels[0].astype(np.float32))
    plane = np.asarray(plane if size is None else fit(plane, size, crop))
    depth = "integer" if pixels.dtype == np.int32 else "float"
    return Decoded(np.repeat(plane[None], 3 if channels == "rgb" else 1, axis=0), low, high, depth)


def height_width(size: int | tuple[int, int], option: str) -> tuple[int, int]:
    """``(H, W)`` from a side or from both; ``option`` names them in the error."""
    sides = (size, size) if isinstance(size, int) else size
    if len(sides) != 2 or any(isinstance(side, bool) or side < 1 for side in sides):
        raise InputError(f"{option}={size}; expected a positive number of pixels, or (height, width).")
    return sides


def fit(image: Image.Image, size: tuple[int, int], crop: str) -> Image.Image:
    """The image at exactly ``size = (H, W)``, by antialiased bicubic interpolation.

    ``crop="center"`` scales it until it just covers the size and cuts the longer side equally at both ends (a pure cut,
    exact to the bit, where no scaling is needed); ``crop="none"`` keeps all of it and stretches.
    """
    height, width = size
    scale = max(height / image.height, width / image.width)
    if crop == "none" or image.size == (width, height):
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if scale == 1.0:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    # resizing from a box of the source makes one pass, and centres the cut to a fraction of a pixel
    across, down = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, min(left + across, image.width), min(top + down, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def resize(image: Array, size: tuple[int, int], crop: str) -> Array:
    """:func:`fit` for an array ``(C, H, W)``, uint8 or float32 in [-1, 1], with any number of channels."""
    if image.dtype == np.uint8 and image.shape[0] in CHANNELS.values():
        pixels = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
        return _to_array(fit(Image.fromarray(np.ascontiguousarray(pixels)), size, crop))
    planes = image.astype(np.float32)
    transparent = planes.shape[0] == 4 and image.dtype == np.float32
    if transparent:  # weigh colours by their opacity, lest invisible colours bleed into visible ones
        planes = (planes + 1.0) / 2.0
        planes[:3] *= planes[3]
    fitted = np.stack([np.asarray(fit(Image.fromarray(np.ascontiguousarray(p)), size, crop)) for p in planes])
    if transparent:
        fitted[:3] /= np.maximum(fitted[3], 1e-6)
        fitted = fitted * 2.0 - 1.0
    if image.dtype == np.uint8:
        return np.rint(fitted).clip(0, 255).astype(np.uint8)
    return fitted.clip(-1.0, 1.0).astype(np.float32)


def to_channels(image: Array, channels: str) -> Array:
    """An array ``(C, H, W)``, uint8 or float32 in [-1, 1], as grey, rgb or rgba.

    Colour becomes grey by the luma of ITU-R BT.601; transparent pixels are laid over white, as a browser shows them;
    what has no alpha becomes opaque.
    """
    count = image.shape[0]
    if count == CHANNELS[channels]:
        return image
    if count not in CHANNELS.values():
        raise InputError(f"channels={channels!r} needs images of 1, 3 or 4 channels; these have {count}.")
    white = 255.0 if image.dtype == np.uint8 else 1.0
    if channels == "rgba":
        colour = image if count == 3 else np.repeat(image, 3, axis=0)
        return np.concatenate([colour, np.full_like(image[:1], white)])
    values = image.astype(np.float32)
    if count == 4:
        opacity = values[3] / 255.0 if image.dtype == np.uint8 else (values[3] + 1.0) / 2.0
        values = values[:3] * opacity + white * (1.0 - opacity)
    if channels == "grey":
        values = (values * _LUMA).sum(axis=0, keepdims=True)
    elif count == 1:
        values = np.repeat(values, 3, axis=0)
    return np.rint(values).astype(np.uint8) if image.dtype == np.uint8 else values.astype(image.dtype)


def to_uint8(images: Float[Tensor, "batch channels *space"]) -> Bytes:
    """Images in [-1, 1] as bytes ``(N, *space, C)``; values outside are clipped."""
    scaled = images.detach().float().cpu().clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8)
    return scaled.movedim(1, -1).numpy()


def to_pillow(image: Bytes) -> Image.Image:
    """A Pillow image of ``(H, W, C)`` bytes with 1, 3 or 4 channels."""
    channels = image.shape[-1]
    if channels not in CHANNELS.values():
        raise InputError(f"An image has 1, 3 or 4 channels; these have {channels}: save them as .npz instead.")
    return Image.fromarray(image[..., 0] if channels == 1 else image)


def grid(images: Float[Tensor, "batch channels *space"], columns: int | None = None, least: int = _TILE) -> Image.Image:
    """A grid of images in [-1, 1], by default of about as many columns as rows, enlarged to a height of ``least``.

    Images of other than 1, 3 or 4 channels show them side by side in grey. Signals are shown as curves, vectors as
    points in the plane of their first two numbers, single numbers by their cumulative distribution.
    """
    if len(images) == 0:
        raise InputError("There are no images for a grid.")
    if images.ndim == 2:
        return _points(images)
    if images.ndim == 4 and images.shape[1] not in CHANNELS.values():
        images = torch.cat(list(images.split(1, dim=1)), dim=3)
    tiles = to_uint8(_curves(images) if images.ndim == 3 else images)
    count, height, width, channels = tiles.shape
    factor = max(1, math.ceil(least / height))
    tiles = tiles.repeat(factor, 1).repeat(factor, 2)
    height, width = height * factor, width * factor
    across = columns or math.ceil(math.sqrt(count))
    rows, gap = math.ceil(count / across), max(1, factor // 3)
    paper = 0 if channels == 4 else 255
    sheet = np.full((rows * (height + gap) + gap, across * (width + gap) + gap, channels), paper, dtype=np.uint8)
    for i, tile in enumerate(tiles):
        top, left = gap + i // across * (height + gap), gap + i % across * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return to_pillow(sheet)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one height and mode side by side, as one."""
    return Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def save_grid(
    images: Float[Tensor, "batch channels *space"],
    path: Path,
    facts: Mapping[str, Any] | None = None,
    above: Sequence[str] = (),
) -> None:
    """Write :func:`grid` as PNG, whole or not at all.

    Args:
        images: the images.
        path: the file.
        facts: how they were made, for its metadata.
        above: names, each of which stands above a column.
    """
    save_png(lettered([grid(images, len(above))], above=above) if above else grid(images), path, facts)


def save_png(image: Image.Image, path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write a picture as PNG, whole or not at all, with ``facts`` of how it was made in its metadata."""
    _save(image, path, format="PNG", pnginfo=png_facts(facts))


def save_each(
    images: Float[Tensor, "batch channels *space"],
    folder: Path,
    first: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write each image as ``NNNNNN.png``, numbered from ``first``; ``facts`` and its ``index`` into its metadata."""
    if images.ndim != 4:
        raise InputError("Vectors and signals are no images; save them as .npz, or all in one .png.")
    for i, pixels in enumerate(to_uint8(images)):
        info = None if facts is None else png_facts({**facts, "index": first + i})
        _save(to_pillow(pixels), folder / f"{first + i:06d}.png", format="PNG", pnginfo=info)


def save_array(images: Float[Tensor, "batch channels *space"], path: Path, **more: Tensor) -> None:
    """Write images as the float32 array ``images`` of an .npz file, ``(N, C, *space)`` in [-1, 1], and more by name."""
    tensors = {"images": images, **more}
    arrays: dict[str, Any] = {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, NumPy would append .npz to it
            np.savez_compressed(file, **arrays)

    atomic_write(path, write)


def save_animation(images: Sequence[Image.Image], path: Path) -> None:
    """Write images of one size as an endless .gif or .webp, each shown for 80 ms, the last for 2 s."""
    kind = ANIMATIONS.get(path.suffix.lower())
    if kind is None or not images:
        raise InputError(f"An animation is at least one image, as {' or '.join(ANIMATIONS)}; got {path}.")
    times = [80] * (len(images) - 1) + [2000]
    _save(images[0], path, format=kind, save_all=True, append_images=list(images[1:]), duration=times, loop=0)


def _save(image: Image.Image, path: Path, **options: Any) -> None:
    atomic_write(path, lambda temporary: image.save(temporary, **options))


def read(
    path: Path,
    shape: tuple[int, ...],
    *,
    fit: bool = False,
    value_range: Range | None = None,
    deep_range: Range | None = None,
) -> Float[Tensor, "channels *space"]:
    """An image for a model of images ``(C, *space) = shape``: an image file, or an .npy array of values in [-1, 1].

    An image file of another size or number of channels is refused, or with ``fit`` scaled, cropped and recoloured. The
    ends of ``value_range`` become -1 and 1, without it those of ``deep_range`` in a file of more than 8 bits.
    """
    names = {count: name for name, count in CHANNELS.items()}
    if path.suffix == ".npy":
        values = _read_npy(path)
        if value_range is not None:
            image = Decoded(values.numpy(), float(values.min()), float(values.max()), "float")
            values = torch.from_numpy(_signed(image, value_range, path))
        elif values.numel() and float(values.min()) >= 0.0 and float(values.max()) > 0.0:
            held = f"{path} has no value below 0 and is taken to go from -1 to 1"
            warnings.warn(f"{held}; if 0 is the lowest value, pass --value-range 0 1.", SfumatoWarning, stacklevel=2)
    elif len(shape) == 3 and shape[0] in names:
        values = _read_file(path, *((shape[1:], names[shape[0]]) if fit else (None, None)), value_range, deep_range)
    else:
        raise InputError(f"This model is one of arrays of shape {shape}, not of images; give one as .npy.")
    if tuple(values.shape) != shape:
        hint = "; --fit makes an image fit" if path.suffix != ".npy" else ""
        raise InputError(f"{path} has shape {_sides(values.shape)}, but this model needs {_sides(shape)}{hint}.")
    return values


def read_any_size(path: Path, channels: int | None = None) -> Float[Tensor, "..."]:
    """An image file as ``(C, H, W)`` in [-1, 1], with so many ``channels`` if that is said, or the array of an .npy."""
    if path.suffix == ".npy":
        return _read_npy(path)
    image = _decoded(path, None, next((name for name, count in CHANNELS.items() if count == channels), None))
    if image.depth != "8-bit":
        raise InputError(f"{path} has more than 8 bits, and what is white is not known; give an .npy array in [-1, 1].")
    return _of_bytes(image.pixels)


def read_mask(path: Path, shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """A mask for images ``(C, *space) = shape``, true where they are kept.

    It is an .npy array of 0 and 1, or an image file of their height and width: where some of it is transparent, what is
    opaque is kept, else what is lighter than grey, or the lighter of two values.
    """
    is_array = path.suffix == ".npy"
    values = _read_npy(path).numpy() if is_array else _mask_values(path)
    if tuple(values.shape) not in (shape[1:], (1, *shape[1:]), shape):
        raise InputError(f"The mask {path} has shape {_sides(values.shape)}, and the images have {_sides(shape[1:])}.")
    if is_array and not bool(((values == 0) | (values == 1)).all()):
        raise InputError(f"The mask {path} must be 1 where the image is kept, 0 elsewhere; it has other values.")
    return torch.from_numpy(values > 0.5)


def _mask_values(path: Path) -> Array:
    """The values of a mask file, above 0.5 where it keeps."""
    pixels = _decoded(path).pixels
    if pixels.shape[0] == 4 and int(pixels[3].min()) < 255:
        return pixels[3] / 255.0
    grey = pixels[0] if pixels.shape[0] == 1 else to_channels(pixels, "grey")[0]
    values = np.unique(grey)
    middle, (low, high) = 127.5, (float(values[0]), float(values[-1]))
    if len(values) == 2 and (grey.dtype != np.uint8 or (low > middle) == (high > middle)):
        middle = (low + high) / 2.0  # such as 0 and 1, or 0 and 4095
    elif grey.dtype != np.uint8:
        middle = high / 2.0
    return (grey > middle).astype(np.float32)


def _decoded(path: Path, *options: Any) -> Decoded:
    try:
        with quiet():
            image, remark = decode_image(path, *options), read_header(path).remark
    except Exception as error:  # decoders of damaged files raise errors of any kind
        raise InputError(f"Could not read {path}: {reason(error)}.") from None
    if remark:
        warnings.warn(f"{path} has {remark}.", SfumatoWarning, stacklevel=2)
    return image


def _read_file(
    path: Path,
    size: tuple[int, int] | None = None,
    channels: str | None = None,
    value_range: Range | None = None,
    deep_range: Range | None = None,
) -> Float[Tensor, "channels height width"]:
    image = _decoded(path, size, channels)
    if image.depth == "8-bit" and value_range is None:
        return _of_bytes(image.pixels)
    return torch.from_numpy(_signed(image, value_range or deep_range, path))


def _of_bytes(pixels: Array) -> Float[Tensor, "channels height width"]:
    return torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1.0


def _signed(image: Decoded, stated: Range | None, path: Path) -> Array:
    where = str(path)
    return signed(image.pixels, range_of(image.depth, image.low, image.high, stated, where, flag="--value-range"))


def _read_npy(path: Path) -> Tensor:
    values = read_npy(path)
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path} holds {values.dtype}, not numbers.")
    return torch.from_numpy(values.astype(np.float32))


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _to_array(image: Image.Image) -> Bytes:
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _curves(signals: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch 1 height width"]:
    height, width = 64, 96
    values = (0.5 - 0.5 * signals.detach().float().cpu().clamp(-1.0, 1.0)) * (height - 1)
    across = torch.linspace(0, width - 1, signals.shape[2]).tolist()
    tiles: list[Bytes] = []
    for signal in values.tolist():
        tile = Image.new("L", (width, height), 255)
        for n, channel in enumerate(signal):
            ImageDraw.Draw(tile).line(list(zip(across, channel, strict=True)), fill=min(160, 70 * n))
        tiles.append(_to_array(tile))
    return torch.from_numpy(np.stack(tiles)) / 127.5 - 1.0


def _points(vectors: Float[Tensor, "batch channels"]) -> Image.Image:
    values = vectors.detach().float().cpu().clamp(-1.0, 1.0)
    if values.shape[1] == 1:
        ranks = torch.linspace(-1.0, 1.0, len(values))[:, None]
        values = torch.cat([values.sort(dim=0).values, ranks], dim=1)
    side, margin = 512, 8
    places = torch.stack([0.5 + 0.5 * values[:, 0], 0.5 - 0.5 * values[:, 1]], dim=1) * (side - 1) + margin
    sheet = Image.new("L", (side + 2 * margin, side + 2 * margin), 255)
    pen = ImageDraw.Draw(sheet)
    for x, y in places.tolist():
        pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=0)
    return sheet
