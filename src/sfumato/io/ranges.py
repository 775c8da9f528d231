"""Which numbers become -1 and 1: stated, or those of the type of a file or array where the data leave no doubt."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.errors import InputError, SfumatoWarning

Range = tuple[float | int, float | int]
Array = npt.NDArray[Any]

FLAG = "--data.value-range"
BYTES: Range = (0.0, 255.0)
DEEP: Range = (0.0, 65535.0)
"""The range of image files of more than 8 bits, unless another one is stated."""

_EXACT = 1e-6  # half and single precision may round a boundary value outwards by so much of the range, unsaid
ROUNDING = 0.02
"""By this part of a range, values may lie outside of it, as the ringing of a filter does; more is an error."""
_FILLED = 0.1  # data that fill less of a stated range were hardly meant
_DIM = 0.25  # integers whose highest value is below this part of their type's range hardly have that range


def range_of(
    kind: str,
    low: float,
    high: float,
    stated: Range | None,
    where: str,
    *,
    flag: str = FLAG,
    ends: str = "the values of black and white",
) -> Range:
    """The range of data with values from ``low`` to ``high``: what becomes -1 and 1.

    Args:
        kind: what the values are: ``8-bit``, ``integer`` of an image file of more bits, or ``float``.
        low, high: their extremes.
        stated: the range that was stated, if any.
        where: whose they are, for messages.
        flag: the option that states a range.
        ends: what the ends of a range are called.
    """
    held = f"{where} holds values from {low:g} to {high:g}"
    if stated is not None:
        return _checked(low, high, stated, held, flag, ends)
    if kind == "float":
        rounding = ROUNDING * min(1.0, max(high, 0.0))
        if low >= -rounding and 0.0 < high <= 1.0 + ROUNDING:
            raise InputError(
                f"{where} holds floats from {low:g} to {high:g}, the whole range or its upper half: pass {flag} 0 1 "
                f"if 0 is the lowest value, {flag} -1 1 if it is the middle."
            )
        if low >= -rounding and high <= BYTES[1]:
            top = 255.0 if high > 128 else high or 1.0
            raise InputError(f"{where} holds floats from {low:g} to {high:g}: pass {ends}, such as {flag} 0 {top:g}.")
        if low < -1.0 - 2.0 * ROUNDING or high > 1.0 + 2.0 * ROUNDING:
            raise InputError(
                f"{where} holds floats from {low:g} to {high:g}, outside [-1, 1]: pass {flag} LOWEST HIGHEST, {ends}; "
                f"the data have {low:g} {high:g}."
            )
        return _checked(low, high, (-1.0, 1.0), held, flag, ends)
    most = BYTES if kind == "8-bit" else DEEP
    if low < most[0] or high > most[1]:
        raise InputError(f"{held}; expected 0 ... {most[1]:g}, or pass {flag} LOWEST HIGHEST, {ends}.")
    if low < high < _DIM * most[1]:
        # a sensor of 12 bits seldom sees its whitest white
        white = 2.0 ** math.ceil(math.log2(high + 1.0)) - 1.0 if kind == "integer" else high
        raise InputError(
            f"{held}, {100.0 * (high - low) / most[1]:.2g} % of 0 ... {most[1]:g}: images nearly black; pass {flag} 0 "
            f"{white:g} if {white:g} is white, {flag} 0 {most[1]:g} if it is not."
        )
    return most


def signed(array: Array, values: Range) -> Array:
    """float32 in [-1, 1]: the lowest of the range becomes -1, the highest 1; values outside are clipped."""
    low, high = values
    if values == (-1.0, 1.0):
        return array.astype(np.float32, copy=False).clip(-1.0, 1.0)
    exact = np.float32 if array.dtype.itemsize <= 2 or array.dtype == np.float32 else np.float64
    mapped = (array.astype(exact) - exact(low)) * exact(2.0 / (high - low)) - exact(1.0)
    return mapped.astype(np.float32, copy=False).clip(-1.0, 1.0)


def _checked(low: float, high: float, values: Range, held: str, flag: str, ends: str) -> Range:
    lowest, highest = values
    width = highest - lowest
    beyond = max(lowest - low, high - highest) / width
    taken = f"{lowest:g} ... {highest:g}"
    if not beyond <= ROUNDING:
        raise InputError(f"{held}, outside the range {taken}; pass {flag} LOWEST HIGHEST, {ends}.")
    if beyond > _EXACT:
        _warn(f"{held}, beyond the range {taken} by {100.0 * beyond:.2g} % of it; they are clipped.")
    if 0.0 < high - low < _FILLED * width:
        some = f"which fill {100.0 * (high - low) / width:.2g} % of the range {taken} that is taken"
        _warn(f"{held}, {some}: nearly one grey; if that is not meant, pass {flag} {low:g} {high:g}, or {ends}.")
    return values


def _warn(sentence: str) -> None:
    warnings.warn(sentence, SfumatoWarning, stacklevel=4)
