"""NumPy files: which axis is what, which range is meant, and the columns stored with the images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sfumato.data.dataset import Column, Units
from sfumato.data.selection import Images
from sfumato.errors import InputError, nearest
from sfumato.io.images import Array
from sfumato.io.ranges import BYTES, FLAG, Range, range_of, signed


class Read(NamedTuple):
    """What was read of a source; the column ``label`` is int64 class numbers with the names of the classes."""

    images: Images
    columns: Mapping[str, Column]
    units: Units | None = None  # of vectors
    groups: npt.NDArray[np.int64] | None = None  # which picture each tile is of


IMAGE_KEYS = ("images", "image", "x", "x_train")
LABEL_KEYS = ("labels", "label", "y", "y_train")
CLASS_KEYS = ("classes", "class_names")

_MOST_CLASSES = 65536


def read_arrays(
    path: Path, key: str | None, columns: Collection[str] | None, value_range: Range | None, layout: str | None
) -> Read:
    """Images of a ``.npy`` file, or of a ``.npz`` file with its columns.

    In a ``.npz`` file the images are ``key`` if given, else ``images`` (``image``), ``x``, ``x_train`` or the only
    array that is not labels. The column ``label`` is ``labels`` (``label``), ``y``, ``y_train`` (for a key ``x_test``:
    ``y_test``), integers or strings; class names are ``classes`` or ``class_names``; any other column is the array of
    its name.
    """
    arrays, where = _load(path), path.name
    if isinstance(arrays, np.ndarray):
        if columns:
            advice = "save an .npz file of images=... and labels=... instead"
            raise InputError(f"{where} is a single array without columns ({', '.join(columns)}); {advice}.")
        return _values(channels_first(arrays, layout, where), value_range, where, {})
    with arrays:
        key = _image_key(arrays.files, key, where)
        name = f"{where}[{key!r}]"
        images = channels_first(_get(arrays, key, where), layout, name)
        names: list[str] = arrays.files
        label_keys = ("y" + key[1:],) if key.startswith("x_") else LABEL_KEYS

        def get(member: str) -> Array:
            return _get(arrays, member, where)

        def labels() -> Column:
            member = next((member for member in label_keys if member in names), None)
            if member is None:
                expected = " or ".join(map(repr, label_keys))
                raise InputError(f"{where} has no labels: no array {expected} beside {key!r}.")
            classes = next((get(member) for member in CLASS_KEYS if member in names), None)
            return labels_of(get(member), len(images), classes, f"{where}[{member!r}]")

        return _values(images, value_range, name, read_columns(names, get, columns, where, labels))


def _values(array: Array, value_range: Range | None, where: str, columns: Mapping[str, Column]) -> Read:
    """Images in the range of images; vectors of numbers in units of their own are standardized."""
    if array.ndim > 2 or value_range is not None or array.dtype == np.uint8:
        return Read(np.ascontiguousarray(normalized(array, value_range, where)), columns)
    vectors, units = standardized(array, where)
    return Read(vectors, columns, units)


def standardized(vectors: Array, where: str, units: Units | None = None) -> tuple[Array, Units]:
    """float32 vectors whose columns have mean 0 and one standard deviation, the largest at which they lie in [-1, 1].

    A column of one value becomes 0. In ``units`` of other vectors, those that are further out are clipped.
    """
    extremes(vectors, where)
    values = vectors.astype(np.float64)
    if units is not None:
        return ((values - units.shift) / units.scale).astype(np.float32).clip(-1.0, 1.0), units
    shift, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 1e-9 * np.abs(values).max(axis=0, initial=0.0), std, 1.0)
    peak = np.abs((values - shift) / std).max() or 1.0
    # to nine digits, which other machines compute alike
    shift, scale = ([float(f"{number:.9g}") for number in numbers.tolist()] for numbers in (shift, std * peak))
    result = ((values - shift) / scale).astype(np.float32).clip(-1.0, 1.0)
    return result, Units(tuple(shift), tuple(scale))


def channels_first(array: Array, layout: str | None, where: str) -> Array:
    """``(N, C, *space)``, by ``layout`` or, without it, by a rule that never guesses between two readings.

    ========== ====================================================================================
    4 axes     ``NHWC`` if only the last is 1, 3 or 4; ``NCHW`` if only the second is
    3 axes     ``NHW`` (grey) if both sides are above 4 and the width is at most 8 heights;
               ``NCL`` (signals) if the second axis is at most 4 and the third more than 8 times it
    ========== ====================================================================================
    """
    shape = array.shape
    if array.ndim == 0 or 0 in shape:
        raise InputError(f"{where} has shape {shape}: there is nothing in it.")
    if layout is None:
        layout = _infer_layout(shape, where)
    elif len(layout) != array.ndim:
        raise InputError(f"--data.layout {layout} names {len(layout)} axes, but {where} has shape {shape}.")
    if layout == "NHW":
        return array[:, None]
    return np.moveaxis(array, -1, 1) if layout == "NHWC" else array


def normalized(array: Array, value_range: Range | None, where: str) -> Array:
    """uint8 in 0 ... 255, or float32 in [-1, 1].

    With ``value_range = (low, high)`` any real type is mapped linearly, low to -1 and high to 1. Without it integers
    must lie in 0 ... 255 and become uint8; floats must lie in [-1, 1] with some below 0 and are taken as they are.
    """
    low, high = extremes(array, where)
    floats = array.dtype.kind == "f"
    ends = "the values of black and white" if array.ndim == 4 else "the lowest and the highest value"
    values = range_of("float" if floats else "8-bit", low, high, value_range, where, ends=ends)
    if (not floats and value_range is None) or (array.dtype == np.uint8 and values == BYTES):
        return array.astype(np.uint8, copy=False)
    return signed(array, values)


def extremes(array: Array, where: str) -> tuple[float, float]:
    """The lowest and the highest value of an array of numbers, all of which are finite."""
    kind = array.dtype.kind
    if kind not in "uif":
        raise InputError(f"{where} has dtype {array.dtype}; expected uint8, or floats whose range {FLAG} states.")
    if kind == "f" and not (finite := np.isfinite(array)).all():
        nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        images = int((~finite).reshape(len(array), -1).any(axis=1).sum())
        held = f"{nan} NaN and {infinite} infinite values, in {images} of its {len(array)} rows"
        raise InputError(f"{where} holds {held}; remove or repair them.")
    return float(array.min()), float(array.max())


def sorted_classes(names: Iterable[str]) -> list[str]:
    """The names of classes in order: as numbers where all of them are numbers, else as words."""
    words = sorted(names)
    return sorted(words, key=int) if all(word.isdecimal() for word in words) else words


def labels_of(values: Array, count: int, names: Array | None, where: str) -> Column:
    """Class numbers from 0, int64 ``(count,)``, with names; strings are class names, numbered in their order."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]  # a column, as many old files store it
    if values.shape != (count,):
        raise InputError(f"{where} has shape {values.shape}; expected one label for each of the {count} images.")
    if values.dtype.kind in "US":
        words = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
        unique, labels = np.unique(words, return_inverse=True)
        classes = sorted_classes(map(str, unique))
        places = np.array([classes.index(str(word)) for word in unique], dtype=np.int64)
        return Column(places[labels], tuple(classes))
    if values.dtype.kind not in "ui":
        raise InputError(f"{where} has dtype {values.dtype}; expected whole class numbers or class names.")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= _MOST_CLASSES:
        raise InputError(f"{where} spans {low} ... {high}; number the classes 0, 1, 2, ...")
    classes = tuple(str(number) for number in range(high + 1))
    if names is not None:
        if names.ndim != 1 or len(names) <= high:
            raise InputError(f"{where} go up to {high}, but class names have shape {names.shape}.")
        classes = tuple(str(name) for name in names)
    return Column(values.astype(np.int64), classes)


