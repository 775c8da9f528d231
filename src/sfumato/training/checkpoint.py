"""The resume states of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.tensors import read_tensors, write_tensors


class Checkpoints:
    """The resume states of a run: a folder of ``step-N.safetensors``, of which the newest few are kept."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """The states, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def newest(self) -> int | None:
        """The step of the newest state, if there is one."""
        steps = (path.stem.removeprefix("step-") for path in self.paths())
        return next((int(step) for step in steps if step.isdecimal()), None)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.safetensors"

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` and forget the oldest beyond those kept."""
        path = self._path(step)
        write_tensors(path, tensors, {**meta, "step": step})
        # a state of a later step is a broken one that resuming skipped: it must not outlive this one
        later, earlier = [p for p in self.paths() if p > path], [p for p in self.paths() if p < path]
        for old in later + earlier[self.keep - 1 :]:
            old.unlink(missing_ok=True)
        return path

    def latest(
        self, check: Callable[[dict[str, Tensor], dict[str, Any]], None] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that is whole, None if there is no state; broken ones are warned of, an error if all are.

        Args:
            check: what else a state must pass, by not raising an InputError.
        """
        broken: list[str] = []
        for path in self.paths():
            try:
                state = read_tensors(path)
                step = state[1].get("step")
                if not isinstance(step, int) or path != self._path(step):
                    raise InputError(f"{path} is not what its name says: it holds the step {step!r}.")
                if check is not None:
                    check(*state)
            except InputError as error:
                broken.append(str(error) if str(path) in str(error) else f"{path}: {error}")
                continue
            if broken:
                warnings.warn(f"{' '.join(broken)} Using the older {path.name}.", SfumatoWarning, stacklevel=2)
            return state
        if broken:
            raise InputError(f"No checkpoint of this run is whole. {' '.join(broken)}")
        return None
