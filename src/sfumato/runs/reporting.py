"""What a person sees of a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from sfumato.config import Config
from sfumato.models.storage import Facts
from sfumato.metrics import Evaluation, table
from sfumato.models.model import Model
from sfumato.networks.counting import Size, count
from sfumato.recipes.presets import preset
from sfumato.recipes.published import PRESETS, Published
from sfumato.training.estimate import cost
from sfumato.training.loop import Record, Trainer
from sfumato.training.precision import multiplies_in_tf32


@runtime_checkable
class Reporter(Protocol):
    """What a training tells of itself."""

    def say(self, sentence: str) -> None: ...
    def start(self, config: Config, facts: Facts, model: Model, trainer: Trainer, run: Path) -> None: ...
    def step(self, record: Record) -> None: ...
    def evaluating(self, samples: int) -> None: ...
    def evaluated(self, evaluation: Evaluation) -> None: ...
    def finish(self, run: Path, training: float, total: float) -> None: ...


class Silent:
    """Tells nothing."""

    def say(self, sentence: str) -> None: ...
    def start(self, config: Config, facts: Facts, model: Model, trainer: Trainer, run: Path) -> None: ...
    def step(self, record: Record) -> None: ...
    def evaluating(self, samples: int) -> None: ...
    def evaluated(self, evaluation: Evaluation) -> None: ...
    def finish(self, run: Path, training: float, total: float) -> None: ...


class Terminal:
    """A progress bar with loss, speed and time left, and a line per event."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._loss: float | None = None
        self._speed: float | None = None
        self._shown = -1

    def say(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False)

    def start(self, config: Config, facts: Facts, model: Model, trainer: Trainer, run: Path) -> None:
        size = count(model.denoiser.network, facts.shape)
        shape = "x".join(map(str, facts.shape))
        labels = f", {len(facts.classes)} classes" if facts.classes else ""
        device = trainer.accelerator.device
        precision = "bf16" if trainer.autocast else "fp32 (products in TF32)" if multiplies_in_tf32(device) else "fp32"
        place = f"{trainer.accelerator.num_processes} x {device}"
        self.say(f"data      {config.data.source}: {facts.train} images of {shape}{labels}, {facts.heldout} held out")
        layout = ", channels last" if config.training.channels_last else ""
        compiled = ", compiled at the first step" if config.training.compile else ""
        self.say(f"model     {size}, {precision} on {place}{layout}{compiled}")
        parts, places = config.training.accumulate, trainer.accelerator.num_processes
        share = config.training.batch_size // (parts * places)
        network, seconds = model.denoiser.network, trainer.sample_seconds
        said = cost(network, facts.shape, share, parts, size.macs, trainer.autocast, sample_seconds=seconds)
        self.say(f"step      {said}")
        self.say(f"run       {run}" + (f", resumed at step {trainer.step}" if trainer.step else ""))
        self._progress = Progress(
            TextColumn("training "),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
        )
        self._task = self._progress.add_task(
            "training", total=config.training.steps, completed=trainer.step, loss="...", speed="..."
        )
        self._batch = config.training.batch_size
        self._steps = config.training.steps
        self._progress.start()

    def step(self, record: Record) -> None:
        if self._progress is None:
            return
        speed = self._batch / max(record.seconds, 1e-9)
        self._loss = record.loss if self._loss is None else self._loss + 0.02 * (record.loss - self._loss)
        self._speed = speed if self._speed is None else self._speed + 0.02 * (speed - self._speed)
        self._progress.update(self._task, completed=record.step, loss=f"{self._loss:.4f}", speed=f"{self._speed:,.0f}")
        tenth = 10 * record.step // self._steps
        if not self.console.is_terminal and tenth != self._shown:
            # a log file can't show a moving bar
            self.say(f"step {record.step}/{self._steps}  loss {self._loss:.4f}  {self._speed:,.0f} images/s")
        self._shown = tenth
        if record.step == self._steps:
            self.close()

    def evaluating(self, samples: int) -> None:
        self.close()
        self.say(f"evaluation: {samples} samples against the training and the held-out images ...")

    def evaluated(self, evaluation: Evaluation) -> None:
        self.console.print(table(evaluation))

    def finish(self, run: Path, training: float, total: float) -> None:
        self.close()
        self.say(f"{training:.1f} s of training, {total:.1f} s in all.")
        self.say(f"pictures  {run / 'samples'}")
        self.say(f"use it    sfumato sample {run}")

    def close(self) -> None:
        """Take the progress bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


@contextmanager
def bar(what: str, total: int) -> Generator[Callable[[int], None]]:
    """A progress bar on standard error; the context gives the function to call with the number done."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(bar_width=28), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def summary(model: Model, everything: bool) -> Group:
    """What a run is, as a table of facts and one of settings.

    Args:
        model: a model that was loaded from a run.
        everything: list all settings, not only those that differ from the defaults.
    """
    facts, config, run = model.facts, model.config, model.run
    shape = "x".join(map(str, facts.shape))
    rows = {
        "run": str(run),
        "data": f"{config.data.source}: {facts.train} images of {shape}, {facts.heldout} held out, std {facts.std:.3f}",
        "labels": ", ".join(facts.classes) or "none",
        "model": str(count(model.denoiser.network, facts.shape)),
        "trained": f"{model.step:,} of {config.training.steps:,} steps, "
        f"{model.step * config.training.batch_size:,} images",
    }
    logged = run / "metrics.jsonl" if run is not None else None
    if logged is not None and logged.is_file():
        # the last line of a run that was killed may be cut off
        lines = logged.read_text(encoding="utf-8").splitlines()[-20:]
        losses = [loss for loss in map(_loss, lines) if loss is not None]
        if losses:
            rows["loss"] = f"{sum(losses) / len(losses):.4f}, the mean of the last {len(losses)} in metrics.jsonl"
    evaluated = run / "evaluation.json" if run is not None else None
    if evaluated is not None and evaluated.is_file():
        for space, entry in _spaces(evaluated.read_text(encoding="utf-8")).items():
            rows[f"Frechet, {space}"] = (
                f"{entry['frechet_heldout']:.3g} to held-out ({entry['frechet_ratio']:.2f} x real against real), "
                f"nearest-neighbour ratio {entry['neighbour_ratio']:.2f}"
            )
    return _tables(rows, config, everything)


