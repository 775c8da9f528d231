"""A folder of images."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sfumato.data.cache import cache_of
from sfumato.data.dataset import Dataset
from sfumato.data.decoding import Encoded, Pictures, decode
from sfumato.data.options import Options
from sfumato.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_TICK = 2_000_000_000  # nanoseconds: the coarsest clock of a file system, that of FAT


def read_folder(folder: Path, options: Options) -> Dataset:
    """The images of a folder and of all folders in it, in the order of their paths.

    Hidden files and what is not an image by its suffix are passed over. With ``options.labels`` the first-level
    sub-folders are the classes, in the order of their names.

    Raises:
        InputError: if there are no images, none can be read, they differ in ways that no option settles, or labels are
            asked for and an image lies in no sub-folder.
    """
    names, listing = _listed(folder)
    if not names:
        raise InputError(f"{folder} holds no images; looked in it and its sub-folders for {', '.join(SUFFIXES)}.")
    classes = _classes(folder, names) if options.labels else ()

    def settled() -> bool:
        again = _Fingerprint()
        for name, path in _walk(folder, "", frozenset()):
            again.add(name, path)
        return again.digest == listing and not again.fresh

    def picture(index: int) -> Encoded:
        return Encoded(names[index], (folder / names[index]).absolute)

    cache = cache_of(str(folder.resolve()), listing, settled, options)
    images, kept = decode(Pictures(len(names), picture), options, str(folder), cache)
    labels = None
    if options.labels:
        number = {name: index for index, name in enumerate(classes)}
        labels = np.fromiter((number[names[index].partition("/")[0]] for index in kept), np.int64, len(kept))
    return Dataset(images, labels, classes, folder.resolve().name or str(folder))


class _Fingerprint:
    """What a folder holds, by the paths, sizes and times of its files, in 32 bytes.

    Attributes:
        fresh: whether a file is so new that it could change within the tick of the clock, and keep its time.
    """

    def __init__(self) -> None:
        self._hash, self.fresh = hashlib.sha256(), False

    def add(self, name: str, path: str) -> None:
        try:
            status = os.stat(path)  # noqa: PTH116
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:  # a link to nothing; decoding it says so
            size, changed = -1, 0
        self._hash.update(os.fsencode(name) + f"\0{size}\0{changed}\0".encode())
        self.fresh |= abs(time.time_ns() - changed) < _TICK

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _listed(folder: Path) -> tuple[list[str], str]:
    """The paths relative to the folder, with ``/``, and the fingerprint of their files."""
    names: list[str] = []
    fingerprint = _Fingerprint()
    for name, path in _walk(folder, "", frozenset()):
        names.append(name)
        fingerprint.add(name, path)
    return names, fingerprint.digest


def _walk(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[tuple[str, str]]:
    """``(relative, path)`` of the images, sorted part by part, so that the order is the same on every file system."""
    own = folder.resolve()
    # Links to class folders are common; a link to a folder that holds it would never end.
    circle = above | {own, *own.parents}
    images: list[str] = []
    folders: set[str] = set()
    try:
        with os.scandir(folder) as listed:
            for entry in listed:  # names alone are kept: a million entries are half a gigabyte
                if _hidden(entry.name):
                    continue
                if _is_folder(entry):
                    folders.add(entry.name)
                elif entry.name.lower().endswith(SUFFIXES):
                    images.append(entry.name)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.") from error
    for name in sorted([*images, *folders]) if folders else sorted(images):
        if name not in folders:
            yield prefix + name, os.path.join(folder, name)  # noqa: PTH118 - a Path for each costs more than its file
        elif (folder / name).resolve() not in circle:
            yield from _walk(folder / name, f"{prefix}{name}/", circle)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # the latter holds Apple's forks of every picture in a zip


def _classes(folder: Path, names: list[str]) -> tuple[str, ...]:
    loose = [name for name in names if "/" not in name]
    if len(loose) == len(names):
        raise InputError(
            f"labels=True, but {folder} has no sub-folders with images to name the classes; sort the images into one "
            "sub-folder for each class, or leave out labels."
        )
    if loose:
        raise InputError(
            f"labels=True, but {len(loose)} images in {folder} lie in no sub-folder, such as {loose[0]}; "
            "move each into the sub-folder of its class, or leave out labels."
        )
    return tuple(sorted({name.partition("/")[0] for name in names}))
