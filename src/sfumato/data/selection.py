"""Arrays that are read or made when they are indexed: rows of another array, or a field of a PyTorch data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from sfumato.errors import InputError
from sfumato.io.ranges import Range, signed
from sfumato.io.reading import pixels_of


class Lazy:
    """An array that is read when it is indexed: an index gives a copy."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape, self.ndim, self.size = dtype, shape, len(shape), math.prod(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("what is read when it is indexed cannot be an array without a copy")
        values = np.concatenate([self[start : start + 256] for start in range(0, max(len(self), 1), 256)])
        return values if dtype is None else values.astype(dtype, copy=False)


class Rows(Lazy):
    """What ``array[rows]`` would be, for arrays in files or too large to hold twice."""

    def __init__(self, array: Array, rows: npt.NDArray[np.int64]) -> None:
        # rows of rows of an array are rows of that array: selections do not pile up
        self._array: Array = array._array if isinstance(array, Rows) else array
        self._rows: npt.NDArray[np.int64] = array._rows[rows] if isinstance(array, Rows) else rows
        super().__init__(self._array.dtype, (len(self._rows), *self._array.shape[1:]))

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        return self._array[(self._rows[first], *rest)]


class Signed(Lazy):
    """float32 in [-1, 1] of an array in a file whose ``values`` (lowest, highest) become -1 and 1."""

    def __init__(self, array: npt.NDArray[Any], values: Range) -> None:
        self._file, self._values = array, values
        super().__init__(np.dtype(np.float32), array.shape)

    def __getitem__(self, index: Any) -> Any:
        return signed(np.asarray(self._file[index]), self._values)


class Made(Lazy):
    """Rows that a function makes when they are indexed: it takes their numbers and gives a new array of them."""

    def __init__(
        self, make: Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]], dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> None:
        self._make = make
        super().__init__(dtype, shape)

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        rows: Any = np.arange(len(self))[first]
        made = self._make(np.atleast_1d(rows))
        return made[(0 if np.ndim(rows) == 0 else slice(None), *rest)]


class Items:
    """The items of a map-style PyTorch data set, fetched and collated: tensors, ``(image, label)`` or dicts."""

    def __init__(self, items: Any, name: str) -> None:
        self._items, self.name = items, name
        # images and columns of a batch are read one after the other, and an item may be slow to decode
        self._last: tuple[tuple[int, ...], dict[str, npt.NDArray[Any]]] = ((), {})

    def __len__(self) -> int:
        return len(self._items)

    def fetch(self, indices: tuple[int, ...]) -> dict[str, npt.NDArray[Any]]:
        """The fields of these items, each with a row per item; the images are ``"image"``."""
        if indices and indices == self._last[0]:
            return self._last[1]
        try:
            collated = default_collate([self._item(index) for index in indices])
        except (TypeError, RuntimeError) as error:
            raise InputError(f"{self.name}: items are no batch; give tensors of one shape ({error}).") from error
        fields = {name: as_array(value) for name, value in collated.items()}
        check_range(fields["image"], self.name)
        self._last = (indices, fields)
        return fields

    def _item(self, index: int) -> dict[str, Any]:
        item: Any = self._items[index]
        fields: dict[str, Any] = item if isinstance(item, dict) else {"image": item}
        if isinstance(item, tuple | list) and len(item) in (1, 2):
            fields = {"image": item[0], **({"label": item[1]} if len(item) == 2 else {})}
        if "image" not in fields:
            raise InputError(f"{self.name}: items hold {', '.join(map(str, fields))}; name the image 'image'.")
        image = fields["image"]
        if isinstance(image, Image.Image):
            image = torch.from_numpy(pixels_of(image).copy())
        if not isinstance(image, Tensor | np.ndarray):
            expected = "expected a tensor, (image, label) or a dict with 'image'"
            raise InputError(f"{self.name}: an item is a {type(image).__name__}; {expected}.")
        return {**fields, "image": image}


class Field(Made):
    """One field of the items of a data set."""

    def __init__(self, items: Items, name: str, first: npt.NDArray[Any]) -> None:
        def fetch(rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
            if not len(rows):
                return first[:0]
            return items.fetch(tuple(rows.tolist()))[name].copy()  # what is fetched is kept for the other fields

        super().__init__(fetch, first.dtype, (len(items), *first.shape[1:]))


Array = npt.NDArray[Any] | Lazy
"""An array, in memory or in a file, rows of one, or a field of a PyTorch data set."""
LAZY = np.memmap | Lazy
"""Of these every value would have to be read from a file or made."""
Images = Array


def as_array(values: Any) -> npt.NDArray[Any]:
    """A NumPy array of a tensor, array or sequence; floats of other precisions become float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def check_range(images: npt.NDArray[Any], name: str) -> None:
    """Check that float images lie in [-1, 1]; half precision may round them a little beyond."""
    if images.dtype == np.float32 and images.size:
        low, high = float(images.min()), float(images.max())
        if not (low >= -1.001 and high <= 1.001):  # also catches NaN
            raise InputError(f"{name}: float images span [{low:g}, {high:g}]; map them to [-1, 1] first.")
