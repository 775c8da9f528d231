"""Pictures of any size, cut into tiles of one size."""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from sfumato.data.decoding import Encoded, Target, decode
from sfumato.data.selection import Images
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.images import Array, resize
from sfumato.io.reading import quiet, read_header, read_pixels

_SHOWN = 3  # how many pictures a warning names


def corners(side: int, tile: int) -> list[int]:
    """Where tiles begin that cover a side evenly and overlap by a quarter of theirs at least."""
    if side <= tile:
        return [0]
    count = -(-(side - tile) // (tile - tile // 4)) + 1
    return [round(index * (side - tile) / (count - 1)) for index in range(count)]


def cut(picture: Array, tile: int) -> Array:
    """The tiles ``(N, C, tile, tile)`` of a picture ``(C, H, W)`` whose sides are at least theirs."""
    _, height, width = picture.shape
    places = [(y, x) for y in corners(height, tile) for x in corners(width, tile)]
    return np.stack([picture[:, y : y + tile, x : x + tile] for y, x in places])


def shrunk(picture: Array, times: int) -> Array:
    """A picture at a size ``times`` smaller, anti-aliased."""
    sides = (picture.shape[1] // times, picture.shape[2] // times)
    return picture if times == 1 else resize(picture, sides, "center")


def decode_tiles(encoded: Encoded, target: Target) -> tuple[Images, npt.NDArray[np.int64]]:
    """As :func:`~sfumato.data.decoding.decode`, of the tiles of the pictures where the target asks for them."""
    if target.tile is None:
        return decode(encoded, target)
    encoded, owners = tiled(encoded, target.tile, target.shrink)
    images, kept = decode(encoded, replace(target, size=(target.tile, target.tile)))
    return images, owners[kept]


def tiled(encoded: Encoded, tile: int, times: int = 1) -> tuple[Encoded, npt.NDArray[np.int64]]:
    """Files of pictures of any size as those of their tiles, and of which file each tile is.

    Pictures smaller than a tile are skipped with a warning. A file that cannot be read has one tile, which cannot
    be read either.

    Args:
        encoded: the files.
        tile: the side of a tile, in pixels.
        times: pictures are made so many times smaller first.
    """
    places: list[tuple[int, int, int]] = []
    small: list[int] = []
    for index in range(encoded.count):
        try:
            with quiet():
                height, width = (side // times for side in read_header(encoded.open(index)).size)
        except Exception:  # decoders of damaged files raise errors of any kind; decoding says which
            places.append((index, 0, 0))
            continue
        if min(height, width) < tile:
            small.append(index)
            continue
        places += [(index, y, x) for y in corners(height, tile) for x in corners(width, tile)]
    if small:
        shown = ", ".join(encoded.name(index) for index in small[:_SHOWN])
        text = f"Of the {encoded.count} pictures in {encoded.origin} {len(small)} are smaller than a tile of {tile}"
        if not places:
            raise InputError(f"{text[0].upper()}{text[1:]}, such as {shown}; take a smaller --data.tile.")
        warnings.warn(f"{text[0].upper()}{text[1:]} and are skipped, such as {shown}.", SfumatoWarning, stacklevel=3)

    @functools.lru_cache(maxsize=2)
    def picture(index: int) -> Array:
        return shrunk(read_pixels(encoded.open(index)), times)

    def open_tile(number: int) -> io.BytesIO:
        index, y, x = places[number]
        pixels = picture(index)[:, y : y + tile, x : x + tile]
        stored = io.BytesIO()
        # of any depth, and as quick to write as to read
        plain = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
        Image.fromarray(np.ascontiguousarray(plain)).save(stored, format="TIFF")
        stored.seek(0)
        return stored

    def name(number: int) -> str:
        index, y, x = places[number]
        return f"{encoded.name(index)} at {y}, {x}"

    origin = f"{encoded.origin} in tiles of {tile}" + (f", {times} times smaller" if times > 1 else "")
    owners = np.array([index for index, _, _ in places], dtype=np.int64)
    return replace(encoded, origin=origin, count=len(places), name=name, open=open_tile), owners
