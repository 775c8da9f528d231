"""What a person sees of a training."""

from __future__ import annotations

import contextlib
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sfumato.config import Config
from sfumato.io.progress import Progress
from sfumato.metrics.report import Report, number, table
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.networks.execution import count
from sfumato.runs.budget import words_of
from sfumato.training.loop import Record, Trainer
from sfumato.training.precision import multiplies_in_tf32


class Reporter:
    """What a training reports; this one shows nothing."""

    progress: Progress = False
    """The progress of the evaluation, as :meth:`sfumato.Model.sample` takes it."""

    def log(self, path: Path) -> None: ...
    def say(self, sentence: str) -> None: ...
    def data(self, config: Config, info: Info) -> None: ...
    def start(self, model: Model, trainer: Trainer) -> None: ...
    def step(self, record: Record) -> None: ...
    def evaluating(self, model: Model) -> None: ...
    def evaluated(self, report: Report, step: int) -> None: ...
    def finish(self, model: Model, training: float, total: float) -> None: ...


class Terminal(Reporter):
    """A progress bar with loss, speed and time left, and a line per event."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(quiet=quiet)
        self.progress = False if quiet else None
        self._quiet, self._log, self._unlogged = quiet, None, list[str]()
        self._progress: Bar | None = None
        self._task = TaskID(0)
        self._loss: float | None = None
        self._speed: float | None = None
        self._shown = -1
        self._seconds: list[float] = []
        self._told = False

    def log(self, path: Path) -> None:
        """Also write what is said to this file, with the time."""
        self._log = path
        self._write(*self._unlogged)
        self._unlogged.clear()

    def say(self, sentence: str, *, always: bool = False) -> None:
        """Show a sentence, or write it where errors go if nothing else is shown and it must ``always`` be."""
        if always and self._quiet:
            print(sentence, file=sys.stderr)
        self.console.print(sentence, highlight=False)
        self._note(sentence)

    def _note(self, sentence: str) -> None:
        self._write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {sentence}")

    def _write(self, *lines: str) -> None:
        if self._log is None:
            self._unlogged += lines
            return
        # a full disk is noticed by what must be saved
        with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)

    def data(self, config: Config, info: Info) -> None:
        shape = "x".join(map(str, info.shape))
        conditions = "".join(f", {condition.build().summary}" for condition in info.conditions.values())
        conditions += f", {len(info.classes)} classes to tell apart" if info.classes else ""
        conditions += ", standardized" if info.scale else ""
        self.say(f"data      {config.data.source}: {info.train} images of {shape}{conditions}, {info.heldout} held out")

    def start(self, model: Model, trainer: Trainer) -> None:
        config, info, device = model.config, model.info, trainer.accelerator.device
        precision = "bf16" if trainer.bf16 else "fp32 (products in TF32)" if multiplies_in_tf32(device) else "fp32"
        layout = ", channels last" if config.training.channels_last else ""
        compiled = ", compiled at the first step" if config.training.compile else ""
        size = count(model.denoiser.network, info.shape)
        place = f"{trainer.accelerator.num_processes} x {device.type}"
        self.say(f"model     {size}, {precision} on {place}{layout}{compiled}")
        self.say(f"run       {model.run}" + (f", resumed at step {trainer.step}" if trainer.step else ""))
        self._progress = Bar(
            TextColumn("training "),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
        )
        self._steps, self._batch = config.training.steps, config.training.batch_size
        # of another training that was shown before
        self._loss, self._speed, self._shown, self._told = None, None, -1, False
        self._seconds.clear()
        self._task = self._progress.add_task(
            "training", total=self._steps, completed=trainer.step, loss="...", speed="..."
        )
        self._progress.start()

    def step(self, record: Record) -> None:
        if self._progress is None:
            return
        speed = self._batch / max(record.seconds, 1e-9)
        self._loss = record.loss if self._loss is None else self._loss + 0.02 * (record.loss - self._loss)
        self._speed = speed if self._speed is None else self._speed + 0.02 * (speed - self._speed)
        self._progress.update(self._task, completed=record.step, loss=f"{self._loss:.4f}", speed=f"{self._speed:,.0f}")
        tenth = 10 * record.step // self._steps
        if tenth != self._shown:
            # neither a pipe nor a log file can show a moving bar
            say = self._note if self.console.is_terminal else self.say
            say(f"step {record.step}/{self._steps}  loss {self._loss:.4f}  {self._speed:,.0f} images/s")
        self._shown = tenth
        self._say_how_long(record)
        if record.step == self._steps:
            self.close()

    def _say_how_long(self, record: Record) -> None:
        """Once, after some seconds: how long all of it takes here."""
        self._seconds.append(record.seconds)
        spent = sum(self._seconds)
        if self._told or len(self._seconds) < 3 or spent < 5.0:
            return
        self._told = True
        left = (self._steps - record.step) * sorted(self._seconds)[len(self._seconds) // 2]
        if left > 60.0:
            shorter = " Another time: --budget 2h." if left > 4 * 3600.0 else ""
            self.say(f"time      {self._steps:,} steps take about {words_of(left + spent)} here.{shorter}")

    def evaluating(self, model: Model) -> None:
        self.close()
        count = model.config.evaluation.samples
        what = f"{count} samples against the training and the held-out images"
        if model.classifier is not None:
            what = "the accuracy on held-out images at each noise level"
        elif model.contrast is not None:
            what = "which held-out images and descriptions find each other"
        self.say(f"evaluation: {what} ...")

    def evaluated(self, report: Report, step: int) -> None:
        if self._progress is None:
            self.console.print(table(report))
            return
        entry = report.main
        floor = "" if entry.floor is None else f", real pictures {number(entry.floor)}"
        self.say(f"step {step}  {entry.title} {number(entry.value, entry.error)}{floor}")

    def finish(self, model: Model, training: float, total: float) -> None:
        self.close()
        self.say(f"{training:.1f} s of training, {total:.1f} s in all.")
        if model.classifier is not None:
            self.say(f"use it    sfumato sample MODEL --label CLASS --guidance.classifier {model.run}")
            return
        if model.contrast is not None:
            self.say("use it    embed_images and embed_captions of sfumato.models.embeddings, with")
            self.say(f"          sfumato.load({str(model.run)!r})")
            return
        if model.run is not None:
            self.say(f"samples   {model.run / 'samples'}")
        self.say(f"use it    sfumato sample {model.run}")
        if model.conditions and all(condition.drop == 0.0 for condition in model.conditions.values()):
            name = next(iter(model.conditions))
            self.say(f"guidance  needs a model trained with --conditions.{name}.drop 0.1")
        elif not model.conditions:
            self.say("guidance  needs a condition, such as labels: train with --condition label")

    def close(self) -> None:
        """Take the progress bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
