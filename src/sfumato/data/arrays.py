"""NumPy files: which axis is what, which range is meant, and labels beside them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.data.dataset import Dataset
from sfumato.data.options import Options
from sfumato.data.pixels import prepare
from sfumato.errors import InputError, nearest

Array = npt.NDArray[Any]

IMAGE_KEYS = ("images", "x", "x_train")
LABEL_KEYS = ("labels", "y", "y_train")
CLASS_KEYS = ("classes", "class_names")

_DAMAGE = (ValueError, OSError, EOFError, MemoryError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error)
_CHANNEL_COUNTS = (1, 3, 4)
_MOST_CLASSES = 65536
_DIM = 64  # 8-bit images whose brightest value is below this are probably not 8-bit images


def read_arrays(path: Path, key: str | None, options: Options) -> Dataset:
    """Images of a ``.npy`` file, or of a ``.npz`` file with labels and class names beside them.

    In a ``.npz`` file the images are ``key`` if given, else ``images``, ``x``, ``x_train`` or the only array that is
    not labels; labels are ``labels``, ``y``, ``y_train`` (for a key ``x_test``: ``y_test`` first), integers or strings;
    class names are ``classes`` or ``class_names``.

    Raises:
        InputError: if the file is damaged or holds Python objects, or the array's axes, type, range or labels are not
            what :func:`channels_first`, :func:`normalized` and :func:`labels_of` accept.
    """
    arrays = _load(path)
    where = path.name
    if isinstance(arrays, np.ndarray):
        if options.labels:
            raise InputError(
                f"labels=True, but {where} is a single array; save images=... and labels=... in an .npz file."
            )
        images = channels_first(arrays, options.layout, where)
        return _dataset(images, None, (), path.stem, where, options)
    with arrays:
        key = _image_key(arrays.files, key, where)
        images = channels_first(_get(arrays, key, where), options.layout, f"{where}[{key!r}]")
        labels, classes = _labels(arrays, key, len(images), where, options.labels)
    return _dataset(images, labels, classes, path.stem, f"{where}[{key!r}]", options)


def channels_first(array: Array, layout: str | None, where: str) -> Array:
    """``(N, C, *space)``, by ``layout`` or, without it, by a rule that never guesses between two readings.

    ========== ====================================================================================
    4 axes     ``NHWC`` if only the last is 1, 3 or 4; ``NCHW`` if only the second is
    3 axes     ``NHW`` (grey) if both sides are above 4 and the width is at most 8 heights;
               ``NCL`` (signals) if the second axis is at most 4 and the third more than 8 times it
    ========== ====================================================================================

    Raises:
        InputError: if the layout does not fit the array, or none is given and the rule does not decide.
    """
    shape = array.shape
    if array.ndim == 0 or 0 in shape:
        raise InputError(f"{where} has shape {shape}: there is nothing in it.")
    if layout is None:
        layout = _infer_layout(shape, where)
    elif len(layout) != array.ndim:
        raise InputError(f"layout={layout!r} names {len(layout)} axes, but {where} has shape {shape}.")
    if layout == "NHW":
        return array[:, None]
    return np.moveaxis(array, -1, 1) if layout == "NHWC" else array


def normalized(array: Array, value_range: tuple[float | int, float | int] | None, where: str) -> Array:
    """uint8 in 0 ... 255, or float32 in [-1, 1].

    With ``value_range = (low, high)`` any real type is mapped linearly, low to -1 and high to 1. Without it integers
    must lie in 0 ... 255 and become uint8; floats must lie in [-1, 1] with some below 0 and are taken as they are.

    Raises:
        InputError: on types that are not real numbers, NaN or infinite values, values outside the range, or floats
            whose range must be stated because more than one is plausible.
    """
    if array.dtype.kind not in "uif":
        raise InputError(
            f"{where} has dtype {array.dtype}; expected uint8 in 0 ... 255, or floats whose range value_range states."
        )
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
            raise InputError(
                f"{where} holds {nan} NaN and {infinite} infinite values, in {_images_with(~finite)} of its "
                f"{len(array)} images; remove or repair them."
            )
    low, high = float(array.min()), float(array.max())
    if value_range is not None and not (array.dtype == np.uint8 and tuple(value_range) == (0, 255)):
        return _mapped(array, (low, high), value_range, where)
    if array.dtype.kind == "f":
        return _signed(array, low, high, where)
    if low < 0 or high > 255:
        raise InputError(
            f"{where} holds {array.dtype} values from {low:g} to {high:g}; expected 0 ... 255, or pass "
            "value_range=(lowest, highest)."
        )
    if high < _DIM and high > 0 and value_range is None:
        raise InputError(
            f"{where} holds {array.dtype} values up to {high:g} only: as 8-bit images nearly black; pass "
            f"value_range=(0, {high:g}) if {high:g} is white, or value_range=(0, 255) if it is not."
        )
    return array.astype(np.uint8, copy=False)


def labels_of(values: Array, count: int, names: Array | None, where: str) -> tuple[Array, tuple[str, ...]]:
    """``(labels, classes)``: int64 ``(count,)`` and a name for each class.

    Integers are class numbers from 0; strings are class names, numbered in sorted order.

    Raises:
        InputError: if there is not one integer or string for each image, or a class number has no name.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]  # a column, as many old files store it
    if values.shape != (count,):
        raise InputError(f"{where} has shape {values.shape}; expected one label for each of the {count} images.")
    if values.dtype.kind in "US":
        words = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
        unique, labels = np.unique(words, return_inverse=True)
        return labels.astype(np.int64), tuple(str(word) for word in unique)
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
    return values.astype(np.int64), classes


