"""A folder of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sfumato.data.dataset import Dataset
from sfumato.data.options import Options
from sfumato.data.pictures import Encoded, decode
from sfumato.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_folder(folder: Path, options: Options) -> Dataset:
    """The images of a folder and of all folders in it, in the order of their paths.

    Hidden files and what is not an image by its suffix are passed over. With ``options.labels`` the first-level
    sub-folders are the classes, in the order of their names.

    Raises:
        InputError: if there are no images, none can be read, they differ in ways that no option settles, or labels are
            asked for and an image lies in no sub-folder.
    """
    paths = _image_paths(folder)
    if not paths:
        raise InputError(f"{folder} holds no images; looked in it and its sub-folders for {', '.join(SUFFIXES)}.")
    classes = _classes(folder, paths) if options.labels else ()
    pictures = [Encoded(path.as_posix(), (folder / path).absolute) for path in paths]
    images, kept = decode(pictures, options, str(folder))
    labels = None
    if options.labels:
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number[paths[index].parts[0]] for index in kept], dtype=np.int64)
    return Dataset(images, labels, classes, folder.resolve().name or str(folder))


def _image_paths(folder: Path) -> list[Path]:
    """Paths relative to the folder, sorted part by part, so that the order is the same on every file system."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.") from error

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        own = Path(parent).resolve()
        # Links to class folders are common; a link to a folder that holds it would never end.
        circle = {own, *own.parents}
        folders[:] = [name for name in folders if not _hidden(name) and Path(parent, name).resolve() not in circle]
        inside = Path(parent).relative_to(folder)
        found += [inside / name for name in files if not _hidden(name) and name.lower().endswith(SUFFIXES)]
    return sorted(found, key=lambda path: path.parts)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # the latter holds Apple's forks of every picture in a zip


def _classes(folder: Path, paths: list[Path]) -> tuple[str, ...]:
    loose = [path.name for path in paths if len(path.parts) == 1]
    if len(loose) == len(paths):
        raise InputError(
            f"labels=True, but {folder} has no sub-folders with images to name the classes; sort the images into one "
            "sub-folder for each class, or leave out labels."
        )
    if loose:
        raise InputError(
            f"labels=True, but {len(loose)} images in {folder} lie in no sub-folder, such as {loose[0]}; "
            "move each into the sub-folder of its class, or leave out labels."
        )
    return tuple(sorted({path.parts[0] for path in paths}))
