"""What can be seen of a training, also of one that another process runs: all of it is read from its run directory."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sfumato.app.curves import Curve, read_curve
from sfumato.app.training import Trainings
from sfumato.config import Config
from sfumato.errors import InputError
from sfumato.io.files import read_json
from sfumato.metrics.report import number
from sfumato.models.storage import read_config
from sfumato.runs.budget import words_of
from sfumato.training.checkpoint import Checkpoints

_BETTER = {"lower": "↓", "higher": "↑", "floor": "→"}
_LAST = 16  # lines of a log that are shown


@dataclass(frozen=True)
class View:
    """The present state of a run.

    Attributes:
        name: of the run.
        state: ``starting``, ``running``, ``evaluating`` or ``stopping`` in the process of the page, ``elsewhere`` in
            another one; ``complete``, ``stopped`` or ``failed``.
        step, steps: the last step that is known, and how many there are to be.
        sentence: the state in words.
        curve: the losses.
        samples: the newest sheet of samples, if there is one.
        resumable: whether it can go on.
    """

    name: str
    state: str
    step: int
    steps: int
    sentence: str
    curve: Curve
    samples: Path | None
    resumable: bool = False

    @property
    def changing(self) -> bool:
        """Whether more is to be seen in a moment."""
        return self.state in ("starting", "running", "evaluating", "stopping", "elsewhere")


def names(trainings: Trainings) -> list[tuple[str, str]]:
    """What to show and the name of every run, also of the stages of systems; the newest first."""
    runs = trainings.runs
    found = [*runs.glob("*/config.json"), *runs.glob("*/stages/*/config.json")]
    times: dict[str, float] = {}
    for path in found:
        name = path.parent.relative_to(runs).as_posix()
        if not name.startswith(".") and _config(path) is not None:
            times[name] = modified(path)
    shown = {name: _title(trainings, name) for name in sorted(times, key=lambda name: -times[name])}
    # one that starts or that failed at its start has no directory yet
    early = [name for name in (trainings.running, *trainings.failed) if name is not None and name not in shown]
    shown = {**{name: _title(trainings, name) for name in early}, **shown}
    return [(title, name) for name, title in shown.items()]


def look(trainings: Trainings, name: str) -> View:
    """The state of a run.

    Raises:
        InputError: there is no such run, or none any more.
    """
    running, folder = trainings.running, trainings.runs / name
    if name not in (running, *trainings.said) and name not in [known for _, known in names(trainings)]:
        raise InputError(f"There is no run {name!r} any more; choose another one.")
    config, new = _config(folder / "config.json"), name == running and not trainings.resumed
    if config is None or (new and modified(folder / "config.json") < trainings.began - 1.0):
        # what is there is what will be replaced
        if name == running:
            state = "stopping" if trainings.stopping else "starting"
            return View(name, state, 0, 0, _preparing(trainings, name), Curve(), None)
        if config is None:
            gone = "Nothing is saved: it was stopped before its first step, or its folder is gone."
            state = "failed" if name in trainings.failed else "stopped"
            return View(name, state, 0, 0, trainings.failed.get(name, gone), Curve(), None)
    curve, steps, saved = (
        read_curve(folder / "metrics.jsonl"),
        config.training.steps,
        _saved(folder),
    )
    samples = max((folder / "samples").glob("step-*.png"), default=None)
    if name == running:
        state, sentence = _of_page(trainings, config, curve)
        return View(name, state, curve.step, steps, sentence, curve, samples)
    known: Any = {"curve": curve, "samples": samples, "steps": steps}
    if saved is not None and saved >= steps:
        why = trainings.failed.get(name)
        offered = "" if "/" in name or config.classifies or config.contrasts else " The other tabs offer this model."
        failed = "" if why is None else f" The last attempt failed: {why}"
        sentence = f"Complete: {saved:,} steps.{offered}{failed}"
        return View(name, "complete", saved, sentence=sentence, **known)
    if _held(folder):
        sentence = f"Being trained by another process. {_pace(config, curve)}".strip()
        return View(name, "elsewhere", curve.step, sentence=sentence, **known)
    if saved is None and (folder / "model.safetensors").is_file():
        return View(name, "complete", 0, sentence="A model that was imported, not trained here.", **known)
    whole, why = "/" not in name, trainings.failed.get(name)
    kept = f"Saved at step {saved:,} of {steps:,}." if saved else "Nothing was saved yet."
    again = f" Resume {'continues from there' if saved else 'starts from the beginning'}." if whole else ""
    sentence, state = (f"{kept}{again}", "stopped") if why is None else (f"{why} {kept}", "failed")
    return View(name, state, saved or 0, sentence=sentence, resumable=whole, **known)


def _saved(run: Path) -> int | None:
    """The step of the newest checkpoint."""
    return Checkpoints(run / "checkpoints").newest()


def log(trainings: Trainings, name: str) -> str:
    """The last lines of the log of a run, after what its process warned of."""
    try:
        lines = (trainings.runs / name / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    output = trainings.output(name)
    if name == trainings.name and (not lines or name in trainings.failed):
        return "\n".join(output[-_LAST:])
    warned = [line for line in output if line.startswith("sfumato: ")]
    return "\n".join([*warned[-10:], *lines[-_LAST:]])


def evaluation(run: Path) -> list[list[str]]:
    """The rows of ``evaluation.json``: the measure, its value with its error, and what real pictures reach."""
    path = run / "evaluation.json"
    try:
        rows: list[dict[str, Any]] = read_json(path)["rows"] if path.is_file() else []
        return [_cells(row) for row in rows if row["value"] is not None]
    except (InputError, KeyError, TypeError, AttributeError):
        return []


def _cells(row: dict[str, Any]) -> list[str]:
    title = f"{row['title']} {_BETTER.get(row['better'], '')}"
    return [title, number(row["value"], row["error"]), number(row["floor"], row["floor_error"])]


def _of_page(trainings: Trainings, config: Config, curve: Curve) -> tuple[str, str]:
    """The state of the training of the page, and its sentence."""
    if trainings.stopping:
        return "stopping", "Saving a checkpoint"
    if curve.step >= config.training.steps:
        lines = [line for line in trainings.output(trainings.name) if line.rstrip().endswith("...")]
        return "evaluating", lines[-1].strip() if lines else ""
    return "running", _pace(config, curve)


def _pace(config: Config, curve: Curve) -> str:
    if not curve.seconds:
        return ""
    left = curve.seconds * (config.training.steps - curve.step)
    return f"{config.training.batch_size / curve.seconds:,.0f} images/s, about {words_of(left)} of training left."


def _preparing(trainings: Trainings, name: str) -> str:
    """What a process says before it trains, such as how many steps fit the time."""
    lines = [line.strip() for line in trainings.output(name) if line.strip()]
    return "Reading the data" if not lines else lines[-1].removeprefix("sfumato: ")


def _title(trainings: Trainings, name: str) -> str:
    if name == trainings.running:
        return f"{name} (training now)"
    config = _config(trainings.runs / name / "config.json")
    if config is None:
        return f"{name} (failed)"
    saved = _saved(trainings.runs / name)
    if saved is None:
        return f"{name} (failed)" if name in trainings.failed else name
    return name if saved >= config.training.steps else f"{name} (step {saved:,} of {config.training.steps:,})"


def _held(run: Path) -> bool:
    """Whether a process has taken the directory."""
    path = run / ".lock"
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def modified(path: Path | None) -> float:
    """When a file was last written; 0 of none."""
    try:
        return path.stat().st_mtime if path is not None else 0.0
    except OSError:
        return 0.0


def _config(path: Path) -> Config | None:
    """The settings of a run; None where there are none that this version reads."""
    time = modified(path)
    return _read_config(path, time) if time else None


@functools.lru_cache(maxsize=512)
def _read_config(path: Path, time: float) -> Config | None:
    try:
        return read_config(path.parent)[0]
    except InputError:
        return None