def _dataset(
    images: Array, labels: Array | None, classes: tuple[str, ...], name: str, where: str, options: Options
) -> Dataset:
    stored = normalized(images, options.value_range, where)
    return prepare(Dataset(np.ascontiguousarray(stored), labels, classes, name), options)


def _load(path: Path) -> Any:
    """The array of a ``.npy``, or the lazily read mapping of a ``.npz``; never a pickle."""
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic[:1] == b"\x80":
            raise InputError(f"{path} is a pickle, which can run any code and is never loaded; save it by np.save.")
        if magic != b"\x93NUMPY" and magic[:2] != b"PK":
            raise InputError(f"{path} is not a NumPy file, whatever its name; save one by np.save or np.savez.")
        return np.load(path, allow_pickle=False)
    except InputError:
        raise
    except _DAMAGE as error:
        raise _unreadable(error, str(path)) from error


def _get(arrays: Any, key: str, where: str) -> Array:
    try:
        array: Any = arrays[key]
    except _DAMAGE as error:
        raise _unreadable(error, f"{where}[{key!r}]") from error
    if not isinstance(array, np.ndarray):  # NumPy hands out the bytes of a member that is no array
        raise InputError(f"{where}[{key!r}] is not an array; save the file by np.savez.")
    return array


def _unreadable(error: Exception, where: str) -> InputError:
    if "allow_pickle" in str(error):
        return InputError(
            f"{where} holds Python objects as a pickle, which can run any code and is never loaded; make the images "
            "one numeric array, np.stack(images), and save that."
        )
    if isinstance(error, MemoryError):
        return InputError(f"{where} does not fit in memory: {error}.")
    return InputError(f"{where} cannot be read, damaged or cut short: {error}.")


def _image_key(keys: list[str], key: str | None, where: str) -> str:
    if key is not None:
        if key not in keys:
            raise InputError(f"{where} holds no array {key!r}{nearest(key, keys)}")
        return key
    for known in IMAGE_KEYS:
        if known in keys:
            return known
    others = [name for name in keys if name not in (*LABEL_KEYS, *CLASS_KEYS)]
    if len(others) == 1:
        return others[0]
    held = ", ".join(keys) or "nothing"
    raise InputError(
        f"{where} holds {held}: it is not clear which are the images; "
        f"name one as {where}:KEY, or save them as 'images'."
    )


