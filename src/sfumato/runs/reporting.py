"""What a person sees of a training."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sfumato.metrics import Evaluation, table
from sfumato.models.model import Model
from sfumato.networks.execution import count
from sfumato.training.loop import Record, Trainer
from sfumato.training.precision import multiplies_in_tf32


class Reporter:
    """What a training reports; this one shows nothing."""

    def say(self, sentence: str) -> None: ...
    def start(self, model: Model, trainer: Trainer) -> None: ...
    def step(self, record: Record) -> None: ...
    def evaluating(self, samples: int) -> None: ...
    def evaluated(self, evaluation: Evaluation) -> None: ...
    def finish(self, model: Model, training: float, total: float) -> None: ...


class Terminal(Reporter):
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

    def start(self, model: Model, trainer: Trainer) -> None:
        config, info, device = model.config, model.info, trainer.accelerator.device
        shape = "x".join(map(str, info.shape))
        conditions = "".join(f", {condition.summary}" for condition in model.conditions.values())
        precision = "bf16" if trainer.bf16 else "fp32 (products in TF32)" if multiplies_in_tf32(device) else "fp32"
        layout = ", channels last" if config.training.channels_last else ""
        compiled = ", compiled at the first step" if config.training.compile else ""
        size = count(model.denoiser.network, info.shape)
        place = f"{trainer.accelerator.num_processes} x {device}"
        conditions += ", standardized" if info.scale else ""
        self.say(f"data      {config.data.source}: {info.train} images of {shape}{conditions}, {info.heldout} held out")
        self.say(f"model     {size}, {precision} on {place}{layout}{compiled}")
        self.say(f"run       {model.run}" + (f", resumed at step {trainer.step}" if trainer.step else ""))
        self._progress = Progress(
            TextColumn("training "),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
        )
        self._steps, self._batch = config.training.steps, config.training.batch_size
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

    def finish(self, model: Model, training: float, total: float) -> None:
        self.close()
        self.say(f"{training:.1f} s of training, {total:.1f} s in all.")
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
