"""Data sets of the Hugging Face hub, or of a local folder in their format."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.arrays import labels_of
from sfumato.data.cache import cache_of
from sfumato.data.dataset import Dataset
from sfumato.data.decoding import Encoded, Pictures, decode
from sfumato.data.options import Options
from sfumato.errors import InputError, nearest

_SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk leaves, of one split or of several
_LABEL_NAMES = ("label", "labels", "class")


def read_hub(name: str, options: Options) -> Dataset:
    """The images of ``name``, written ``OWNER/NAME``, ``OWNER/NAME/CONFIG``, ``OWNER/NAME:SPLIT`` or a local folder.

    The split is ``train`` unless given, in the syntax of the ``datasets`` library (``test``, ``train[:1000]``). The
    images are the one column of images; the labels the one column of class labels, or integers or strings in a column
    named label, labels or class.

    Raises:
        InputError: if ``datasets`` is not installed or cannot load this, or the columns are not as above.
    """
    table = _table(name, _library())
    if len(table) == 0:
        raise InputError(f"hf:{name} has no rows.")
    column = _image_column(table.features, name)
    labels, classes = _labels(table, name, options.labels)
    library = _library()
    encoded = table.select_columns([column]).cast_column(column, library.Image(decode=False))
    pictures = Pictures(len(table), lambda row: _encoded(encoded, column, row))
    # the library's own caches go by this number: it changes with the rows, the files and all that was done to them
    fingerprint = getattr(table, "_fingerprint", None)
    cache = cache_of(f"hf:{name}", f"{fingerprint} {column}", lambda: True, options) if fingerprint else None
    images, kept = decode(pictures, options, f"hf:{name}", cache)
    return Dataset(images, None if labels is None else labels[kept], classes, f"hf:{name}")


def _library() -> Any:
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        library = None
    if not hasattr(library, "load_dataset"):  # a folder named datasets where Python looks first is not the library
        raise InputError('hf:NAME needs the datasets library; install it by: pip install "sfumato[hf]"')
    return library


def _parse(name: str) -> tuple[str, str | None, str]:
    path, _, split = name.partition(":")
    split = split or "train"
    if path and Path(path).expanduser().exists():
        return str(Path(path).expanduser()), None, split
    parts = path.split("/")
    if not all(parts) or len(parts) > 3:
        raise InputError(f"hf:{name} is not of the form hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or hf:OWNER/NAME:SPLIT.")
    return "/".join(parts[:2]), (parts[2] if len(parts) == 3 else None), split


def _table(name: str, library: Any) -> Any:
    path, config, split = _parse(name)
    saved = any((Path(path) / file).exists() for file in _SAVED)
    try:
        table = library.load_from_disk(path) if saved else library.load_dataset(path, config, split=split)
    except Exception as error:  # no network, no such name, no such split, a script: each has its own exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"hf:{name} cannot be loaded: {reason}") from error
    if isinstance(table, dict):
        if split not in table:
            raise InputError(f"hf:{name} has no split {split!r}{nearest(split, [str(key) for key in table])}")
        return table[split]
    return table


def _image_column(features: dict[str, Any], name: str) -> str:
    columns = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if len(columns) != 1:
        held = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
        count = "several columns of images" if columns else "no column of images"
        raise InputError(f"hf:{name} has {count}; expected one. Its columns are {held}.")
    return columns[0]


def _labels(table: Any, name: str, wanted: bool) -> tuple[Any, tuple[str, ...]]:
    features: dict[str, Any] = table.features
    labelled = [column for column, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    named = [column for column in _LABEL_NAMES if column in features]
    if len(labelled) > 1:
        labelled = [column for column in named if column in labelled][:1] or labelled
    candidates = labelled or named[:1]
    if len(candidates) != 1:
        if wanted:
            trouble = f"several label columns ({', '.join(candidates)})" if candidates else "no label column"
            raise InputError(f"labels=True, but hf:{name} has {trouble}; expected one.")
        return None, ()
    column = candidates[0]
    class_names = np.array(features[column].names) if labelled else None
    try:
        return labels_of(np.asarray(table[column][:]), len(table), class_names, f"hf:{name}[{column!r}]")
    except InputError:
        if wanted:
            raise
        return None, ()


def _encoded(table: Any, column: str, row: int) -> Encoded:
    def open_image() -> Path | io.BytesIO:
        cell = table[row][column]
        if cell is None:
            raise ValueError("no image in this row")
        return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])

    return Encoded(f"row {row}", open_image)
