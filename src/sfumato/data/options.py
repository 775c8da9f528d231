"""What a person may ask of the data, checked once."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from sfumato.errors import InputError, nearest

CHANNELS = {"grey": 1, "rgb": 3, "rgba": 4}
LAYOUTS = ("NHW", "NHWC", "NCHW", "NCL", "NC")
CROPS = ("center", "none")


def height_width(size: int | tuple[int, int], option: str) -> tuple[int, int]:
    """``(H, W)`` from a side or from both.

    Raises:
        InputError: if a side is not a positive whole number; ``option`` names the culprit.
    """
    sides = (size, size) if isinstance(size, int) else size
    if len(sides) != 2 or any(isinstance(side, bool) or side < 1 for side in sides):
        raise InputError(f"{option}={size}; expected a positive number of pixels, or (height, width).")
    return sides


@dataclass(frozen=True)
class Options:
    """The options of :func:`sfumato.data.load`, which documents them.

    Raises:
        InputError: on a value that no source could honour.
    """

    size: tuple[int, int] | None = None
    channels: str | None = None
    labels: bool = False
    value_range: tuple[float | int, float | int] | None = None
    layout: str | None = None
    crop: str = "center"
    workers: int = os.cpu_count() or 1
    cache: str | None = None

    def __post_init__(self) -> None:
        for option, value, known in (
            ("channels", self.channels, tuple(CHANNELS)),
            ("layout", self.layout, LAYOUTS),
            ("crop", self.crop, CROPS),
        ):
            if value is not None and value not in known:
                raise InputError(f"{option}={value!r} is unknown{nearest(value, known)}")
        if self.workers < 1:
            raise InputError(f"workers={self.workers}; expected at least 1 thread to read images with.")
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(
                    f"value_range={self.value_range}; expected (lowest, highest), such as (0, 1) or (0, 255)."
                )

    def refuse_array_options(self, source: str) -> None:
        """Raise an InputError if an option is set that has a meaning for ``.npy`` and ``.npz`` files only."""
        for option, value in (("value_range", self.value_range), ("layout", self.layout)):
            if value is not None:
                raise InputError(f"{option} is for .npy and .npz arrays; {source} states its own: leave it out.")
