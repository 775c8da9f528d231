"""Many encoded pictures (files, or bytes from elsewhere) to one array."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sfumato.data.cache import Bytes, Cache, Stored, block_rows, fits_in_memory, unwritable
from sfumato.data.options import CHANNELS, Options
from sfumato.data.pixels import fit, run, to_array, to_channels
from sfumato.data.progress import Progress
from sfumato.data.selection import Images, Rows
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


class Pictures(Sequence[Encoded]):
    """Encoded pictures that are made when asked for, so that a million of them cost nothing."""

    def __init__(self, count: int, picture: Callable[[int], Encoded]) -> None:
        self._count, self._picture = count, picture

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._picture(index)


@dataclass(frozen=True)
class _Header:
    channels: str
    size: tuple[int, int]
    orientation: int


def decode(
    pictures: Sequence[Encoded], options: Options, origin: str, cache: Cache | None = None
) -> tuple[Images, npt.NDArray[np.int64]]:
    """``(images, kept)``: uint8 ``(N, C, H, W)`` and the indices of the pictures that they came from.

    Where no option states channels or size, headers are read first, so that a folder that cannot become one array is
    refused before it is decoded. Pictures that cannot be read are left out and named in one SfumatoWarning. EXIF
    orientation is applied; 16-bit grey is rounded to 8 bits; an animation gives its first frame.

    With a cache that holds these pictures nothing is decoded. Else it is written; where the images take more than
    :data:`sfumato.data.cache.IN_MEMORY` bytes they are decoded into it, a block at a time, and mapped from it.

    Raises:
        InputError: if nothing can be read, sizes or channels differ and no option says what to make of them, or the
            images do not fit in memory and the cache can't be written.
    """
    stored = None if cache is None else cache.read()
    if stored is None or len(stored.images) != len(pictures):
        stored = _decode(pictures, options, origin, cache)
    images, failures = stored.images, stored.failures
    if failures:
        warnings.warn(
            f"{len(failures)} of the {len(pictures)} images in {origin} cannot be read and are skipped: "
            f"{_list(pictures, failures)}.",
            SfumatoWarning,
            stacklevel=2,
        )
    kept = np.setdiff1d(np.arange(len(pictures)), np.fromiter(failures, np.int64, len(failures)))
    return (Rows(images, kept) if failures else images), kept


def _decode(pictures: Sequence[Encoded], options: Options, origin: str, cache: Cache | None) -> Stored:
    failures: dict[int, str] = {}
    channels, (height, width) = _survey(pictures, options, origin, failures)
    count = len(pictures)
    shape = (count, CHANNELS[channels], height, width)
    in_file = cache is not None and not fits_in_memory(shape)
    rows = block_rows(shape)
    images = np.zeros((min(rows, count) if in_file else count, *shape[1:]), dtype=np.uint8)

    def blocks() -> Iterator[Bytes]:
        progress = Progress(f"decoding {origin}", count)
        for start in range(0, count, rows):
            block = images[: count - start] if in_file else images[start : start + rows]
            _fill(block, pictures, start, options, channels, failures, progress)
            yield block
        progress.close()
        if len(failures) == count:
            raise InputError(_none(pictures, failures, origin))

    if cache is None:
        for _ in blocks():
            pass
        return Stored(images, failures)
    what = f"The {count:,} decoded images of {origin} ({math.prod(shape) / 1e9:.2g} GB)"
    if in_file:
        try:
            return Stored(cache.write(shape, blocks(), failures), failures)
        except OSError as error:
            raise unwritable(cache, error, what) from error
    for _ in blocks():
        pass
    if not cache.settled():
        return Stored(images, failures)
    try:
        cache.write(shape, (images[start : start + rows] for start in range(0, count, rows)), failures)
    except OSError as error:
        warnings.warn(
            f"{unwritable(cache, error, what)} They are in memory now, and will be decoded again at the next start.",
            SfumatoWarning,
            stacklevel=2,
        )
    return Stored(images, failures)


def _fill(
    block: Bytes,
    pictures: Sequence[Encoded],
    start: int,
    options: Options,
    channels: str,
    failures: dict[int, str],
    progress: Progress,
) -> None:
    """Decode the pictures from ``start`` on into a block, with zeros for those that can't be read."""
    lock = Lock()

    def fill(row: int) -> None:
        index = start + row
        if index not in failures:
            try:
                block[row] = to_channels(to_array(_pixels(pictures[index], options)), channels)
            except MemoryError:
                raise
            except Exception as error:  # decoders of damaged files raise whatever they stumble over
                failures[index] = _reason(error)
        if index in failures:
            block[row] = 0
        with lock:
            progress.one()

    run(fill, len(block), options.workers)


def _survey(
    pictures: Sequence[Encoded], options: Options, origin: str, failures: dict[int, str]
) -> tuple[str, tuple[int, int]]:
    """The channels and the size of all images: as the options say, else what the headers have in common."""
    if options.channels is not None and options.size is not None:
        return options.channels, options.size
    channels: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    example: dict[tuple[int, int], int] = {}
    lock, progress = Lock(), Progress(f"looking at {origin}", len(pictures))

    def look(index: int) -> None:
        try:
            header = _header(pictures[index])
        except MemoryError:
            raise
        except Exception as error:
            failures[index] = _reason(error)
            return
        with lock:
            progress.one()
            channels[header.channels] += 1
            if options.size is None:
                sizes[header.size] += 1
                example[header.size] = min(index, example.get(header.size, index))

    run(look, len(pictures), options.workers)
    progress.close()
    if not channels:
        raise InputError(_none(pictures, failures, origin))
    return (
        options.channels or _common_channels(channels, origin),
        options.size or _common_size(sizes, {size: pictures[i].name for size, i in example.items()}, origin),
    )


def _header(encoded: Encoded) -> _Header:
    from PIL import Image

    with Image.open(encoded.open()) as picture:
        return _header_of(picture)


def _header_of(picture: Picture) -> _Header:
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


def _pixels(encoded: Encoded, options: Options) -> Picture:
    """The picture upright, in mode L, RGB or RGBA, at the size asked for."""
    from PIL import Image

    with Image.open(encoded.open()) as picture:
        header = _header_of(picture)
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


def _common_channels(counts: Counter[str], origin: str) -> str:
    if len(counts) > 1:
        mixture = ", ".join(f"{counts[kind]} {kind}" for kind in CHANNELS if kind in counts)
        raise InputError(
            f"The images in {origin} have mixed channels ({mixture}); "
            'pass channels="grey", channels="rgb" or channels="rgba" to make them one.'
        )
    return next(iter(counts))


def _common_size(counts: Counter[tuple[int, int]], example: dict[tuple[int, int], str], origin: str) -> tuple[int, int]:
    if len(counts) > 1:
        shown = [f"{h}x{w} ({n}, such as {example[h, w]})" for (h, w), n in counts.most_common(_NAMED)]
        raise InputError(
            f"The images in {origin} have {len(counts)} different sizes, height x width: {_more(shown, len(counts))}; "
            "pass size=64, or any (height, width), to scale and crop them to one."
        )
    return next(iter(counts))


def _none(pictures: Sequence[Encoded], failures: dict[int, str], origin: str) -> str:
    return f"None of the {len(pictures)} images in {origin} can be read: {_list(pictures, failures)}."


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