def read_columns(
    keys: Collection[str],
    get: Callable[[str], Array],
    names: Collection[str] | None,
    where: str,
    labels: Callable[[], Column],
) -> dict[str, Column]:
    """The columns ``names``, and the labels even where they are not among them; None is the captions that are there."""
    columns: dict[str, Column] = {}
    try:
        columns["label"] = labels()
    except InputError:
        if names is not None and "label" in names:
            raise  # else 'y' may be a regression target
    for name in names if names is not None else [key for key in ("caption",) if key in keys]:
        if name == "label":
            continue
        if name not in keys:
            raise InputError(f"{where} has no column {name!r}{nearest(name, keys)}")
        columns[name] = Column(get(name))
    return columns


def _load(path: Path) -> Any:
    """The array of a ``.npy``, or the lazily read mapping of a ``.npz``; never a pickle."""
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic == b"\x93NUMPY" or magic[:2] == b"PK":
            return np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file makes NumPy raise errors of any kind
        raise _unreadable(error, str(path)) from error
    if magic[:1] == b"\x80":
        raise InputError(f"{path} is a pickle, which can run any code and is never loaded; save it by np.save.")
    raise InputError(f"{path} is not a NumPy file in spite of its name; save one by np.save or np.savez.")


def _get(arrays: Any, key: str, where: str) -> Array:
    try:
        array: Any = arrays[key]
    except Exception as error:  # a damaged file makes NumPy raise errors of any kind
        raise _unreadable(error, f"{where}[{key!r}]") from error
    if not isinstance(array, np.ndarray):  # NumPy returns the bytes of a member that is no array
        raise InputError(f"{where}[{key!r}] is not an array; save the file by np.savez.")
    return array