def _labels(arrays: Any, image_key: str, count: int, where: str, wanted: bool) -> tuple[Array | None, tuple[str, ...]]:
    keys: list[str] = arrays.files
    twins = ("y" + image_key[1:],) if image_key.startswith("x_") else LABEL_KEYS
    key = next((name for name in twins if name in keys), None)
    if key is None:
        if wanted:
            raise InputError(
                f"labels=True, but {where} has no array {' or '.join(map(repr, twins))} beside {image_key!r}."
            )
        return None, ()
    try:
        names = next((_get(arrays, name, where) for name in CLASS_KEYS if name in keys), None)
        return labels_of(_get(arrays, key, where), count, names, f"{where}[{key!r}]")
    except InputError:
        if wanted:
            raise
        return None, ()  # 'y' may be a regression target: nobody asked for classes


def _infer_layout(shape: tuple[int, ...], where: str) -> str:
    if len(shape) == 4:
        first, last = shape[1] in _CHANNEL_COUNTS, shape[3] in _CHANNEL_COUNTS
        if first != last:
            return "NCHW" if first else "NHWC"
        trouble = "the second and the last axis could both be" if first else "neither the second nor the last axis is"
        raise InputError(f"{where} has shape {shape}: {trouble} 1, 3 or 4 channels; pass layout='NCHW' or 'NHWC'.")
    if len(shape) == 3:
        _, second, third = shape
        if min(second, third) > 4 and third <= 8 * second:
            return "NHW"
        if second <= 4 and third > 8 * second:
            return "NCL"
        raise InputError(
            f"{where} has shape {shape}: grey images or signals (N, channels, length)? Pass layout='NHW' or 'NCL'."
        )
    if len(shape) == 2:
        raise InputError(
            f"{where} has shape {shape}; reshape flattened images to (N, H, W), or pass layout='NC' for vectors."
        )
    raise InputError(f"{where} has shape {shape}; expected (N, H, W), (N, H, W, C), (N, C, H, W) or signals (N, C, L).")


def _mapped(array: Array, found: tuple[float, float], stated: tuple[float | int, float | int], where: str) -> Array:
    low, high = stated
    # Half and single precision may round a boundary value outwards; that is no mistake of the user's.
    slack = 1e-6 * (high - low) if array.dtype.kind == "f" else 0.0
    if found[0] < low - slack or found[1] > high + slack:
        outside = int(((array < low) | (array > high)).sum())
        raise InputError(
            f"{where} has {outside} values outside value_range=({low:g}, {high:g}): they go from {found[0]:g} to "
            f"{found[1]:g}; state the range that holds them all."
        )
    exact = np.float32 if array.dtype.itemsize <= 2 or array.dtype == np.float32 else np.float64
    mapped = (array.astype(exact) - exact(low)) * exact(2.0 / (high - low)) - exact(1.0)
    return mapped.astype(np.float32, copy=False).clip(-1.0, 1.0)


def _signed(array: Array, low: float, high: float, where: str) -> Array:
    if -1.0 - 1e-6 <= low < 0.0 and high <= 1.0 + 1e-6:
        return array.astype(np.float32, copy=False).clip(-1.0, 1.0)
    span = f"{where} holds floats from {low:g} to {high:g}"
    if low >= 0.0 and high <= 1.0:
        raise InputError(
            f"{span}, which could be the whole range or the bright half of one: pass value_range=(0, 1) if 0 is black, "
            "or value_range=(-1, 1) if 0 is mid-grey."
        )
    if low >= 0.0 and high <= 255.0:
        raise InputError(
            f"{span}: pass the values of black and white, such as value_range=(0, {255 if high > 128 else high:g})."
        )
    raise InputError(f"{span}, outside [-1, 1]: pass value_range=(lowest, highest), the values of black and white.")


def _images_with(bad: npt.NDArray[np.bool_]) -> int:
    return int(bad.reshape(len(bad), -1).any(axis=1).sum())
