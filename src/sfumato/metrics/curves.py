"""Curves over training from a run's ``metrics.jsonl``, as SVG that takes the colours of the page around it."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from io import StringIO
from pathlib import Path

from sfumato.io.files import json_object

Points = list[tuple[float, float]]

_LARGEST = 1e300
_POINTS = 300  # of a curve: more are averaged in groups
_INK = "#010203"  # drawn in the colour of the page's text
_LEVELS = {
    "Held-out loss by log-SNR": "heldout_loss at log-SNR ",
    "Held-out loss by log-SNR, conditions shuffled": "heldout_loss shuffled at log-SNR ",
}


def read_curves(path: Path) -> dict[str, Points]:
    """The finite numbers of each name over the optimizer steps; lines that a crash cut off are skipped."""
    curves: dict[str, Points] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json_object(line) or {}
        step = values.pop("step", None)
        for name, value in values.items():
            if all(isinstance(number, int | float) and abs(number) < _LARGEST for number in (step, value)):
                curves.setdefault(name, []).append((float(step), float(value)))
    return curves


def panels(curves: Mapping[str, Points]) -> dict[str, dict[str, Points]]:
    """What is plotted together: the losses, the held-out loss by noise level, and each measure of evaluations.

    Agreement with captions is one panel for each kind of captions, with the kinds of facts.

    Curves of a single step are left out, and what a training counts beside its loss.
    """
    from sfumato.metrics.agreement import FACTS, TITLE
    from sfumato.training.loop import Record

    lines = {name: _averaged(points) for name, points in curves.items() if len(points) > 1}
    losses = {"training": "loss", "held out": "heldout_loss", "conditions shuffled": "heldout_loss shuffled"}
    found = {"Loss": {shown: lines[name] for shown, name in losses.items() if name in lines}}
    known = {*losses.values(), *(entry.name for entry in fields(Record))}
    for title, start in _LEVELS.items():
        levels = sorted((name for name in lines if name.startswith(start)), key=lambda name: float(name[len(start) :]))
        found[title] = {name[len(start) :]: lines[name] for name in levels}
        known.update(levels)
    for kind in (TITLE, *FACTS):
        for name in [name for name in lines if name.startswith(f"{kind} (")]:
            found.setdefault(f"Agreement {name[len(kind) + 1 :]}", {})[kind] = lines[name]
            known.add(name)
    found |= {name.replace("_", " "): {"": points} for name, points in lines.items() if name not in known}
    return {title: drawn for title, drawn in found.items() if drawn}


def draw(title: str, lines: Mapping[str, Points]) -> str:
    """One panel as an SVG element without identifiers that could clash, references or scripts."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {
        **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color", "axes.edgecolor"), _INK),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        **{
            "svg.fonttype": "none",
            "svg.hashsalt": title,
            "axes.titlelocation": "left",
            "font.size": 9.0,
            "text.parse_math": False,
        },
    }
    with matplotlib.style.context(settings, after_reset=True):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for (name, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, label=name, linewidth=1.6, marker="." if len(points) < 30 else "")
        axes.set_xlabel("optimizer steps")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_title(title, fontsize=10)
        values = [value for points in lines.values() for _, value in points]
        if min(values) > 0.0 and max(values) > 20.0 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(visible=True, color=_INK, alpha=0.12, linewidth=0.6)
        if any(lines):
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """Matplotlib's file as an element of a page: no prologue or metadata, and the page's colour for the ink."""
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'<(g|text) id="[^"]*"', r"<\1", body)
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body).replace(_INK, "currentColor")
    body = body.replace("xlink:href", "href")
    # the page sets the size
    body = re.sub(r' (width|height)="[^"]*pt"', "", body, count=2)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _colours(count: int) -> Sequence[tuple[float, float, float]]:
    """From blue by violet and red to orange at one lightness, so that they show on a light and on a dark page."""
    return [colorsys.hls_to_rgb((0.55 + 0.55 * k / max(1, count - 1)) % 1.0, 0.56, 0.75) for k in range(count)]


def _averaged(points: Points) -> Points:
    group = -(-len(points) // _POINTS)
    groups = [points[k : k + group] for k in range(0, len(points), group)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in groups]
