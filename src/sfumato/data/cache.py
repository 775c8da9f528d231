"""Decoded images in a file, for the next start and for more of them than memory holds."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from sfumato.data.options import Options
from sfumato.errors import InputError

IN_MEMORY = 1 << 30
"""The most bytes of decoded images that are held in memory; more stay in the file and are read as batches need them."""

_BLOCK = 1 << 25  # bytes that are decoded, written and checked at once
_FORMAT = 1  # of the file, and of what decoding does to a picture
_ABANDONED = 86400.0  # seconds after which a file that nobody writes to is the rest of a killed process

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Stored:
    """Decoded images.

    Attributes:
        images: uint8 ``(N, C, H, W)``, in memory or mapped from the file; zeros where a picture could not be read.
        failures: what was wrong with pictures that could not be read, by their index.
    """

    images: Bytes
    failures: dict[int, str]


@dataclass(frozen=True)
class Cache:
    """The file of one source under one set of options: a ``.npy`` array followed by a note in JSON.

    The note says what the array was decoded from and holds a checksum of each block. The file comes into being by a
    rename when it is complete: whoever opens it meets a whole one, an older whole one, or none.

    Attributes:
        path: where it is.
        listing: a fingerprint of the source; another one means that it has to be decoded again.
        settled: whether the source still is what ``listing`` says and can't change unnoticed any more. A file of a
            source that is not settled serves the process that wrote it, and is gone with it.
    """

    path: Path
    listing: str
    settled: Callable[[], bool]

    def read(self) -> Stored | None:
        """What the file holds; None if there is none, it is damaged, or it is of another state of the source.

        Images that are loaded into memory are compared with their checksums; of a larger file the note and the first
        and the last block are, so that opening it does not mean reading it.
        """
        try:
            mapped = np.lib.format.open_memmap(self.path, mode="r")
            with self.path.open("rb") as file:
                file.seek(mapped.offset + mapped.nbytes)
                note = json.loads(file.read())
            if note["listing"] != self.listing or mapped.dtype != np.uint8 or mapped.ndim != 4:
                return None
            whole = fits_in_memory(mapped.shape)
            images = cast(Bytes, np.array(mapped) if whole else np.asarray(mapped))
            rows, sums = int(note["rows"]), note["checksums"]
            if len(sums) != -(-len(images) // rows):
                return None
            for number in range(len(sums)) if whole else {0, len(sums) - 1}:
                if zlib.crc32(images[number * rows : (number + 1) * rows].data) != sums[number]:
                    return None
            return Stored(images, {int(index): str(reason) for index, reason in note["failures"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, EOFError):
            return None  # absent or damaged: it is decoded anew

    def write(self, shape: tuple[int, ...], blocks: Iterable[Bytes], failures: dict[int, str]) -> Bytes:
        """Write the images block by block; returns them mapped from the file.

        Args:
            shape: ``(N, C, H, W)``.
            blocks: consecutive images, :func:`block_rows` at a time; taken one after the other.
            failures: read after the last block.

        Raises:
            OSError: if the file can't be written; nothing is left of it.
        """
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        needed, free = math.prod(shape), shutil.disk_usage(folder).free
        if needed > free:  # said before an hour of decoding, not after it
            raise OSError(errno.ENOSPC, f"{needed / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} GB are free")
        handle, name = tempfile.mkstemp(".tmp", f".{self.path.name}.", folder)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                self._fill(file, shape, blocks, failures)
            if not self.settled():
                return _map(temporary)
            temporary.replace(self.path)
            return _map(self.path)
        finally:
            # a mapped file that has lost its name lives as long as the mapping does
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _fill(self, file: IO[bytes], shape: tuple[int, ...], blocks: Iterable[Bytes], failures: dict[int, str]) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        sums: list[int] = []
        for block in blocks:
            file.write(block.data)
            sums.append(zlib.crc32(block.data))
        note = {"listing": self.listing, "rows": block_rows(shape), "checksums": sums, "failures": failures}
        file.write(json.dumps(note).encode())
        file.flush()
        os.fsync(file.fileno())

    def _sweep(self) -> None:
        for old in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _ABANDONED:
                    old.unlink()


def fits_in_memory(shape: tuple[int, ...]) -> bool:
    """Whether bytes of this shape are held in memory."""
    return math.prod(shape) <= IN_MEMORY


def block_rows(shape: tuple[int, ...]) -> int:
    """How many images of ``(N, C, H, W)`` are decoded at once."""
    return max(1, _BLOCK // math.prod(shape[1:]))


def cache_of(source: str, listing: str, settled: Callable[[], bool], options: Options) -> Cache:
    """The cache file of a source; one for each set of options that change its pixels, whatever state it is in.

    A source that has changed takes the place of what it was, so that old states do not fill the disk.
    """
    key = repr((_FORMAT, source, options.size, options.crop, options.channels))
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return Cache(folder_of(options) / f"{name}.npy", listing, settled)


def folder_of(options: Options) -> Path:
    """Where decoded images are kept: as asked, else in the user's folder for caches."""
    return default_folder() if options.cache is None else Path(options.cache).expanduser()


def default_folder() -> Path:
    """``sfumato`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    # the specification of base directories says to pass over a relative one
    base = Path(stated) if Path(stated).is_absolute() else Path("~/.cache").expanduser()
    return base / "sfumato"


def unwritable(cache: Cache, error: OSError, what: str) -> InputError:
    """The error for images that neither fit in memory nor can be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = f"the disk is full ({error.strerror})" if full else error.strerror or str(error)
    return InputError(
        f"{what} cannot be kept in {cache.path.parent}: {reason}; set cache (--data.cache) to a folder that can be "
        "written and has room for them, or take a smaller size."
    )


def _map(path: Path) -> Bytes:
    return np.asarray(np.lib.format.open_memmap(path, mode="r"))
