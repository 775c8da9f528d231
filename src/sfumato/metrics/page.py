"""An evaluation as one HTML page that needs nothing else: measures, images, curves and settings."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.io.files import atomic_write
from sfumato.io.images import CHANNELS, grid
from sfumato.metrics.curves import draw, panels, read_curves
from sfumato.metrics.pictures import check_images
from sfumato.metrics.report import Report, number, shown

_SAMPLES, _PAIRS, _EXTREMES = 64, 12, 16  # images shown of each kind
_CLASSES, _PER_CLASS = 20, 6
_PIXELS = 1_500_000  # of all images of the page together: larger ones are scaled down
_BETTER = {"lower": "lower", "higher": "higher", "floor": "near the floor"}


@dataclass(frozen=True)
class Gallery:
    """Samples to show, in [-1, 1]; signals are shown as curves and vectors as points of the plane."""

    generated: Float[Tensor, "batch channels *space"]
    nearest: Float[Tensor, "shown channels *space"] | None = None  # the nearest training images of the first samples
    distances: Float[Tensor, " shown"] | None = None  # of these, in features
    density: Float[Tensor, " batch"] | None = None  # of each sample: higher where there is more training data
    labels: Int[Tensor, " batch"] | None = None
    names: Sequence[str] | None = None  # of the classes, by label

    def __post_init__(self) -> None:
        check_images("generated", self.generated)
        if self.density is not None and not bool(torch.isfinite(self.density).all()):
            raise InputError("density holds NaN or infinite values; samples are sorted by it.")
        count, shape = len(self.generated), tuple(self.generated.shape[1:])
        if self.nearest is not None:
            check_images("nearest", self.nearest)
            if tuple(self.nearest.shape[1:]) != shape or len(self.nearest) > count:
                got = f"{tuple(self.nearest.shape)} beside {tuple(self.generated.shape)}"
                raise InputError(f"nearest must hold an image of the same shape for each of the first samples; {got}.")
        pairs = None if self.nearest is None else len(self.nearest)
        for name, values, length in (
            ("distances", self.distances, pairs),
            ("density", self.density, count),
            ("labels", self.labels, count),
        ):
            if values is not None and tuple(values.shape) != (length,):
                expected = "no nearest images" if length is None else f"{length} images"
                raise InputError(f"{name} has shape {tuple(values.shape)}, and there are {expected}; give one of each.")

    def name(self, label: int) -> str:
        """The name of a class, or its number."""
        known = self.names is not None and 0 <= label < len(self.names)
        return self.names[label] if self.names is not None and known else str(label)


def write_page(path: Path, report: Report, gallery: Gallery | None = None, *, metrics: Path | None = None) -> None:
    """Write an evaluation as one HTML file, whole or not at all; parts that are not given are left out.

    The page loads nothing, runs no scripts, follows the light or dark scheme of the reader and can be printed. It stays
    below a few MB: images are scaled down if there are many large ones.

    Args:
        path: the file to write.
        report: the measures.
        gallery: samples to show beside them.
        metrics: the ``metrics.jsonl`` of the run, for curves over training.
    """
    body = [
        _heading(report),
        _table(report),
        *([] if gallery is None else _sections(gallery)),
        *_curves(metrics),
        _settings(report.settings),
    ]
    text = _document(report.name, "\n".join(part for part in body if part))
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _document(title: str, body: str) -> str:
    """The page; its policy forbids whatever is not inside of it."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<link rel="icon" href="data:,">',  # browsers would ask for one
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    )
    lines = ("<!DOCTYPE html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", body, "</body>", "</html>")
    return "\n".join(lines) + "\n"


def _heading(report: Report) -> str:
    counts = ", ".join(f"{count:,} {escape(what)}" for what, count in report.counts.items())
    return f"<header><h1>{escape(report.name)}</h1><p>{counts}</p></header>"


def _table(report: Report) -> str:
    if not report.rows:
        return ""
    chances = any(row.chance is not None for row in report.rows)
    heads = ("Measure", "Value", "Floor", *(["Chance"] if chances else []), "Better", "Error and notes")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    lines: list[str] = []
    for row in report.rows:
        cells = [shown(row), number(row.floor, row.floor_error), _BETTER[row.better]]
        cells[2:2] = [number(row.chance)] if chances else []
        said = "".join(f"<td>{cell}</td>" for cell in cells)
        notes = "; ".join(filter(None, (row.method, row.note)))
        lines.append(f'<tr><th scope="row">{escape(row.title)}</th>{said}<td class="note">{escape(notes)}</td></tr>')
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    more = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    note = "A value stands with one standard error, or in its interval of 95 %; the floor is what real images reach."
    return _section("Measures", table + more, note)


