"""Many encoded pictures (files, or bytes from elsewhere) to one array."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sfumato.data.options import CHANNELS, Options
from sfumato.data.pixels import fit, run, to_array, to_channels
from sfumato.errors import InputError, SfumatoWarning

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
else:
    Picture = object  # Pillow is imported only where there are pictures to decode

_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap height and width
_NAMED = 3  # how many files an error or a warning names before it says "and 7 more"


@dataclass(frozen=True)
class Encoded:
    """One encoded picture: what to call it in messages, and how to open it."""

    name: str
    open: Callable[[], Path | IO[bytes]]


@dataclass(frozen=True)
class _Header:
    channels: str
    size: tuple[int, int]
    orientation: int


def decode(
    pictures: Sequence[Encoded], options: Options, origin: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """``(images, kept)``: uint8 ``(N, C, H, W)`` and the indices of the pictures that they came from.

    Headers are read first, so that a folder that cannot become one array is refused before it is decoded. Pictures
    that cannot be read are left out and named in one SfumatoWarning. EXIF orientation is applied; 16-bit grey is
    rounded to 8 bits; an animation gives its first frame.

    Raises:
        InputError: if nothing can be read, or sizes or channels differ and no option says what to make of them.
    """
    failures: dict[int, str] = {}
    headers: dict[int, _Header] = {}

    def look(index: int) -> None:
        try:
            headers[index] = _header(pictures[index])
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise whatever they stumble over
            failures[index] = _reason(error)

    run(look, len(pictures), options.workers)
    if not headers:
        raise InputError(f"None of the {len(pictures)} images in {origin} can be read: {_list(pictures, failures)}.")
    channels = options.channels or _common_channels(headers, origin)
    height, width = options.size or _common_size(pictures, headers, origin)
    candidates = sorted(headers)
    images = np.empty((len(candidates), CHANNELS[channels], height, width), dtype=np.uint8)

    def fill(row: int) -> None:
        index = candidates[row]
        try:
            image = to_array(_pixels(pictures[index], headers[index], options))
            images[row] = to_channels(image, channels)
        except MemoryError:
            raise
        except Exception as error:
            failures[index] = _reason(error)

    run(fill, len(candidates), options.workers)
    rows = [row for row, index in enumerate(candidates) if index not in failures]
    if not rows:
        raise InputError(f"None of the {len(pictures)} images in {origin} can be read: {_list(pictures, failures)}.")
    if failures:
        warnings.warn(
            f"{len(failures)} of the {len(pictures)} images in {origin} cannot be read and are skipped: "
            f"{_list(pictures, failures)}.",
            SfumatoWarning,
            stacklevel=2,
        )
    kept = np.array([candidates[row] for row in rows], dtype=np.int64)
    return images if len(rows) == len(candidates) else images[rows], kept


def _header(encoded: Encoded) -> _Header:
    from PIL import Image

    with Image.open(encoded.open()) as picture:
        orientation = _orientation(picture)
        height, width = picture.height, picture.width
        size = (width, height) if orientation in _SIDEWAYS else (height, width)
        return _Header(_channels(picture), size, orientation)


def _orientation(picture: Picture) -> int:
    try:
        value: Any = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata beside sound pixels: show them as they are stored
        return 1
    return value if isinstance(value, int) else 1


def _channels(picture: Picture) -> str:
    """What the file itself holds: grey, rgb or rgba."""
    if picture.mode == "F":
        raise ValueError("floating-point pixels of unknown range; save them as .npy and pass value_range")
    if picture.mode.startswith("I"):  # 16 and 32 bits
        return "grey"
    if picture.has_transparency_data:
        return "rgba"
    return "grey" if picture.mode in ("1", "L") else "rgb"


def _pixels(encoded: Encoded, header: _Header, options: Options) -> Picture:
    """The picture upright, in mode L, RGB or RGBA, at the size asked for."""
    from PIL import Image

    with Image.open(encoded.open()) as picture:
        if options.size is not None:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8; twice the final size leaves the filter enough to average.
            scale = 2.0 * max(side / own for side, own in zip(options.size, header.size, strict=True))
            picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
        picture.load()
        plain = _plain(picture, header.channels)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(header.orientation)
    upright = plain if turn is None else plain.transpose(turn)
    return upright if options.size is None else fit(upright, options.size, options.crop)


def _plain(picture: Picture, channels: str) -> Picture:
    from PIL import Image

    if not picture.mode.startswith("I"):
        return picture.convert({"grey": "L", "rgb": "RGB", "rgba": "RGBA"}[channels])
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit grey values outside 0 ... 65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _common_channels(headers: dict[int, _Header], origin: str) -> str:
    counts = Counter(header.channels for header in headers.values())
    if len(counts) > 1:
        mixture = ", ".join(f"{counts[kind]} {kind}" for kind in CHANNELS if kind in counts)
        raise InputError(
            f"The images in {origin} have mixed channels ({mixture}); "
            'pass channels="grey", channels="rgb" or channels="rgba" to make them one.'
        )
    return next(iter(counts))


def _common_size(pictures: Sequence[Encoded], headers: dict[int, _Header], origin: str) -> tuple[int, int]:
    counts = Counter(header.size for header in headers.values())
    if len(counts) > 1:
        example = {headers[index].size: pictures[index].name for index in sorted(headers, reverse=True)}
        shown = [f"{h}x{w} ({n}, such as {example[h, w]})" for (h, w), n in counts.most_common(_NAMED)]
        raise InputError(
            f"The images in {origin} have {len(counts)} different sizes, height x width: {_more(shown, len(counts))}; "
            "pass size=64, or any (height, width), to scale and crop them to one."
        )
    return next(iter(counts))


def _list(pictures: Sequence[Encoded], failures: dict[int, str]) -> str:
    shown = [f"{pictures[index].name} ({failures[index]})" for index in sorted(failures)[:_NAMED]]
    return _more(shown, len(failures))


def _more(shown: list[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
