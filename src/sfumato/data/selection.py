"""Some images of an array, without a copy of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


class Rows:
    """Some rows of an array in some order, read when they are asked for.

    It is what ``array[rows]`` would be, for arrays in files and arrays too large to hold twice: an index selects among
    the rows and gives a copy of what it selects.
    """

    def __init__(self, array: npt.NDArray[Any] | Rows, rows: npt.NDArray[np.int64]) -> None:
        # rows of rows of an array are rows of that array: selections do not pile up
        self._array: npt.NDArray[Any] = array._array if isinstance(array, Rows) else array
        self._rows: npt.NDArray[np.int64] = array._rows[rows] if isinstance(array, Rows) else rows

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the array."""
        return self._array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, ...)``."""
        return (len(self._rows), *self._array.shape[1:])

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        return self._array[(self._rows[first], *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("rows of an array cannot be an array without a copy")
        values = self._array[self._rows]
        return values if dtype is None else values.astype(dtype, copy=False)


Images = npt.NDArray[Any] | Rows
"""An array, in memory or in a file, or rows of one."""
