"""Trainings that the page starts: each a process of its own, ``sfumato train``, one at a time."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from sfumato.app import orders
from sfumato.app.orders import UPLOADS, Wanted, checked_name
from sfumato.errors import InputError

_LONGEST = 60.0  # seconds that the page waits, when it closes, for a checkpoint
_STOPPED = {sign * number + more for number in (1, 2, 15) for sign, more in ((-1, 0), (1, 128))}
"""How a process ends that was asked to (SIGHUP, SIGINT, SIGTERM), before or after it listens."""


class Trainings:
    """The trainings of a page: one at a time, of all who use it.

    Args:
        runs: the folder of the runs.
        folders: the folders of pictures that may be trained on, by name.

    Attributes:
        name: the run that is being trained, or was last.
        resumed: whether it goes on with a run that was there.
        began: when it was started, as :func:`time.time` says it.
        stopping: whether it was asked to stop.
        failed: why the last training of a run failed, by the name of the run.
        said: what the last training of a run printed, by the name of the run.
        completed: how many were completed.
    """

    def __init__(self, runs: Path, folders: Mapping[str, Path] | None = None) -> None:
        self.runs, self.folders = runs, dict(folders or {})
        self.name, self.resumed, self.began, self.stopping = "", False, 0.0, False
        self.failed, self.said = dict[str, str](), dict[str, list[str]]()
        self.completed = 0
        self._preparing: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()

    @property
    def running(self) -> str | None:
        """The run that is being trained now, if there is one."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._ended(self._process.returncode)
            return self.name if self._process is not None else None

    def start(self, wanted: Wanted) -> str:
        """Start a training; returns the name of its run."""
        with self._lock:
            self._require_none()
            name = checked_name(wanted.name) if wanted.name.strip() else orders.usual_name(wanted.data, self.runs)
            there = (self.runs / name).exists()
            if there and not wanted.replace:
                raise InputError(f"There is a run {name!r} already: choose another name, or tick that it is replaced.")
            arguments = orders.arguments(wanted)  # what is wrong with them is said before pictures are copied
            self._preparing = name
        try:
            # without the lock: thousands of pictures take a while, and others look on
            source = orders.source(wanted, self.folders, self.runs / UPLOADS / name)
            with self._lock:
                arguments = [source, "--run", str(self.runs / name), *arguments]
                self._launch(name, [*arguments, *(["--overwrite"] if there else [])], resumed=False)
        finally:
            self._preparing = None
        return name

    def resume(self, name: str) -> None:
        """Go on with a run that stopped."""
        with self._lock:
            self._require_none()
            if not (self.runs / checked_name(name) / "config.json").is_file():
                raise InputError(f"There is no run {name!r} any more; choose another one.")
            self._launch(name, ["--resume", str(self.runs / name)], resumed=True)

    def stop(self) -> None:
        """Ask the training to save a checkpoint and end; it does after the present step."""
        with self._lock:
            # a second signal would end it without a checkpoint
            if self.running is not None and self._process is not None and not self.stopping:
                self.stopping = True
                self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: int | float) -> bool:
        """Wait until nothing is trained any more; whether that was so in time."""
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        return self.running is None

    def close(self) -> None:
        """Stop what is being trained, and wait for its checkpoint."""
        if self.running is not None:
            print(f"Stopping the training of {self.runs / self.name}, which saves a checkpoint ...", flush=True)
            self.stop()
            self.wait(_LONGEST)

    def output(self, name: str) -> list[str]:
        """What the training of a run printed, line by line."""
        if self._process is None or name != self.name:
            return self.said.get(name, [])
        with contextlib.suppress(OSError):
            return self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return []

    @property
    def _log(self) -> Path:
        return self.runs / f".{self.name}.log"

    def _require_none(self) -> None:
        if (running := self.running or self._preparing) is not None:
            raise InputError(f"One training runs at a time, and {running!r} is running: wait for it, or stop it.")

    def _launch(self, name: str, arguments: list[str], *, resumed: bool) -> None:
        self.name, self.resumed, self.began, self.stopping = name, resumed, time.time(), False
        self.failed.pop(name, None)
        # the terminal of the page has a width, its sentences none
        environment = {**os.environ, "COLUMNS": "1000", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "sfumato", "train", *arguments]
        with orders.in_sentences("The training could not be started"):
            self.runs.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                # a session of its own: Ctrl-C in the terminal of the page is no signal to it
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        atexit.register(self.close)

    def _ended(self, code: int) -> None:
        self.said[self.name] = lines = self.output(self.name)
        with contextlib.suppress(OSError):
            self._log.unlink()
        self._process = None
        atexit.unregister(self.close)
        if code == 0:
            self.completed += 1
        elif code not in _STOPPED:
            self.failed[self.name] = _why(lines, code)


def _why(lines: list[str], code: int) -> str:
    """The sentence with which a training failed, as the command line says it."""
    if said := [line for line in lines if line.startswith("sfumato: ")]:
        return said[-1].removeprefix("sfumato: ")
    if code == -9:
        return "The system ended the process, as it does when memory runs out. Take smaller pictures or fewer at once."
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"The process ended with code {code}: {last[:300]}"
