"""A run directory and the training in it: checkpoints, metrics, stopping and resuming, with any loss."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock, Timeout

from sfumato.errors import InputError
from sfumato.io.files import atomic_write, json_object, sweep
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.loop import Diverged, Record, Trainer, stopping_on_signals


class Interrupted(Exception):
    """The training was asked to stop; what it saved, if anything, is at ``step`` and can be resumed."""

    def __init__(self, run: Path, step: int | None, signal_number: int, complete: bool = False) -> None:
        if step is None:
            sentence = "Stopped before the first step; there was nothing to save."
        elif complete:
            sentence = f"Stopped; the training is complete and saved. Evaluate it with: sfumato evaluate {run}"
        else:
            sentence = f"Stopped at step {step}; resume with: sfumato train --resume {run}"
        super().__init__(sentence)
        self.run, self.step, self.signal_number = run, step, signal_number


FILES = frozenset({"config.json", "model.safetensors", "metrics.jsonl", "evaluation.json", "fitted.json"})
"""What a run directory has; a person may add to it."""


class RunDirectory:
    """The state of a training on the disk.

    Args:
        folder: the directory.
        accelerator: the processes, of which the main one writes.
        keep: checkpoints that are kept.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, *, keep: int = 2) -> None:
        self.folder, self.accelerator, self.main = folder, accelerator, accelerator.is_main_process
        self.checkpoints = Checkpoints(folder / "checkpoints", keep)
        self.metrics = folder / "metrics.jsonl"
        self.lock: FileLock | None = None

    def create(self, overwrite: bool) -> None:
        """Make sure that the directory is free, or make it so, and take it for this process.

        One that holds no more than what a killed start leaves is free.
        """
        if not self.main:
            return
        there, folder = self.check_free(overwrite), self.folder
        self._lock()
        sweep(folder)
        for aside in folder.parent.glob(f".{folder.name}.overwritten-*"):
            shutil.rmtree(aside, ignore_errors=True)
        if not there:
            return
        # out of the way in one move: a crash leaves the old run or none, never a part of it
        aside = folder.with_name(f".{folder.name}.overwritten-{os.getpid()}")
        folder.rename(aside)
        self._lock()
        shutil.rmtree(aside, ignore_errors=True)

    def check_free(self, overwrite: bool) -> set[str]:
        """An error if the directory can't be had; the names of what would be overwritten in it."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; choose another directory with --run.")
        there = {path.name for path in folder.glob("*") if not _is_remains(path)}
        if there and not overwrite:
            raise InputError(
                f"{folder} already exists; go on with --resume {folder}, replace it with "
                "--overwrite, or choose another with --run."
            )
        if there and not there & FILES:
            raise InputError(f"{folder} is not a run of Sfumato, so --overwrite will not delete it.")
        return there

    def prepare(self, resume: bool, overwrite: bool) -> None:
        """Refuse a directory that can't be had, changing nothing; one that is resumed is taken for this process."""
        if not resume:
            self.check_free(overwrite)
        elif self.main and self.lock is None:
            self._lock()

    def _lock(self) -> None:
        """Take the directory for this process; the system lets go of it when the process ends in any way."""
        if self.lock is not None:
            self.lock.release()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / _LOCK)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.folder} is being trained by another process; wait for it, or choose another directory with "
                "--run."
            ) from None

    def restore(self, trainer: Trainer, steps: int) -> None:
        """Take up the state of the newest whole checkpoint, for a training to ``steps``."""
        self.prepare(True, False)
        if self.main:
            sweep(self.folder)
        state = self.checkpoints.latest(trainer.check)
        # a run that was stopped before its first checkpoint begins again: all random numbers are the same
        if state is not None:
            trainer.restore(*state)
        if trainer.step > steps:
            raise InputError(f"{self.folder} is at step {trainer.step}, beyond the {steps} steps asked for.")
        if self.main:
            # what was logged after the checkpoint will be done again
            text = self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.exists() else ""
            lines = [line for line in text.splitlines() if 0 < _logged_step(line) <= trainer.step]
            kept = "".join(line + "\n" for line in lines)
            atomic_write(self.metrics, lambda temporary: temporary.write_text(kept, encoding="utf-8"))

    @property
    def saved_step(self) -> int | None:
        """The step of the newest checkpoint, if this process has the directory and there is one."""
        return self.checkpoints.newest() if self.lock is not None else None

    def close(self) -> None:
        """Let go of the directory."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

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
                    self.log(record.step, dataclasses.asdict(record))
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
            step = self.saved_step
            kept = f"the checkpoint of step {step} in {self.folder} is whole"
            error.saved = "there was no checkpoint yet" if step is None else kept
            raise

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``, and its numbers to the tracker of the processes, if they have one."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.track(step, values)

    def log_once(self, step: int, values: Mapping[str, Any]) -> None:
        """As :meth:`log`, unless the line is there: a run that was complete and is resumed evaluates again."""
        text = self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.exists() else ""
        if json.dumps({"step": step, **values}) not in text.splitlines():
            self.log(step, values)

    def track(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers to the tracker of the processes, if they have one."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
        self.accelerator.log(numbers, step=step)


_LOCK = ".lock"


def _is_remains(path: Path) -> bool:
    """Whether a start that was killed can have left this."""
    return path.name == _LOCK or path.suffix == ".tmp" or (path.name == "checkpoints" and not any(path.iterdir()))


def _logged_step(line: str) -> int:
    step = (json_object(line) or {}).get("step")
    return step if type(step) is int else 0
