"""The losses of a run as they are logged, and their figure."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from sfumato.analysis.plots import COLOURS, figure, styled
from sfumato.io.files import json_object

_SPEED = 50  # logged steps that the speed is taken over
_POINTS = 2000  # of a plotted curve


@dataclass(frozen=True)
class Curve:
    """What ``metrics.jsonl`` says: the losses by their steps, and the seconds of the last steps."""

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    heldout_steps: tuple[int, ...] = ()
    heldout: tuple[float, ...] = ()
    seconds: float | None = None

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return self.steps[-1] if self.steps else 0


def read_curve(path: Path) -> Curve:
    """The curve of a ``metrics.jsonl``, read again when it has grown; an empty one of no file."""
    try:
        known = path.stat()
    except OSError:
        return Curve()
    return _read_curve(path, known.st_size, known.st_mtime)


@functools.lru_cache(maxsize=8)
def _read_curve(path: Path, size: int, time: float) -> Curve:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Curve()
    records = [record for line in lines if type((record := json_object(line) or {}).get("step")) is int]
    trained = [record for record in records if _is_number(record.get("loss"))]
    heldout = [record for record in records if _is_number(record.get("heldout_loss"))]
    seconds = [record["seconds"] for record in trained[-_SPEED:] if _is_number(record.get("seconds"))]
    return Curve(
        tuple(record["step"] for record in trained),
        tuple(record["loss"] for record in trained),
        tuple(record["step"] for record in heldout),
        tuple(record["heldout_loss"] for record in heldout),
        statistics.median(seconds) if seconds else None,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@styled()
def plot(curve: Curve) -> Figure:
    """The loss over the steps, smoothed, with that of held-out images."""
    canvas = figure(4.6, 4.0)
    axes = canvas.subplots()
    stride = max(1, len(curve.steps) // _POINTS)
    steps, smooth = curve.steps[::stride], smoothed(curve.losses)[::stride]
    axes.plot(steps, curve.losses[::stride], color=COLOURS[0], alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, color=COLOURS[0], linewidth=1.8, label="training, smoothed")
    if curve.heldout:
        options: Any = {"color": COLOURS[1], "marker": "o", "markersize": 4.5, "linewidth": 1.2}
        axes.plot(curve.heldout_steps, curve.heldout, label="held out", **options)
    values = (*curve.losses, *curve.heldout)
    if min(values) > 0.0 and max(values) > 20.0 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("step")
    canvas.legend(loc="outside lower center", ncols=2)
    return canvas


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential average over about a thirtieth of the values, unbiased at the start."""
    rate, total, weight = 2.0 / (1.0 + max(2.0, len(values) / 30.0)), 0.0, 0.0
    found: list[float] = []
    for value in values:
        total, weight = total + rate * (value - total), weight + rate * (1.0 - weight)
        found.append(total / weight)
    return found
