"""Pictures of samples: grids and single files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.errors import InputError
from sfumato.training.checkpoint import atomic_write

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


def save_array(images: Float[Tensor, "batch channels *space"], path: Path) -> None:
    """Write images as the float32 array ``images`` of an .npz file, ``(N, C, *space)`` in [-1, 1]."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, images=images.detach().float().cpu().numpy())

    atomic_write(path, write)