def _tables(rows: dict[str, str], config: Config, everything: bool) -> Group:
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        facts.add_row(name, value)
    settings = Table("setting", "value", box=None, padding=(0, 2, 0, 0))
    plain = _flat(Config().model_dump(mode="json"))
    for key, value in _flat(config.model_dump(mode="json")).items():
        if everything or key not in plain or plain[key] != value:
            settings.add_row(key, str(value))
    title = "all settings" if everything else "settings that are not the defaults"
    return Group(facts, "", title, settings)


def published_summary(name: str, published: Published, everything: bool) -> Group:
    """What a published model is, as a table of facts and one of the settings of its recipe.

    Args:
        name: its name.
        published: the model.
        everything: list all settings, not only those that differ from the defaults.
    """
    rows = {
        "published": name,
        "data": f"images of {'x'.join(map(str, published.shape))}",
        "labels": f"{published.classes} classes" if published.classes else "none",
        "model": str(_size_of(published)),
        "train it": f"sfumato train DATA --recipe {name}",
    }
    return _tables(rows, preset(name), everything)


def _size_of(published: Published) -> Size:
    outputs = 2 * published.shape[0] if published.model.learned_variance else None
    with torch.device("meta"):
        network = published.model.network.build(published.shape, published.classes, outputs)
    return count(network, published.shape)


def presets_table() -> Table:
    """The published models by name, with the size of their pictures and what their networks cost."""
    found = Table("published", "images", "classes", box=None, padding=(0, 2, 0, 0))
    for title in ("parameters", "multiply-accumulates"):
        found.add_column(title, justify="right")
    for name, make in PRESETS.items():
        published = make()
        size = _size_of(published)
        shape = "x".join(map(str, published.shape))
        found.add_row(name, shape, str(published.classes or "none"), f"{size.parameters:,}", f"{size.work} per call")
    return found


def _loss(line: str) -> float | None:
    try:
        return float(json.loads(line)["loss"])
    except (ValueError, KeyError, TypeError):
        return None


def _spaces(text: str) -> dict[str, Any]:
    """The entries of evaluation.json that have all that is shown."""
    try:
        spaces = json.loads(text)["spaces"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    needed = {"frechet_heldout", "frechet_ratio", "neighbour_ratio"}
    return {name: entry for name, entry in spaces if isinstance(entry, dict) and needed <= entry.keys()}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
