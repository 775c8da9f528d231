"""Many image files to one array, kept in a file for the next start and for more of them than memory holds."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sfumato.data.selection import Images, Rows, Signed
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io import files
from sfumato.io.files import atomic_write
from sfumato.io.images import CHANNELS, Array, Decoded, decode_image, resize, to_channels
from sfumato.io.progress import progress_bar
from sfumato.io.ranges import BYTES, Range, range_of, signed
from sfumato.io.reading import quiet, read_header, reason

T = TypeVar("T")

IN_MEMORY = 1 << 30
"""The most bytes of decoded images that are held in memory; more stay in the file and are read as batches need them."""

_FORMAT = 4  # of the file, and of what decoding does to an image
_AHEAD = 8  # images that each thread may be ahead of what is stored
_ABANDONED = 86400.0  # seconds after which a temporary file is the rest of a killed process
_SHOWN = 3  # how many files an error or a warning names before it says "and 7 more"


@dataclass(frozen=True)
class Target:
    """What all images become, and how: options of :func:`sfumato.data.load`, which documents them."""

    size: tuple[int, int] | None = None
    channels: str | None = None
    crop: str = "center"
    workers: int = 4
    cache: str | None = None
    value_range: Range | None = None
    tile: int | None = None
    shrink: int = 1


@dataclass(frozen=True)
class Note:
    """What is known of decoded images, kept at the end of their file."""

    listing: str | None = None  # the source that they are of; None if it may have changed
    depth: str = "8-bit"  # or integer or float: the numbers of the files, not yet mapped to [-1, 1]
    low: float = 0.0  # the extremes of all values
    high: float = 0.0
    failures: dict[int, str] = field(default_factory=dict[int, str])  # what is wrong with the files that cannot be read
    remarks: dict[str, list[int]] = field(default_factory=dict[str, list[int]])  # what of which files is not read


@dataclass(frozen=True)
class Encoded:
    """Image files, or bytes in their formats, opened one at a time, so that a million of them cost nothing."""

    origin: str  # where they come from, for messages
    count: int
    name: Callable[[int], str]  # of one of them, for messages
    open: Callable[[int], Path | BytesIO]
    listing: str  # a fingerprint of the source; another one means that it has to be decoded again
    settled: Callable[[], bool]  # whether the source still is what the listing says and cannot change unnoticed


def decode(encoded: Encoded, target: Target) -> tuple[Images, npt.NDArray[np.int64]]:
    """``(images, kept)``: uint8, or of more bits than 8 or with a range that was stated float32 in [-1, 1], of shape
    ``(N, C, H, W)``; and the indices of the files that they were decoded from.

    Headers are read first, so that images that cannot become one array are refused early. Files that cannot be read are
    skipped and named in one warning. The array is kept in a file as the numbers of the files, from which a later call
    with the same source and target reads it.
    """
    # one file for each source and target: a source that has changed takes the place of what it was
    key = repr((_FORMAT, encoded.origin, target.size, target.crop, target.channels)).encode("utf-8", "surrogateescape")
    folder = files.cache_folder() if target.cache is None else Path(target.cache).expanduser()
    path = folder / f"{hashlib.sha256(key).hexdigest()[:32]}.npy"
    images, note = _stored(path, encoded.listing) or _decoded(encoded, target, path)
    some = f"of the {encoded.count} images in {encoded.origin}"
    if note.failures:
        text = f"{len(note.failures)} {some} cannot be read and are skipped: {_list(encoded, note.failures)}."
        warnings.warn(text, SfumatoWarning, stacklevel=2)
    for remark, found in note.remarks.items():
        if not (indices := [index for index in found if index not in note.failures]):
            continue
        shown = _more([encoded.name(index) for index in indices[:_SHOWN]], len(indices))
        warnings.warn(f"{len(indices)} {some} have {remark}: {shown}.", SfumatoWarning, stacklevel=2)
    values = range_of(note.depth, note.low, note.high, target.value_range, encoded.origin)
    kept = np.delete(np.arange(encoded.count), list(note.failures))
    if note.depth != "8-bit" or values != BYTES:
        images = Signed(images, values) if images.nbytes > IN_MEMORY else signed(images, values)
    return (Rows(images, kept) if note.failures else images), kept


def prepare(images: Images, target: Target, name: str) -> Images:
    """Arrays ``(N, C, *space)``, called ``name`` in messages, at the size and with the channels of ``target``."""
    size, channels = target.size, target.channels
    if size in (None, images.shape[2:]) and (channels is None or images.shape[1] == CHANNELS[channels]):
        return images
    if images.ndim != 4:
        raise InputError(f"{name} has shape {images.shape[1:]} without height and width; leave out size and channels.")

    def change(index: int) -> Array:
        image: Array = images[index]
        if size not in (None, image.shape[1:]):
            image = resize(image, size, target.crop)
        return image if channels is None else to_channels(image, channels)

    first = change(0)
    changed = np.empty((len(images), *first.shape), dtype=first.dtype)
    for index, image in enumerate(_in_threads(change, len(images), target.workers, f"resizing {name}")):
        changed[index] = image
    return changed


def _stored(path: Path, listing: str) -> tuple[Array, Note] | None:
    """The images of a file and what is known of them; None to decode them again."""
    try:
        images = np.lib.format.open_memmap(path, mode="r")
        with path.open("rb") as file:
            file.seek(images.offset + images.nbytes)
            values: Any = json.loads(file.read())
        if values["listing"] != listing:
            return None
        values["failures"] = {int(index): str(text) for index, text in values["failures"].items()}
        return _held(images), Note(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None  # absent or damaged


def _held(images: Array) -> Array:
    return np.array(images) if images.nbytes <= IN_MEMORY else np.asarray(images)


def _decoded(encoded: Encoded, target: Target, path: Path) -> tuple[Array, Note]:
    """Decode all images into a ``.npy`` file that ends with a note in JSON, so that one rename replaces both."""
    failures: dict[int, str] = {}
    target, note = _common(encoded, target, failures)
    assert target.channels is not None and target.size is not None
    shape = (encoded.count, CHANNELS[target.channels], *target.size)
    kind = np.dtype(np.uint8 if note.depth == "8-bit" else np.float32)
    total = math.prod(shape) * kind.itemsize
    extremes = [math.inf, -math.inf]

    def read(source: Path | BytesIO) -> Decoded:
        image = decode_image(source, target.size, target.channels, target.crop)
        if image.depth != note.depth:
            raise ValueError(f"pixels that are {image.depth}, unlike its header")
        return image

    def each() -> Generator[tuple[int, Array]]:
        for index, image in _each(encoded, read, target.workers, f"decoding {encoded.origin}", failures):
            extremes[:] = min(extremes[0], image.low), max(extremes[1], image.high)
            yield index, image.pixels.astype(kind, copy=False)

    def write(temporary: Path) -> None:
        for old in path.parent.glob(f".{path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _ABANDONED:
                    old.unlink()
        if total > shutil.disk_usage(path.parent).free:  # said before an hour of decoding, not after it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with temporary.open("wb") as file, contextlib.closing(each()) as decoded:
            np.lib.format.write_array_header_1_0(file, {"descr": kind.str, "fortran_order": False, "shape": shape})
            start = file.tell()
            for index, image in decoded:
                file.seek(start + index * image.nbytes)
                file.write(np.ascontiguousarray(image).data)
            file.seek(start + total)  # what was skipped reads as zeros
            listing = encoded.listing if encoded.settled() else None
            file.write(json.dumps(asdict(replace(finished(), listing=listing))).encode())

    def finished() -> Note:
        return replace(note, low=extremes[0], high=extremes[1], failures=failures)

    try:
        atomic_write(path, write)
        return _held(np.lib.format.open_memmap(path, mode="r")), finished()
    except OSError as error:
        what = f"The {encoded.count:,} decoded images of {encoded.origin} ({total / 1e9:.2g} GB) cannot be kept"
        advice = "Set cache (--data.cache) to a folder that can be written and has room, or take a smaller size."
        if total > IN_MEMORY:
            raise InputError(f"{what}. {error} {advice}") from error
        text = f"{what}; they will be decoded again at the next start. {error} {advice}"
        warnings.warn(text, SfumatoWarning, stacklevel=3)
    images = np.zeros(shape, dtype=kind)
    for index, image in each():
        images[index] = image
    return images, finished()


def _common(encoded: Encoded, target: Target, failures: dict[int, str]) -> tuple[Target, Note]:
    """The target with the channels and the size that the headers have in common where it leaves them open."""
    channels: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    depths: Counter[str] = Counter()
    example: dict[Any, int] = {}
    remarks: dict[str, list[int]] = {}
    look = partial(read_header, upright=target.size is None)
    for index, header in _each(encoded, look, target.workers, f"looking at {encoded.origin}", failures):
        channels[header.channels] += 1
        depths[header.depth] += 1
        example.setdefault(header.depth, index)
        if target.size is None:
            sizes[header.size] += 1
            example.setdefault(header.size, index)
        if header.remark:
            remarks.setdefault(header.remark, []).append(index)
    if len(depths) > 1:
        shown = [f"{n} {depth}, such as {encoded.name(example[depth])}" for depth, n in depths.most_common()]
        raise InputError(f"The images in {encoded.origin} have mixed depths ({'; '.join(shown)}); save them with one.")
    depth = next(iter(depths))
    if target.channels is None and len(channels) > 1:
        mixture = ", ".join(f"{channels[kind]} {kind}" for kind in CHANNELS if kind in channels)
        advice = "pass --data.channels grey, rgb or rgba to make them one"
        raise InputError(f"The images in {encoded.origin} have mixed channels ({mixture}); {advice}.")
    if target.size is None and len(sizes) > 1:
        shown = [f"{h}x{w} ({n}, such as {encoded.name(example[h, w])})" for (h, w), n in sizes.most_common(_SHOWN)]
        listed = f"{len(sizes)} different sizes, height x width: {_more(shown, len(sizes))}"
        raise InputError(f"The images in {encoded.origin} have {listed}; pass --data.size 64, or HEIGHT WIDTH.")
    kind, size = target.channels or next(iter(channels)), target.size or next(iter(sizes))
    return replace(target, channels=kind, size=size), Note(depth=depth, remarks=remarks)


def _each(
    encoded: Encoded, read: Callable[[Path | BytesIO], T], workers: int, what: str, failures: dict[int, str]
) -> Generator[tuple[int, T]]:
    """``(index, read(file))`` of the files; ``failures`` says what is wrong with those that cannot be read."""

    def one(index: int) -> T | None:
        if index in failures:
            return None
        try:
            return read(encoded.open(index))
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise errors of any kind
            failures[index] = reason(error)
            return None

    for index, value in enumerate(_in_threads(one, encoded.count, workers, what)):
        if value is not None:
            yield index, value
    if len(failures) == encoded.count:
        none = f"None of the {encoded.count} images in {encoded.origin} can be read"
        raise InputError(f"{none}: {_list(encoded, failures)}.")


def _list(encoded: Encoded, failures: dict[int, str]) -> str:
    return _more([f"{encoded.name(i)} ({failures[i]})" for i in sorted(failures)[:_SHOWN]], len(failures))


def _more(shown: list[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _in_threads(task: Callable[[int], T], count: int, workers: int, what: str) -> Generator[T]:
    """``task(0), task(1), ...``, from threads a few tasks ahead: Pillow works outside the interpreter's lock."""
    with quiet(), progress_bar(what, count) as show, ThreadPoolExecutor(workers) as pool:
        ahead = deque(pool.submit(task, index) for index in range(min(count, _AHEAD * workers)))
        for index in range(count):
            yield ahead.popleft().result()
            if index + _AHEAD * workers < count:
                ahead.append(pool.submit(task, index + _AHEAD * workers))
            show(index + 1)
