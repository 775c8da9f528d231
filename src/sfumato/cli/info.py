"""``sfumato info``: what a run is, or a published model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sfumato.cli import flags
from sfumato.cli.commands import TRUST
from sfumato.cli.flags import Fields, option
from sfumato.config import Config, parse
from sfumato.errors import InputError, SfumatoWarning, nearest
from sfumato.io.files import json_object, read_json
from sfumato.models.storage import is_system
from sfumato.recipes.openai import CLASSIFIERS
from sfumato.recipes.published import PRESETS, TRAINED, preset
from sfumato.recipes.settings import Published, PublishedClassifier

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from sfumato.models.model import Model


_NAMES = (*PRESETS, *CLASSIFIERS)
"""The published models and classifiers by name."""


def info(arguments: list[str]) -> int:
    fields: Fields = {
        "run": option(
            Path | None,
            "A run directory, or a published model by name: " + ", ".join(_NAMES) + ".",
            None,
            positional="RUN",
        ),
        "presets": option(bool, "List the published models and what they cost.", False),
        "settings": option(
            Literal["changed", "all"], "Which settings to list: those that are not defaults, or all.", "changed"
        ),
        "trust": TRUST,
    }
    text = "Show a run (data, model, settings, progress), or a published model."
    options = flags.parse(fields, arguments, prog="sfumato info", description=text)
    from rich.console import Console

    if (options.run is None) != options.presets:
        raise InputError("A run directory, the name of a published model, or --presets alone is required.")
    console = Console()
    if options.run is None:
        console.print(_presets(), highlight=False)
        return 0
    name, everything = str(options.run), options.settings == "all"
    if not options.run.exists() and name not in _NAMES and (near := nearest(name, _NAMES)).startswith("; did"):
        raise InputError(f"There is no run directory {name}, and no published model of that name{near}")
    if name in _NAMES and not options.run.exists():
        console.print(_published(name, everything), highlight=False)
        return 0
    if is_system(options.run):
        from sfumato.cli import system

        for part in system.info(options.run, options.trust, everything):
            console.print(part, highlight=False)
        return 0
    from sfumato.models.model import load

    console.print(of_run(load(options.run, trust=options.trust), everything), highlight=False)
    return 0


def of_run(model: Model, everything: bool) -> Group:
    """What a run is, as a table of facts and one of settings."""
    from sfumato.networks.execution import count

    info, config, run = model.info, model.config, model.run
    shape = "x".join(map(str, info.shape))
    rows = {
        "run": str(run),
        "data": f"{config.data.source}: {info.train} images of {shape}, {info.heldout} held out, std {info.std:.3f}",
        "conditions": "; ".join(f"{n}: {c.summary}" for n, c in model.conditions.items()) or "none",
        **({"classes": f"{len(info.classes)} to tell apart: {', '.join(info.classes[:20])}"} if info.classes else {}),
        "model": str(count(model.denoiser.network, info.shape)),
        "trained": f"{model.step:,} of {config.training.steps:,} steps, "
        f"{model.step * config.training.batch_size:,} images",
    }
    logged = run / "metrics.jsonl" if run is not None else None
    if logged is not None and logged.is_file():
        # the last line of a run that was killed may be cut off
        lines = logged.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        losses = [loss for loss in map(_loss, lines) if loss is not None]
        if losses:
            rows["loss"] = f"{sum(losses) / len(losses):.4f}, the mean of the last {len(losses)} in metrics.jsonl"
    if run is not None:
        rows |= measured(run / "evaluation.json")
    return _tables(rows, config, everything)


def measured(path: Path) -> dict[str, str]:
    """The measures of an evaluation that rank models and that show copies, by their titles, if there is one."""
    rows: dict[str, str] = {}
    for entry in _rows_of(path) if path.is_file() else ():
        error = f" ± {entry['error']:.2g}" if entry["error"] is not None else ""
        floor = f", real pictures {entry['floor']:.3g}" if entry["floor"] is not None else ""
        rows[entry["title"]] = f"{entry['value']:.3g}{error}{floor}"
    return rows


def _tables(rows: Mapping[str, str], config: Config, everything: bool) -> Group:
    """Facts, and the settings of a configuration: all, or those that are not the defaults."""
    from rich.console import Group
    from rich.table import Table

    plain, settings = (_flat(one.model_dump(mode="json")) for one in (Config(), config))
    shown = {key: value for key, value in settings.items() if everything or key not in plain or plain[key] != value}
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        facts.add_row(name, value)
    table = Table("setting", "value", box=None, padding=(0, 2, 0, 0))
    for key, value in shown.items():
        table.add_row(key, str(value))
    return Group(facts, "", "all settings" if everything else "settings that are not the defaults", table)


def _published(name: str, everything: bool) -> Group:
    """What a published model is, as a table of facts and one of the settings of its recipe."""
    size, model = TRAINED[name], CLASSIFIERS[name] if name in CLASSIFIERS else PRESETS[name]
    rows = {"published": name, "data": f"images of {_images(model)}"}
    if isinstance(model, PublishedClassifier):
        rows["classifies"] = f"noisy images, for classifier guidance, into {model.classes} classes"
    else:
        labels = {"label": f"label: {model.classes} classes"}
        rows["conditions"] = "; ".join(labels.get(condition, condition) for condition in model.conditions) or "none"
    rows["model"] = f"{size.parameters:,} parameters, {_macs(size.macs)} per call"
    rows["train it"] = f"sfumato train DATA --recipe {name}"
    return _tables(rows, parse(Config, preset(name)), everything)


def _images(model: Published | PublishedClassifier) -> str:
    """The shape of the images of a model; of an up-sampler, the side too that it scales up from."""
    factors = [other.get("factor", 1) for other in model.others.values()] if isinstance(model, Published) else []
    factor, shape = max(factors, default=1), "x".join(map(str, model.shape))
    return shape if factor == 1 else f"{shape} from {model.shape[1] // factor}"


def _presets() -> Table:
    """The published models by name, with the size of their images and what their networks cost."""
    from rich.table import Table

    table = Table("published", "images", "classes", box=None, padding=(0, 2, 0, 0))
    for title in ("parameters", "a call"):
        table.add_column(title, justify="right")
    for name, model in (*PRESETS.items(), *CLASSIFIERS.items()):
        size, classes = TRAINED[name], str(model.classes or "none")
        table.add_row(name, _images(model), classes, f"{size.parameters:,}", _macs(size.macs))
    return table


def _macs(number: int) -> str:
    thousands = min(4, (len(str(number)) - 1) // 3)
    return f"{number / 1000.0**thousands:.3g} {('', 'k', 'M', 'G', 'T')[thousands]}MAC"


def _loss(line: str) -> float | None:
    loss = (json_object(line) or {}).get("loss")
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def _rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of evaluation.json that rank models and that show copies."""
    try:
        rows = [row for row in read_json(path)["rows"] if {"title", "value", "error", "floor"} <= row.keys()]
        numbers = [row[key] for row in rows for key in ("value", "error", "floor")]
        if not rows or not all(value is None or isinstance(value, int | float) for value in numbers):
            raise InputError("it lacks the measures")
    except (InputError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is damaged and skipped ({error}).", SfumatoWarning, stacklevel=2)
        return []
    shown = [rows[0], *(row for row in rows[1:] if str(row["title"]).startswith(("nearest", "copies", "accuracy")))]
    return [row for row in shown if row["value"] is not None]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
