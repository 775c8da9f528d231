"""Data by name or path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.arrays import read_arrays
from sfumato.data.dataset import Dataset
from sfumato.data.folder import SUFFIXES, read_folder
from sfumato.data.huggingface import read_hub
from sfumato.data.options import Options, height_width
from sfumato.data.pixels import prepare
from sfumato.errors import InputError, nearest

_HUB = "hf:"
_ARRAYS = (".npy", ".npz")


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 1x8x8, float32: the values 0 ... 16 as ``x / 8 - 1``, with labels."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.asarray(bunch.images / 8.0 - 1.0, dtype=np.float32)[:, None]
    return Dataset(images, np.asarray(bunch.target, dtype=np.int64), tuple("0123456789"), "digits")


SOURCES: dict[str, Callable[[], Dataset]] = {"digits": digits}
"""Data with a name of its own; one function each."""


def load(
    source: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: str | None = None,
    labels: bool = False,
    value_range: tuple[float | int, float | int] | None = None,
    layout: str | None = None,
    crop: str = "center",
    workers: int | None = None,
    cache: str | Path | None = None,
) -> Dataset:
    """Load data by name or path.

    Images of folders and data sets of the hub are decoded once, into a file that the next call reads; up to 1 GiB of
    them are held in memory, more are read from that file as they are needed.

    Args:
        source: one of

            - a name: ``digits``;
            - a folder of images (png, jpg, webp, bmp, gif, tif; searched with its sub-folders, in sorted order);
            - a ``.npy`` or ``.npz`` file, read by :func:`sfumato.data.arrays.read_arrays`; one array of several is
              written ``FILE.npz:KEY``;
            - ``hf:OWNER/NAME``, ``hf:OWNER/NAME/CONFIG``, either with ``:SPLIT``, or ``hf:PATH``: a data set of the
              Hugging Face hub or of a local folder (needs ``pip install "sfumato[hf]"``).
        size: scale images to this side, or to ``(height, width)``, in pixels. None keeps them as they are.
        channels: ``"grey"``, ``"rgb"`` or ``"rgba"``. None keeps what all images have in common.
        labels: require a class for each image. A folder has classes only when asked (its first-level sub-folders);
            other sources carry the labels they have even when not asked.
        value_range: the values of black and white in an array, such as ``(0, 1)``; they become -1 and 1.
        layout: the axes of an array, ``"NHW"``, ``"NHWC"``, ``"NCHW"``, ``"NCL"`` (signals) or ``"NC"`` (vectors),
            where :func:`sfumato.data.arrays.channels_first` cannot tell.
        crop: how ``size`` is reached: ``"center"`` scales the image to cover it and cuts what is over,
            ``"none"`` stretches.
        workers: threads that read and scale images; None is one for each processor.
        cache: the folder where decoded images are kept; None is ``sfumato`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        InputError: if the source is unknown, missing, empty or unreadable; its images differ in size or channels and
            no option says what to make of them; or they take more than 1 GiB and the cache can't be written. Single
            unreadable images are skipped with a SfumatoWarning.
    """
    options = Options(
        size=None if size is None else height_width(size, "size"),
        channels=channels,
        labels=labels,
        value_range=value_range,
        layout=layout,
        crop=crop,
        workers=(os.cpu_count() or 1) if workers is None else workers,
        cache=None if cache is None else str(cache),
    )
    dataset = _read(str(source), options)
    if labels and dataset.labels is None:
        raise InputError(f"labels=True, but {source} has no labels.")
    return dataset


def _read(source: str, options: Options) -> Dataset:
    if source in SOURCES:
        options.refuse_array_options(source)
        return prepare(SOURCES[source](), options)
    if source.startswith(_HUB):
        options.refuse_array_options(source)
        return read_hub(source.removeprefix(_HUB), options)
    path, key = Path(source).expanduser(), None
    if not path.exists() and ".npz:" in source:
        name, _, key = source.rpartition(":")
        path = Path(name).expanduser()
    if source == "" or not path.exists():
        raise InputError(_unknown(source, path))
    if path.is_dir():
        options.refuse_array_options(source)
        return read_folder(path, options)
    if path.suffix.lower() in _ARRAYS:
        return read_arrays(path, key, options)
    if path.suffix.lower() in SUFFIXES:
        raise InputError(f"{source} is a single image; pass the folder that holds it.")
    raise InputError(f"{source} is a file of a kind that is not read; expected a folder of images, .npy or .npz.")


def _unknown(source: str, path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    is_word = path.name == source and path.suffix == ""
    near = nearest(path.name, [*(SOURCES if is_word else ()), *siblings])
    if not near.startswith("; did you mean"):  # all files beside it are no help
        near = f"; expected {', '.join(SOURCES)}, a folder of images, a .npy or .npz file, or hf:NAME."
    return f"{source!r} is neither a known name nor a file or folder{near}"