def _unreadable(error: Exception, where: str) -> InputError:
    if "allow_pickle" in str(error):
        held = "holds Python objects as a pickle, which can run any code and is never loaded"
        return InputError(f"{where} {held}; make the images one numeric array, np.stack(images), and save that.")
    if isinstance(error, MemoryError):
        return InputError(f"{where} does not fit in memory: {error}.")
    return InputError(f"{where} cannot be read, damaged or cut short: {error}.")


def _image_key(keys: list[str], key: str | None, where: str) -> str:
    if key is not None:
        if key not in keys:
            raise InputError(f"{where} holds no array {key!r}{nearest(key, keys)}")
        return key
    known = [name for name in IMAGE_KEYS if name in keys]
    others = [name for name in keys if name not in (*LABEL_KEYS, *CLASS_KEYS)]
    if known or len(others) == 1:
        return (known or others)[0]
    held = ", ".join(keys) or "nothing"
    raise InputError(f"{where} holds {held}: which are the images? name one as {where}:KEY, or save as 'images'.")


def _infer_layout(shape: tuple[int, ...], where: str) -> str:
    if len(shape) == 4:
        first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
        if first != last:
            return "NCHW" if first else "NHWC"
        trouble = "the second and the last axis could both be" if first else "neither the second nor the last axis is"
        advice = f": {trouble} 1, 3 or 4 channels; pass --data.layout NCHW or NHWC."
    elif len(shape) == 3:
        _, second, third = shape
        if min(second, third) > 4 and third <= 8 * second:
            return "NHW"
        if second <= 4 and third > 8 * second:
            return "NCL"
        advice = ": grey images or signals (N, channels, length)? Pass --data.layout NHW or NCL."
    elif len(shape) == 2:
        advice = "; reshape flattened images to (N, H, W), or pass --data.layout NC for vectors."
    else:
        advice = "; expected (N, H, W), (N, H, W, C), (N, C, H, W) or signals (N, C, L)."
    raise InputError(f"{where} has shape {shape}{advice}")
