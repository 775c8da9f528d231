"""What an evaluation found: a row per measure, with its error and with what real pictures reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table

from sfumato.metrics.estimate import Estimate

Better = Literal["lower", "higher", "floor"]


def titled(measure: str, features: str | None) -> str:
    """A measure with its features: ``FD (efficientnet-lite0)``.

    A Frechet distance is a FID with the features of Inception only, and bears its resizing: ``FID (pytorch-fid)``.
    """
    if features is None:
        return measure
    network, _, resizing = features.partition(" (")
    if network != "inception":
        return f"{measure} ({features})"
    return f"{measure.replace('FD', 'FID')} ({resizing.rstrip(')')})"


@dataclass(frozen=True)
class Row:
    """One measure of one set of samples.

    Attributes:
        measure: what was measured, such as ``"FD"`` or ``"precision"``.
        features: the name of the features that it was measured in; None for what needs none.
        value, error: the number and its standard error, with the ``method`` that found it.
        floor, floor_error: the same of real pictures, at the same counts where there are as many.
        better: which way is better; ``"floor"`` is as near to that of real pictures as can be.
        note: what must be known to read the number.
    """

    measure: str
    features: str | None
    value: float
    error: float | None = None
    method: str = ""
    floor: float | None = None
    floor_error: float | None = None
    better: Better = "lower"
    note: str | None = None

    @property
    def title(self) -> str:
        """The measure with its features, such as ``"FD (pixels)"``."""
        return titled(self.measure, self.features)

    @property
    def ratio(self) -> float | None:
        """The value over its floor."""
        return self.value / self.floor if self.floor is not None and self.floor > 0.0 else None


def row(measure: str, features: str | None, value: Estimate, floor: Estimate | None = None, **more: Any) -> Row:
    """A row of two estimates."""
    low, low_error = (None, None) if floor is None else floor[:2]
    return Row(measure, features, value.value, value.error, value.method, low, low_error, **more)


@dataclass(frozen=True)
class Report:
    """The measures of one set of samples.

    ``report["FD"]`` is the first row of that measure, ``report["FD (pixels)"]`` that of these features.

    Attributes:
        name: what was judged.
        counts: the number of pictures of each set, such as ``{"samples": 1000, "training": 1617, "held-out": 180}``.
        rows: the measures; the first one ranks models.
        settings: how the samples were made, and how they were judged.
        notes: what was left out, and why.
    """

    name: str
    counts: Mapping[str, int]
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Row:
        for entry in self.rows:
            if name in (entry.title, entry.measure):
                return entry
        raise KeyError(f"{name}; there are {', '.join(entry.title for entry in self.rows)}")

    def __contains__(self, name: str) -> bool:
        return any(name in (entry.title, entry.measure) for entry in self.rows)

    @property
    def main(self) -> Row:
        """The measure that ranks models."""
        return self.rows[0]

    def numbers(self) -> dict[str, float]:
        """The values by the titles of their measures."""
        return {entry.title: entry.value for entry in self.rows}

    def to_dict(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and dictionaries, ready for JSON, where infinity and NaN are None."""
        rows = [{"title": entry.title, **asdict(entry), "ratio": entry.ratio} for entry in self.rows]
        finite = [{key: _finite(value) for key, value in entry.items()} for entry in rows]
        return {
            "name": self.name,
            "counts": dict(self.counts),
            "rows": finite,
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


_ARROWS = {"lower": "↓", "higher": "↑", "floor": "→"}


def number(value: float | None, error: float | None = None) -> str:
    """A number to the digits that its error leaves it."""
    if value is None:
        return ""
    if not math.isfinite(value) or error is None or not math.isfinite(error) or error <= 0.0:
        return f"{value:.3g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    if digits > 6:
        return f"{value:.2e} ± {error:.0e}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def table(*reports: Report) -> Table:
    """Reports as one table for the terminal: a row per measure, a column per set, and what real pictures reach."""
    first = reports[0]
    counts = ", ".join(f"{count:,} {name}" for name, count in first.counts.items())
    result = Table("measure", "", title=counts if len(reports) == 1 else None, title_justify="left")
    for report in reports:
        result.add_column(report.name if len(reports) > 1 else "samples", justify="right")
    result.add_column("real", justify="right")
    if len(reports) == 1:
        result.add_column("ratio", justify="right")
    titles = dict.fromkeys(entry.title for report in reports for entry in report.rows)
    marks: dict[str, str] = {}
    for title in titles:
        entries = [report[title] if title in report else None for report in reports]
        known = [entry for entry in entries if entry is not None]
        notes = list(dict.fromkeys(entry.note for entry in known if entry.note))
        for note in notes:
            marks.setdefault(note, "*" * (len(marks) + 1))
        values = [number(entry.value, entry.error) if entry is not None else "" for entry in entries]
        floor = number(known[0].floor, known[0].floor_error)
        ratio = known[0].ratio if known[0].better == "lower" or known[0].measure.startswith("nearest") else None
        extra = [] if len(reports) > 1 else ["" if ratio is None else f"{ratio:.2f}"]
        name = " ".join([title, *(marks[note] for note in notes)])
        result.add_row(name, _ARROWS[known[0].better], *values, floor, *extra)
    lines = [f"{mark} {note}" for note, mark in marks.items()]
    if len(reports) > 1:
        lines = [f"{r.name}: {', '.join(f'{c:,} {n}' for n, c in r.counts.items())}" for r in reports] + lines
    lines += list(dict.fromkeys(note for report in reports for note in report.notes))
    result.caption = "\n".join(lines) or None
    result.caption_justify = "left"
    return result
