"""A run directory and the training in it: checkpoints, metrics, stopping and resuming, with any loss."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sfumato.errors import InputError
from sfumato.io.files import atomic_write
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.loop import Diverged, Record, Trainer, stopping_on_signals


class Interrupted(Exception):
    """The training was asked to stop; it saved a checkpoint at ``step`` and can be resumed."""

    def __init__(self, run: Path, step: int, signal_number: int, complete: bool = False) -> None:
        super().__init__(
            f"Stopped; the training is complete and saved. Evaluate it with: sfumato evaluate {run}"
            if complete
            else f"Stopped at step {step}; resume with: sfumato train --resume {run}"
        )
        self.run, self.step, self.signal_number = run, step, signal_number


class RunDirectory:
    """The state of a training on the disk.

    Args:
        folder: the directory.
        accelerator: the processes, of which the main one writes.
        keep: checkpoints that are kept.
        tensorboard: also write TensorBoard events.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, *, keep: int = 2, tensorboard: bool = False) -> None:
        self.folder, self.accelerator, self.main = folder, accelerator, accelerator.is_main_process
        self.checkpoints = Checkpoints(folder / "checkpoints", keep)
        self.metrics = folder / "metrics.jsonl"
        self._events = _tensorboard() if tensorboard and self.main else None

    def create(self, overwrite: bool) -> None:
        """Make sure that the directory is free, or make it so."""
        if self.main and self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            if not overwrite:
                raise InputError(
                    f"{self.folder} is there already; go on with --resume {self.folder}, replace it with "
                    "--overwrite, or choose another with --run."
                )
            if not (self.folder / "config.json").is_file():
                raise InputError(f"{self.folder} is not a run of Sfumato, so --overwrite will not delete it.")
            shutil.rmtree(self.folder)

    def restore(self, trainer: Trainer, steps: int) -> None:
        """Take up the state of the newest whole checkpoint, for a training to ``steps``."""
        state = self.checkpoints.latest()
        # a run that was stopped before its first checkpoint begins again: all random numbers are the same
        if state is not None:
            trainer.restore(*state)
        if trainer.step > steps:
            raise InputError(f"{self.folder} is at step {trainer.step}, beyond the {steps} steps asked for.")
        if self.main:
            # what was logged after the checkpoint will be done again
            lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
            text = "".join(line + "\n" for line in lines if _logged_step(line) <= trainer.step)
            atomic_write(self.metrics, lambda temporary: _write(temporary, text))

    def train(
        self,
        trainer: Trainer,
        steps: int,
        *,
        checkpoint_every: int,
        log_every: int,
        after: Callable[[Record], None],
        save: Callable[[], None],
    ) -> float:
        """Train to ``steps``; returns the seconds that the optimizer steps took.

        Args:
            trainer: of any loss.
            steps: optimizer steps in all.
            checkpoint_every: steps between checkpoints.
            log_every: steps between lines of metrics.jsonl.
            after: called after each step.
            save: called with each checkpoint, by the main process, to write the model for use.
        """
        seconds, saved = 0.0, trainer.step
        events = None if self._events is None else self._events(str(self.folder / "tensorboard"))

        def checkpoint() -> None:
            if self.main:
                self.checkpoints.save(trainer.step, *trainer.state())
                save()
            self.accelerator.wait_for_everyone()

        with stopping_on_signals(trainer) as stopped, self._explaining():
            for record in trainer.run(steps):
                seconds += record.seconds
                last = record.step == steps
                if self.main and (record.step % log_every == 0 or last):
                    self._log(record, events)
                if record.step % checkpoint_every == 0 or last or trainer.stopping:
                    checkpoint()
                    saved = record.step
                after(record)
        if trainer.step < steps or stopped:
            if saved != trainer.step:
                checkpoint()
            raise Interrupted(
                self.folder, trainer.step, stopped[0] if stopped else signal.SIGINT, trainer.step >= steps
            )
        return seconds

    @contextmanager
    def _explaining(self) -> Generator[None]:
        """Say with a divergence what is left of the run."""
        try:
            yield
        except Diverged as error:
            paths = self.checkpoints.paths()
            kept = f"the checkpoint of step {int(paths[0].stem.removeprefix('step-'))}" if paths else ""
            error.saved = f"{kept} in {self.folder} is whole" if kept else "there was no checkpoint yet"
            raise

    def _log(self, record: Record, events: Any) -> None:
        values = dataclasses.asdict(record)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if events is not None:
            for name in ("loss", "grad_norm", "learning_rate", "ema_decay"):
                events.add_scalar(name, values[name], record.step)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _logged_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # a line that a crash cut off
        return 1 << 62


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            'training.tensorboard needs TensorBoard; install it with: pip install "sfumato[tensorboard]"'
        ) from None
    return SummaryWriter
