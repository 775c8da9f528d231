"""Tables, a figure and a summary of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sfumato.analysis import plots
from side_by_side.peers import Result

EXACT = 1e-6
"""An error of a few times the uncertainty of the references. Where the data are points, samplers end at one of them:
the median is zero to rounding, and the RMS is that of the few samples that ended at another point."""


@dataclass(frozen=True)
class Cell:
    """One number of evaluations of a target under a schedule.

    Attributes:
        ours: the default of that number.
        best_own: the best of all our configurations.
        peer: the best of all peers by RMS, if there were any.
        peer_median: the least median of the peers that were run on all samples.
        fitted: what was fitted to the denoiser on other noises, where that was done.
    """

    target: str
    schedule: str
    nfe: int
    ours: tuple[str, Result]
    best_own: tuple[str, Result]
    peer: tuple[str, Result] | None
    peer_median: float | None
    fitted: Result | None = None

    @property
    def ratio(self) -> float | None:
        """Our RMS over that of the best peer, neither taken for less than :data:`EXACT`."""
        return self._over_peer(self.ours[1])

    @property
    def fitted_ratio(self) -> float | None:
        """The same of what was fitted."""
        return None if self.fitted is None else self._over_peer(self.fitted)

    def _over_peer(self, own: Result) -> float | None:
        if self.peer is None or self.peer[1].rms is None or own.rms is None:
            return None
        return max(own.rms, EXACT) / max(self.peer[1].rms, EXACT)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""

        def named(pair: tuple[str, Result] | None) -> dict[str, Any] | None:
            return None if pair is None else {"name": pair[0], **asdict(pair[1])}

        return {
            "target": self.target,
            "schedule": self.schedule,
            "nfe": self.nfe,
            "ours": named(self.ours),
            "best_own": named(self.best_own),
            "peer": named(self.peer),
            "peer_median": self.peer_median,
            "ratio": self.ratio,
            "fitted": None if self.fitted is None else asdict(self.fitted),
            "fitted_ratio": self.fitted_ratio,
        }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def print_cells(cells: Iterable[Cell], console: Console) -> None:
    """A table for each target and schedule."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.target, cell.schedule), []).append(cell)
    for (target, schedule), group in groups.items():
        table = Table(title=f"{target}, {schedule}: RMS per dimension to the exact flow", title_justify="left")
        for heading in ("NFE", "ours", "median", "best peer", "median", "ratio", "fitted", "ratio"):
            table.add_column(heading, justify="right")
        table.add_column("our default")
        table.add_column("that peer", overflow="fold")
        table.add_column("our best", overflow="fold")
        for cell in group:
            peer = cell.peer[1] if cell.peer is not None else None
            table.add_row(
                str(cell.nfe),
                _number(cell.ours[1].rms),
                _number(cell.ours[1].median),
                _number(peer.rms if peer else None),
                _number(cell.peer_median),
                _number(cell.ratio),
                _number(cell.fitted.rms if cell.fitted else None),
                _number(cell.fitted_ratio),
                cell.ours[0],
                cell.peer[0] if cell.peer is not None else "",
                f"{_number(cell.best_own[1].rms)} {cell.best_own[0]}",
            )
        console.print(table)


def summarize(cells: list[Cell], low: Callable[[int], bool] = lambda nfe: nfe <= 50) -> dict[str, Any]:
    """The share of cells in which the default is no worse than the best peer, and the worst ratio."""

    def of(chosen: list[Cell], ratio: Callable[[Cell], float | None] = lambda cell: cell.ratio) -> dict[str, Any]:
        ratios = [value for cell in chosen if (value := ratio(cell)) is not None]
        if not ratios:
            return {"cells": 0}
        return {
            "cells": len(ratios),
            "no_worse": sum(ratio <= 1.0 for ratio in ratios) / len(ratios),
            "within_half": sum(ratio <= 0.5 for ratio in ratios) / len(ratios),
            "worst": max(ratios),
        }

    found = {"few": of([c for c in cells if low(c.nfe)]), "many": of([c for c in cells if not low(c.nfe)])}
    for schedule in dict.fromkeys(cell.schedule for cell in cells):
        found[f"few, {schedule}"] = of([c for c in cells if low(c.nfe) and c.schedule == schedule])
    found["fitted"] = of(cells, lambda cell: cell.fitted_ratio)
    return found


@plots.styled()
def draw(cells: list[Cell], folder: Path) -> tuple[Path, Path]:
    """The error of each number of evaluations: a panel per target, a colour per schedule, peers dashed."""
    targets = list(dict.fromkeys(cell.target for cell in cells))
    schedules = list(dict.fromkeys(cell.schedule for cell in cells))
    drawn = plots.figure(3.2 * len(targets) + 0.8, 4.0)
    panels = drawn.subplots(1, len(targets), squeeze=False)[0]
    for panel, target in zip(panels, targets, strict=True):
        for colour, schedule in zip(plots.COLOURS, schedules, strict=False):
            group = [cell for cell in cells if (cell.target, cell.schedule) == (target, schedule)]
            numbers = [cell.nfe for cell in group]
            panel.plot(numbers, [cell.ours[1].rms for cell in group], color=colour, label=f"Sfumato, {schedule}")
            if any(cell.peer is not None for cell in group):
                errors = [cell.peer[1].rms if cell.peer is not None else float("nan") for cell in group]
                panel.plot(numbers, errors, color=colour, linestyle="--", label=f"best peer, {schedule}")
        panel.set(title=target, xscale="log", yscale="log", xlabel="evaluations of the denoiser")
        panel.set_xticks(ticks := sorted({cell.nfe for cell in cells}), [str(n) for n in ticks], rotation=60)
        panel.minorticks_off()
    panels[0].set_ylabel("RMS per dimension to the exact flow")
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(3, len(targets) + 1))
    return plots.save(drawn, folder, "solvers")