def _sections(gallery: Gallery) -> Iterator[str]:
    """The sections of samples, each where its part is given; vectors are points, of which none is looked at alone."""
    images = gallery.generated.detach().float().cpu()
    classes = 0 if gallery.labels is None else min(_CLASSES, len(gallery.labels.unique()))
    pairs = 0 if gallery.nearest is None or images.ndim == 2 else min(_PAIRS, len(gallery.nearest))
    extremes = 0 if gallery.density is None or images.ndim == 2 else min(_EXTREMES, len(images) // 2)
    count = min(_SAMPLES, len(images)) + 2 * pairs + 2 * extremes + _PER_CLASS * classes
    planes = 1 if images.shape[1] in CHANNELS.values() else images.shape[1]
    side = math.isqrt(_PIXELS // (count * planes))
    show = partial(_img, side=side)
    small = images.ndim == 4 and max(images.shape[2:]) > side
    yield _samples(images, show, f" All images are scaled down to {side} pixels." if small else "")
    if pairs and gallery.nearest is not None:
        yield _neighbours(images[:pairs], gallery.nearest.detach().float().cpu(), gallery.distances, show)
    if extremes and gallery.density is not None:
        yield _by_density(images, gallery.density, extremes, show)
    if gallery.labels is not None:
        yield _by_class(images, gallery.labels.cpu(), gallery.name, show)


def _samples(images: Tensor, show: Callable[..., str], more: str) -> str:
    if images.ndim > 2:
        note = f"The first {min(_SAMPLES, len(images))} of {len(images):,}, not selected.{more}"
        return _section("Samples", show(images[:_SAMPLES], "samples"), note)
    what = f"The first two of {images.shape[1]} numbers" if images.shape[1] > 1 else "The cumulative distribution"
    return _section("Samples", show(images, "samples"), f"{what} of {len(images):,} samples, from -1 to 1.")


def _neighbours(images: Tensor, nearest: Tensor, distances: Tensor | None, show: Callable[..., str]) -> str:
    alt = "a sample and its nearest training image"
    captions = ["" if distances is None else f"{float(distances[i]):.4g}" for i in range(len(images))]
    pairs = torch.stack([images, nearest[: len(images)]], dim=1)
    parts = [_figure(show(pair, alt, 2), caption) for pair, caption in zip(pairs, captions, strict=True)]
    more = "" if distances is None else ", and their distance in features"
    note = f"Each sample (left) with its nearest training image (right){more}."
    return _section("Nearest training images", _row(parts), note)


def _by_density(images: Tensor, density: Tensor, count: int, show: Callable[..., str]) -> str:
    order = density.detach().double().cpu().argsort(descending=True, stable=True)
    parts: list[str] = []
    for name, chosen in (("highest", order[:count]), ("lowest", order[-count:].flip(0))):
        ends = f"{float(density[chosen[0]]):.4g} to {float(density[chosen[-1]]):.4g}"
        parts.append(_figure(show(images[chosen], f"{name} density"), f"{name}: {ends}"))
    note = "Samples where training images are dense in features, and where they are rare."
    return _section("By density", _row(parts), note)


def _by_class(images: Tensor, labels: Tensor, name_of: Callable[[int], str], show: Callable[..., str]) -> str:
    classes: list[int] = labels.unique().tolist()
    parts: list[str] = []
    for label in classes[:_CLASSES]:
        chosen, name = images[labels == label], name_of(label)
        content = show(chosen, name, smaller=2) if images.ndim == 2 else show(chosen[:_PER_CLASS], name, 1)
        parts.append(_figure(content, escape(name)))
    more = f"The first {_CLASSES} of {len(classes)} classes." if len(classes) > _CLASSES else ""
    return _section("By class", _row(parts), more)


def _curves(metrics: Path | None) -> Iterator[str]:
    if metrics is None or not metrics.is_file():
        return
    parts = [_figure(draw(title, lines)) for title, lines in panels(read_curves(metrics)).items()]
    if parts:
        yield _section("Training", _row(parts))


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _flat(settings))
    return _section("Settings", f"<dl>{rows}</dl>") if rows else ""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{prefix}{name}", str(value)


def _section(title: str, content: str, note: str = "") -> str:
    said = f"<p>{note}</p>" if note else ""
    return f"<section><h2>{title}</h2>{said}{content}</section>"


def _row(parts: Sequence[str]) -> str:
    return f'<div class="row">{"".join(parts)}</div>'


def _figure(content: str, caption: str = "") -> str:
    said = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{content}{said}</figure>"


def _img(images: Tensor, alt: str, columns: int | None = None, *, side: int, smaller: int = 1) -> str:
    """A grid of images, of at most ``side`` pixels each, as an element with its PNG file inside.

    It is shown so many times ``smaller``.
    """
    if images.ndim == 4 and (longest := max(images.shape[2:])) > side:
        size = [max(1, round(length * side / longest)) for length in images.shape[2:]]
        images = functional.interpolate(images, size, mode="bicubic", antialias=True)
    sheet, buffer = grid(images, columns), BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{sheet.width // smaller}" height="{sheet.height // smaller}"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" {size}>'


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #667; --line: #d5d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #dfe2e8; --faint: #9aa0ac; --line: #383d47; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { color: var(--faint); margin: .2rem 0 .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; }
thead th, .note, figcaption, dt { color: var(--faint); font-size: .85rem; }
td:not(.note) { font-variant-numeric: tabular-nums; white-space: nowrap; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { break-inside: avoid; margin: 0; max-width: 100%; }
figcaption { overflow-wrap: anywhere; text-align: center; }
img { height: auto; image-rendering: pixelated; max-width: 100%; }
svg { height: auto; stroke-linejoin: round; max-width: 100%; width: 30rem; }
dl { display: grid; gap: .1rem 1.2rem; grid-template-columns: max-content 1fr; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
@media print {
  :root { --paper: #fff; --ink: #000; --faint: #444; --line: #bbb; }
  body { font-size: 10pt; margin: 0; max-width: none; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""
