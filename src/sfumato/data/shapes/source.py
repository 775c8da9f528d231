"""Scenes of shapes with captions as a data set, drawn when they are needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.data.dataset import Column, Dataset
from sfumato.data.selection import Made
from sfumato.data.shapes.facts import SPLITS
from sfumato.data.shapes.scenes import PICTURE_SIZES, scene
from sfumato.errors import InputError

COUNTS: dict[str, int] = dict(zip(SPLITS, (50_000, 10_000, 10_000), strict=True))
"""How many scenes a split has unless another number is asked for; they cost nothing until they are drawn."""


class _Drawn:
    """Scenes ``first ... first + count - 1``; their pictures and captions are kept from when they are first needed."""

    def __init__(self, size: int, count: int, first: int, options: dict[str, Any]) -> None:
        self._size, self._first, self._options = size, first, options
        # an array of zeros takes no memory before something is written to it
        self._pictures = np.zeros((count, 3, size, size), dtype=np.uint8)
        self._captions: npt.NDArray[Any] = np.full(count, None, dtype=object)
        self._is_drawn = np.zeros(count, dtype=np.bool_)

    def pictures(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        for row in rows[~self._is_drawn[rows]].tolist():
            made = scene(self._first + row, **self._options)
            self._pictures[row] = made.draw(self._size)
            self._captions[row] = made.caption
            self._is_drawn[row] = True  # last, for other threads
        return self._pictures[rows]

    def captions(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        for row in rows.tolist():
            if not self._captions[row]:
                self._captions[row] = scene(self._first + row, **self._options).caption
        return self._captions[rows]


def shapes(
    size: int = 32,
    count: int | None = None,
    seed: int = 0,
    first: int = 0,
    split: str = "seen",
    things: int | None = None,
) -> Dataset:
    """Scenes of 1 to 3 shapes, 3 x size x size, uint8, with the column ``caption`` of texts.

    A scene depends on its index, the seed, the split and the number of things alone. It is drawn when it is first
    needed, and kept in memory from then on.

    Args:
        size: height and width in pixels, 32 or 64; scene ``i`` is the same in both.
        count: how many scenes; None for 50,000 of "seen" and 10,000 of the other splits.
        seed: of the scenes.
        first: the index of the first scene: those before it can be another set.
        split: "seen" for training, or "held-out pair" or "held-out wording", as in :func:`scene`.
        things: how many are in each scene, or None for 1 to 3.
    """
    if size not in PICTURE_SIZES:
        raise InputError(f"Shapes of {size} pixels can't be drawn; expected a size of 32 or 64.")
    if count is None:
        count = COUNTS.get(split, 1)
    if count < 1:
        raise InputError(f"{count} scenes are no data set; expected a count of 1 or more.")
    options: dict[str, Any] = {"seed": seed, "split": split, "things": things}
    scene(first, **options)  # wrong options are refused before anything is drawn
    drawn = _Drawn(size, count, first, options)
    images = Made(drawn.pictures, np.dtype(np.uint8), (count, 3, size, size))
    captions = Made(drawn.captions, np.dtype(object), (count,))
    return Dataset(images, {"caption": Column(captions)}, "shapes")
