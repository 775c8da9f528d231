"""Sweeps on the command line: one figure of samples, or one of what was measured, for all values of a setting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.commands import columns_of, load_model, with_fitted
from sfumato.cli.output import check_free, free_name
from sfumato.config import SamplingConfig
from sfumato.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from sfumato.models.sweep import Curve

_ROW = 8
"""Images of each value of a sweep, unless their number is said."""


def sample_sweep(options: Any, sampling: SamplingConfig, given: dict[str, Any]) -> int:
    """Sample with each value of a setting into one figure, a grid per value with the value beside it."""
    key, values = _key_and_values(options)
    if options.animation is not None or options.animation_x0:
        raise InputError("A sweep is one figure; leave --animation or --sweep out.")
    if options.out is not None and options.out.suffix != ".png":
        raise InputError(f"A sweep is written as a .png; got {options.out}.")
    check_free(options.out, options.overwrite)
    above = columns_of(given, options.first)
    count = (len(above) or _ROW) if options.count is None else options.count

    from sfumato.io import images as image_files
    from sfumato.io.lettering import lettered
    from sfumato.models.sweep import swept

    settings = [_as_fitted(one, options.run, key) for one in swept(sampling, key, values)]
    model = load_model(options, sampling)
    for one in settings:
        # what can't be done is refused before anything is sampled
        model.sampler(one)
    more = {"seed": options.seed, "first": options.first, **given}
    grids = [model.sample(count, sampling=one, **more) for one in settings]
    columns = len(above) or (count if count <= 2 * _ROW else None)
    sheets = [image_files.grid(images, columns) for images in grids]
    folder: Path = options.run / "samples"
    name = f"sweep-{key}-seed-{options.seed}"
    out = options.out or folder / f"{free_name(folder, name, ['.png'], options.overwrite)}.png"
    image_files.save_png(lettered(sheets, above=above, beside=values, title=key), out)
    print(f"{len(values)} values of {key}, {count} images of each: {out}")
    return 0


def _as_fitted(sampling: SamplingConfig, run: Path, key: str) -> SamplingConfig:
    """With what was fitted for this number of steps, unless a sampler or a grid is named."""
    from sfumato.models.storage import is_system, read_config, read_system, stage_of

    # of a system, the settings that have no other name are those of its last stage
    run = stage_of(run, read_system(run).stages[-1]) if is_system(run) else run
    usual = read_config(run, trust=True)[0].sampling
    named = sampling.sampler != usual.sampler or sampling.grid != usual.grid or key.startswith(("sampler", "grid"))
    return sampling if named else with_fitted(sampling, run)


def _key_and_values(options: Any) -> tuple[str, list[str]]:
    words: Sequence[str] = options.sweep
    if len(words) < 2:
        raise InputError("A sweep is a setting and its values, such as --sweep guidance.scale 0 1 2 4.")
    return words[0], list(words[1:])


def evaluate_sweep(
    options: Any, sampling: SamplingConfig, given: dict[str, Any], judging: dict[str, Any], *, main: bool
) -> int:
    """Judge samples of a run at each value of a setting: a table, a file of all measures, a figure."""
    from rich.console import Console

    from sfumato.analysis import plots
    from sfumato.analysis.sweeps import plot_sweep
    from sfumato.io.files import write_json
    from sfumato.models.sweep import evaluate_sweep as judge

    key, values = _key_and_values(options)
    model = load_model(options, sampling)
    more: dict[str, Any] = {name: getattr(options, name) for name in ("samples", "captions", "seed")}
    more |= {"sampling": sampling}
    curves = judge(model, key, values, judging=judging, **more, **given)
    if not main:
        return 0
    result = {"step": model.step, "key": key, "curves": [curve.to_dict() for curve in curves]}
    name = free_name(options.run, "evaluation-sweep", [".json", *plots.SUFFIXES], options.overwrite)
    write_json(options.run / f"{name}.json", result)
    figures = plots.save(plot_sweep(curves, key), options.run, name)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    Console().print(*(_table(curve, key) for curve in curves), sep="\n")
    for path in (options.run / f"{name}.json", *figures):
        print(path)
    return 0


_MEASURES = ("FD", "precision k=3", "recall k=3", "density k=5", "coverage k=5", "accuracy", "saturated values")
_BY_CAPTIONS = ("agreement", "relation")  # of each kind of captions


def _table(curve: Curve, key: str) -> Table:
    """A row per value, a column per measure, and what real pictures and chance reach."""
    from rich.table import Table

    from sfumato.metrics.report import number

    first = curve.reports[0]
    measures = {name: first[name].name for name in _MEASURES if name in first}
    measures |= {row.title: row.title for row in first.rows if row.measure in _BY_CAPTIONS}
    measures = measures or {row.title: row.name for row in first.rows}
    counts = ", ".join(f"{count:,} {name}" for name, count in first.counts.items())
    error = number(first.main.value, first.main.error)
    caption = f"Errors are in the file; the first {first.main.name} is {error}."
    title = f"{curve.name}: {counts}"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column(key.rpartition(".")[2], no_wrap=True)
    for name in measures.values():
        table.add_column(name, justify="right")
    for value, report in zip(curve.values, curve.reports, strict=True):
        table.add_row(value, *(number(report[name].value) for name in measures))
    table.add_section()
    table.add_row("real", *(number(first[name].floor) for name in measures))
    if any(first[name].chance is not None for name in measures):
        table.add_row("chance", *(number(first[name].chance) for name in measures))
    return table
