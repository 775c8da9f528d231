"""The figure of a sweep: fidelity against diversity, and the distance to real pictures at each value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfumato.analysis.plots import COLOURS, FAINT, figure, styled
from sfumato.errors import InputError
from sfumato.models.sweep import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIDELITY, DIVERSITY = "precision k=3", "recall k=3"


@styled()
def plot_sweep(curves: Sequence[Curve], key: str) -> Figure:
    """Precision against recall with the values beside the points; Frechet distance and agreement against the values.

    What was not measured is left out; what real pictures reach is grey.

    Args:
        curves: what was measured, each in a colour of its own.
        key: the setting that was swept.
    """
    first = curves[0].reports[0]
    known = ((_tradeoff, (FIDELITY, DIVERSITY)), (_distance, ("FD",)), (_agreement, ("agreement",)))
    views = [view for view, names in known if _has(first, names)]
    if not views:
        raise InputError("The figure of a sweep shows precision, recall, FD or agreement; measure one of these.")
    canvas = figure(5.2 * len(views), 4.2)
    for place, view in enumerate(views):
        axes = canvas.add_subplot(1, len(views), place + 1)
        for curve, colour in zip(curves, COLOURS, strict=False):
            view(axes, curve, colour, key)
        if place == 0 and len(curves) > 1:
            axes.legend()
    return canvas


def _has(report: object, names: Sequence[str]) -> bool:
    return all(name in report for name in names)  # pyright: ignore[reportOperatorIssue, reportUnknownVariableType]


def _tradeoff(axes: Axes, curve: Curve, colour: str, key: str) -> None:
    x, y = ([report[name].value for report in curve.reports] for name in (DIVERSITY, FIDELITY))
    axes.plot(x, y, "o-", color=colour, label=curve.name)
    # below the points of the second curve, which may lie on those of the first
    beside = (5, 4) if colour == COLOURS[0] else (5, -12)
    for value, across, up in zip(curve.values, x, y, strict=True):
        axes.annotate(value, (across, up), xytext=beside, textcoords="offset points", color=colour, fontsize=9)
    floor = curve.reports[0]
    across, up = floor[DIVERSITY].floor, floor[FIDELITY].floor
    if across is not None and up is not None:
        axes.plot([across], [up], "*", color=FAINT, markersize=11)
        axes.annotate("real", (across, up), xytext=(6, -11), textcoords="offset points", color=FAINT, fontsize=9)
    space = floor[FIDELITY].features
    axes.set(
        xlabel="recall (diversity)",
        ylabel="precision (fidelity)",
        title=f"Fidelity against diversity ({space} features)",
    )
    # room for the values beside the outermost points
    axes.margins(0.1)


def _distance(axes: Axes, curve: Curve, colour: str, key: str) -> None:
    rows, places = [report["FD"] for report in curve.reports], _places(axes, curve)
    errors = [row.error or 0.0 for row in rows]
    axes.errorbar(places, [row.value for row in rows], errors, fmt="o-", color=colour, capsize=2, label=curve.name)
    if rows[0].floor is not None:
        axes.axhline(rows[0].floor, color=FAINT, linestyle="--", linewidth=1.0)
    axes.set(xlabel=key, ylabel=f"{rows[0].title} ↓", title="Distance to real pictures (dashed: of real ones)")


def _agreement(axes: Axes, curve: Curve, colour: str, key: str) -> None:
    """Whole captions, a line for each kind of these, with intervals of 95 %."""
    places = _places(axes, curve)
    titles = [row.title for row in curve.reports[0].rows if row.measure == "agreement"]
    for title, line, marker in zip(titles, ("-", "--", ":"), "os^", strict=False):
        rows = [report[title] for report in curve.reports]
        around = [row.interval or (row.value, row.value) for row in rows]
        ends = [[row.value - low for row, (low, _) in zip(rows, around, strict=True)]]
        ends += [[high - row.value for row, (_, high) in zip(rows, around, strict=True)]]
        kind = f"{curve.name}, {rows[0].features}"
        axes.errorbar(
            places, [row.value for row in rows], ends, ls=line, marker=marker, color=colour, capsize=2, label=kind
        )
        if rows[0].chance is not None:
            axes.axhline(rows[0].chance, color=FAINT, linestyle=line, linewidth=1.0)
    axes.legend()
    axes.set(
        xlabel=key,
        ylabel="agreement ↑",
        ylim=(0.0, 1.02),
        title="Whole captions that samples agree with (grey: chance)",
    )


def _places(axes: Axes, curve: Curve) -> list[float]:
    """Where the values are on the axis."""
    try:
        return [float(value) for value in curve.values]
    except ValueError:
        # such as the kinds of a sampler
        places = [float(i) for i in range(len(curve.values))]
        axes.set_xticks(places, curve.values)
        return places
