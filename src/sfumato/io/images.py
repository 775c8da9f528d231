"""Pictures of samples: grids and single files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.data.dataset import as_tensor
from sfumato.data.decoding import Encoded, decode
from sfumato.data.options import CHANNELS, Options
from sfumato.errors import InputError
from sfumato.io.files import atomic_write

_TILE = 48
"""The least height of an image in a grid, in pixels: smaller ones are enlarged by a whole factor."""


def to_uint8(images: Float[Tensor, "batch channels *space"]) -> npt.NDArray[np.uint8]:
    """Images in [-1, 1] as bytes ``(N, *space, C)``; what lies outside is cut off."""
    scaled = images.detach().float().cpu().clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8)
    return scaled.movedim(1, -1).numpy()


def picture(image: npt.NDArray[np.uint8]) -> Image.Image:
    """A Pillow image of ``(H, W, C)`` bytes with 1, 3 or 4 channels.

    Raises:
        InputError: for another number of channels.
    """
    channels = image.shape[-1]
    if channels not in (1, 3, 4):
        raise InputError(f"A picture has 1, 3 or 4 channels; these data have {channels}: save them as .npz instead.")
    return Image.fromarray(image[..., 0] if channels == 1 else image)


def grid(images: Float[Tensor, "batch channels *space"], columns: int | None = None) -> Image.Image:
    """All images side by side, small ones enlarged; signals are drawn as curves, vectors as points of one plane.

    Args:
        images: in [-1, 1]; with 1, 3 or 4 channels they are pictures, else their channels are. Of vectors the first
            two numbers are drawn, of single numbers their distribution function.
        columns: images per row; by default the grid is about square.

    Raises:
        InputError: if there is no image.
    """
    if len(images) == 0:
        raise InputError("There are no images to draw.")
    if images.ndim == 2:
        return _points(images)
    if images.ndim == 4 and images.shape[1] not in (1, 3, 4):
        # other numbers of channels are drawn in grey, side by side
        images = torch.cat(list(images.split(1, dim=1)), dim=3)
    tiles = to_uint8(_curves(images) if images.ndim == 3 else images)
    count, height, width, channels = tiles.shape
    factor = max(1, math.ceil(_TILE / height))
    tiles = tiles.repeat(factor, 1).repeat(factor, 2)
    height, width = height * factor, width * factor
    across = min(count, columns or math.ceil(math.sqrt(count)))
    rows, gap = math.ceil(count / across), max(1, factor // 3)
    paper = 0 if channels == 4 else 255
    sheet = np.full((rows * (height + gap) + gap, across * (width + gap) + gap, channels), paper, dtype=np.uint8)
    for i, tile in enumerate(tiles):
        top, left = gap + i // across * (height + gap), gap + i % across * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return picture(sheet)


def _curves(signals: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch 1 height width"]:
    height, width = 64, 96
    values = (0.5 - 0.5 * signals.detach().float().cpu().clamp(-1.0, 1.0)) * (height - 1)
    drawn: list[Tensor] = []
    for signal in values:
        tile = Image.new("L", (width, height), 255)
        for n, channel in enumerate(signal):
            across = torch.linspace(0, width - 1, len(channel)).tolist()
            ImageDraw.Draw(tile).line(list(zip(across, channel.tolist(), strict=True)), fill=min(160, 70 * n))
        drawn.append(torch.from_numpy(np.array(tile))[None] / 127.5 - 1.0)
    return torch.stack(drawn)


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


def save_grid(images: Float[Tensor, "batch channels *space"], path: Path, columns: int | None = None) -> None:
    """Write :func:`grid` as PNG, whole or not at all."""
    sheet = grid(images, columns)
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))


def save_each(images: Float[Tensor, "batch channels *space"], folder: Path, first: int = 0) -> None:
    """Write each image as ``NNNNNN.png``, numbered from ``first``.

    Raises:
        InputError: for vectors and signals, which are no pictures.
    """
    if images.ndim != 4:
        raise InputError("Vectors and signals are no pictures; save them as .npz, or all in one .png.")
    for i, image in enumerate(to_uint8(images)):
        drawn = picture(image)
        atomic_write(folder / f"{first + i:06d}.png", lambda temporary, p=drawn: p.save(temporary, format="PNG"))


def save_array(images: Float[Tensor, "batch channels *space"], path: Path, **more: Tensor) -> None:
    """Write images as the float32 array ``images`` of an .npz file, ``(N, C, *space)`` in [-1, 1], and more by name."""
    arrays = {name: value.detach().float().cpu().numpy() for name, value in {"images": images, **more}.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]

    atomic_write(path, write)


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height and mode side by side, as one."""
    sheet = Image.new(pictures[0].mode, (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


FILMS = {".gif": "GIF", ".webp": "WEBP"}
"""The formats of films."""


def save_film(pictures: Sequence[Image.Image], path: Path, milliseconds: int = 80, hold: int = 2000) -> None:
    """Write pictures of one size as an animation that runs forever, .gif or .webp, whole or not at all.

    Args:
        pictures: its pictures in order.
        path: where.
        milliseconds: how long each is shown.
        hold: how long the last one is.

    Raises:
        InputError: if there is no picture, or the name ends in something else.
    """
    kind = FILMS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"A film is written as {' or '.join(FILMS)}; got {path}.")
    if not pictures:
        raise InputError("A film needs at least one picture.")
    times = [milliseconds] * (len(pictures) - 1) + [hold]
    first, *rest = pictures
    atomic_write(
        path,
        lambda temporary: first.save(temporary, format=kind, save_all=True, append_images=rest, duration=times, loop=0),
    )


def read(path: Path, shape: tuple[int, ...], *, fit: bool = False) -> Float[Tensor, "channels *space"]:
    """An image for a model: a picture, or an .npy array of its shape in [-1, 1].

    Args:
        path: the file.
        shape: ``(C, *space)`` of the images of the model.
        fit: scale, crop and recolour a picture to that; else another size or number of channels is refused.

    Raises:
        InputError: if the file can't be read or does not fit.
    """
    kinds = {count: name for name, count in CHANNELS.items()}
    if path.suffix == ".npy":
        values = _array(path)
    elif len(shape) == 3 and shape[0] in kinds:
        size = (shape[1], shape[2]) if fit else None
        values = _decoded(path, Options(size=size, channels=kinds[shape[0]] if fit else None, workers=1))
    else:
        raise InputError(f"This model draws no pictures but arrays of shape {shape}; give one as .npy.")
    if tuple(values.shape) != shape:
        hint = "; --fit makes a picture fit" if path.suffix != ".npy" else ""
        raise InputError(f"{path} has shape {_sides(values.shape)}, and this model draws {_sides(shape)}{hint}.")
    return values


def read_mask(path: Path, shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """A mask for images of ``shape``, true where it is kept: a picture of their height and width, lighter than grey
    there, or an .npy array of 0 and 1.

    Raises:
        InputError: if the file can't be read or does not fit.
    """
    space = shape[1:]
    is_array = path.suffix == ".npy"
    values = _array(path) if is_array else _decoded(path, Options(channels="grey", workers=1))[0] / 2 + 0.5
    if tuple(values.shape) not in (space, (1, *space), shape):
        raise InputError(f"The mask {path} has shape {_sides(values.shape)}, and the images have {_sides(space)}.")
    if is_array and not bool(((values == 0) | (values == 1)).all()):
        raise InputError(
            f"The mask {path} must be 1 or true where the image is kept, 0 or false elsewhere; it has other values."
        )
    return values > 0.5


def _decoded(path: Path, options: Options) -> Float[Tensor, "channels height width"]:
    images, _ = decode([Encoded(path.name, path.absolute)], options, str(path.parent))
    return as_tensor(images[:1])[0]


def _array(path: Path) -> Tensor:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"Could not read {path}: {error}.") from None
    return torch.from_numpy(values.astype(np.float32))


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
