r"""How much of each pixel a shape covers, as exact areas.

With :math:`A(x, y)` the area of a shape left of :math:`x` and above :math:`y`, a pixel covers
:math:`A(x_1, y_1) - A(x_0, y_1) - A(x_1, y_0) + A(x_0, y_0)`. :func:`depth` is the same shapes as distances.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

THICKNESS = 2.2
"""Of rings, in pixels of 32."""
_HALF_SQUARE, _HALF_BAR = 0.9, 0.36  # of a square, and of a bar of a cross, as parts of the radius
_BASE, _HEIGHT = 0.8, 1.8  # of a triangle, whose apex is at (0, -1): where its base is, whose ends are at -1 and 1


def depth(shape: str, x: Floats, y: Floats, radius: Any) -> Floats:
    """How far points lie inside a shape around 0, negative outside; the shape touches or fits the box of its radius.

    Args:
        shape: one of SHAPES.
        x: to the right.
        y: downwards.
        radius: half the width of the shape (of a square 1/0.9 of that).
    """
    if shape == "circle":
        return radius - np.hypot(x, y)
    if shape == "ring":
        return THICKNESS / 2 - np.abs(np.hypot(x, y) - (radius - THICKNESS / 2))
    if shape == "square":
        return _HALF_SQUARE * radius - np.maximum(np.abs(x), np.abs(y))
    if shape == "triangle":
        side = (y + radius - _HEIGHT * np.abs(x)) / math.hypot(1.0, _HEIGHT)
        return np.minimum(_BASE * radius - y, side)
    across, along = np.abs(x), np.abs(y)
    return np.minimum(radius - np.maximum(across, along), _HALF_BAR * radius - np.minimum(across, along))


def coverage(shape: str, x: Floats, y: Floats, radius: float) -> Floats:
    """The area of a shape around 0 in every pixel of a grid, ``(len(y) - 1, len(x) - 1)``.

    Args:
        shape: one of SHAPES.
        x: the edges of the columns, in rising order.
        y: the edges of the rows, downwards.
        radius: as for :func:`depth`.
    """
    if shape == "circle":
        return _disc(x, y, radius)
    if shape == "ring":
        return _disc(x, y, radius) - _disc(x, y, radius - THICKNESS)
    if shape == "square":
        half = _HALF_SQUARE * radius
        return _within(y, half)[:, None] * _within(x, half)
    if shape == "triangle":
        return _triangle(x, y, radius)
    half = _HALF_BAR * radius
    across, along = (_within(x, radius), _within(x, half)), (_within(y, radius), _within(y, half))
    return along[1][:, None] * across[0] + (along[0] - along[1])[:, None] * across[1]


def _clipped(values: Floats, most: float) -> Floats:
    return np.minimum(np.maximum(values, -most), most)  # several times as fast as np.clip on few values


def _within(edges: Floats, half: float) -> Floats:
    """The length of each interval that lies between ``-half`` and ``half``."""
    clipped = _clipped(edges, half)
    return clipped[1:] - clipped[:-1]


def _cells(area: Floats) -> Floats:
    strips = area[1:] - area[:-1]
    return strips[:, 1:] - strips[:, :-1]


def _disc(x: Floats, y: Floats, radius: float) -> Floats:
    across, down = _clipped(x, radius), _clipped(y, radius)[:, None]

    def segment(at: Floats) -> Floats:  # the area on one side of a line, less half of the disc
        # not radius**2 - at**2, which rounds to less than 0 where both are alike
        return at * np.sqrt((radius - at) * (radius + at)) + radius**2 * np.arcsin(at / radius)

    left, above, half = segment(across), segment(down), math.pi * radius**2 / 2
    inside = across * down + (left + above + half) / 2
    # a corner beyond the circle cuts off no more than its two lines do one by one
    right_of_it = np.where(down > 0.0, left + above, half + above)
    left_of_it = np.where(down > 0.0, half + left, 0.0)
    outside = np.where(across > 0.0, right_of_it, left_of_it)
    return _cells(np.where(across**2 + down**2 <= radius**2, inside, outside))


def _triangle(x: Floats, y: Floats, radius: float) -> Floats:
    # a line at this height is as wide to both sides
    width = (np.minimum(np.maximum(y, -radius), _BASE * radius)[:, None] + radius) / _HEIGHT
    beyond = np.maximum(width - np.abs(x), 0.0) ** 2
    return _cells(_HEIGHT / 2 * np.where(x > 0.0, 2.0 * width**2 - beyond, beyond))
