"""What an evaluation found: a row per measure, with its error and with what real pictures reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rich.table import Table

from sfumato.errors import InputError, nearest
from sfumato.metrics.estimate import Estimate

Better = Literal["lower", "higher", "floor"]


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
        interval: of the value, where 95 % is known of it and not an error to both sides.
        chance: what is reached by chance, without any skill.
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
    interval: tuple[float, float] | None = None
    chance: float | None = None

    @property
    def title(self) -> str:
        """The measure with its features, such as ``"FD (pixels)"``.

        A Frechet distance is a FID with the features of Inception only, and bears its resizing: ``FID (pytorch-fid)``.
        """
        if self.features is None:
            return self.measure
        network, _, resizing = self.features.partition(" (")
        if network != "inception":
            return f"{self.measure} ({self.features})"
        known = resizing.rstrip(")")
        shown = known if self.measure in ("FD", "FD∞", "KID") else f"inception, {known}"
        return f"{self.measure.replace('FD', 'FID')} ({shown})"

    @property
    def name(self) -> str:
        """The measure without its features: ``"FD"``, or ``"FID"`` with those of Inception."""
        return self.title.partition(" (")[0] if self.features is not None else self.measure

    @property
    def ratio(self) -> float | None:
        """The value over its floor."""
        return self.value / self.floor if self.floor is not None and self.floor > 0.0 else None

    def is_better_than(self, value: float | None) -> bool:
        """Whether it is strictly better than another value of the measure, or there is none."""
        if value is None or math.isnan(value):
            return True
        if self.better == "floor":
            target = 1.0 if self.floor is None else self.floor
            return abs(self.value - target) < abs(value - target)
        return self.value < value if self.better == "lower" else self.value > value


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
        details: what there is to know behind rows, by the name of their measure, ready for JSON.
    """

    name: str
    counts: Mapping[str, int]
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __getitem__(self, name: str) -> Row:
        for entry in self.rows:
            if name in (entry.title, entry.measure):
                return entry
        raise InputError(f"The evaluation has no measure {name!r}{nearest(name, [e.title for e in self.rows])}")

    def __contains__(self, name: str) -> bool:
        return any(name in (entry.title, entry.measure) for entry in self.rows)

    @property
    def main(self) -> Row:
        """The measure that ranks models."""
        return self.rows[0]

    def with_settings(self, **more: Any) -> Report:
        """A copy that says more of how the samples were made."""
        return replace(self, settings={**self.settings, **more})

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
            **({"details": dict(self.details)} if self.details else {}),
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
    if digits > 5:
        return f"{value:.2e} ± {error:.0e}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def shown(entry: Row) -> str:
    """The value of a row with its error, or with its interval."""
    if entry.interval is None:
        return number(entry.value, entry.error)
    return f"{entry.value:.3f} [{entry.interval[0]:.3f}, {entry.interval[1]:.3f}]"


def table(*reports: Report) -> Table:
    """Reports as one table for the terminal: a row per measure, a column per set, and what real pictures reach."""
    first, single = reports[0], len(reports) == 1
    # the accuracy of a classifier has neither features nor what real pictures reach
    plain = all(entry.features is None and entry.floor is None for report in reports for entry in report.rows)
    result = Table(title=_counts(first) if single else None, title_justify="left", caption_justify="left")
    result.add_column("measure")
    if not plain:
        result.add_column("features")
    for report in reports:
        result.add_column(("value" if plain else "samples") if single else report.name, justify="right")
    if not plain:
        result.add_column("real pictures", justify="right")
    has_chance = any(entry.chance is not None for report in reports for entry in report.rows)
    if has_chance:
        result.add_column("chance", justify="right")
    if single and not plain:
        result.add_column("ratio", justify="right")
    marks: dict[str, str] = {}
    last = None
    for title in dict.fromkeys(entry.title for report in reports for entry in report.rows):
        entries = [next((entry for entry in report.rows if entry.title == title), None) for report in reports]
        known = next(entry for entry in entries if entry is not None)
        for entry in entries:
            if entry is not None and entry.note is not None:
                marks.setdefault(entry.note, "*" * (len(marks) + 1))
        star = marks.get(known.note or "", "")
        values = [shown(entry) if entry is not None else "" for entry in entries]
        ratio = f"{known.ratio:.2f}" if known.ratio is not None and known.measure in ("FD", "diversity") else ""
        if known.features != last:
            result.add_section()
        # sets of other counts have other floors
        floors = dict.fromkeys(number(entry.floor, entry.floor_error) for entry in entries if entry is not None)
        chances = dict.fromkeys(number(entry.chance) for entry in entries if entry is not None)
        name, features = f"{known.name}{star} {_ARROWS[known.better]}", known.features or ""
        more = [" / ".join(filter(None, chances))] if has_chance else []
        if plain:
            result.add_row(name, *values, *more)
        else:
            cells = [name, "" if known.features == last else features]
            more += [ratio] if single else []
            result.add_row(*cells, *values, " / ".join(filter(None, floors)), *more)
        last = known.features
    lines = [] if single else [f"{report.name}: {_counts(report)}" for report in reports]
    lines += [f"{mark} {note}" for note, mark in marks.items()]
    lines += list(dict.fromkeys(note for report in reports for note in report.notes))
    result.caption = "\n".join(lines) or None
    return result


def _counts(report: Report) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
