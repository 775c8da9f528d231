"""The models that the page offers: those that come with the package, and runs and systems in folders.

A model is asked for by its name, never by a path, so that nobody who only sees the page can read other folders.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sfumato import pretrained
from sfumato.config import SamplingConfig
from sfumato.errors import InputError
from sfumato.models.folders import load
from sfumato.models.model import Model
from sfumato.models.storage import Info, is_system, read_config, read_system, stage_of

_LOADED = 3
"""Models that stay in memory."""


@dataclass(frozen=True)
class Entry:
    """A model as the page knows it, read from its configuration alone.

    Attributes:
        name: what it is called on the page.
        path: its folder.
        shape: ``(C, *space)`` of what it makes.
        conditions: the settings of its conditions, by name, of all stages.
        base: the first stage that makes pictures, whose sampling settings the page shows; None for a single model.
        sampling: the sampling settings of that stage.
        last: the sampling settings of the last stage.
        system: ``cascade``, ``imagen`` or ``unclip``; None for a single model.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    conditions: dict[str, Any]
    sampling: SamplingConfig
    last: SamplingConfig
    base: str | None = None
    system: str | None = None

    def condition(self, kind: str) -> str | None:
        """The name of its condition of that kind, if it has one."""
        return next((name for name, one in self.conditions.items() if one.kind == kind), None)

    @property
    def text(self) -> str | None:
        """The name of its caption."""
        return self.condition("text")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""
        name = self.condition("label")
        return () if name is None else self.conditions[name].names

    @property
    def guided(self) -> bool:
        """Whether it knows the null condition, away from which it can be guided."""
        return any(one.drop > 0.0 for one in self.conditions.values())

    @property
    def upscales(self) -> bool:
        """Whether it enlarges a picture that it is given."""
        return self.system is None and self.condition("low_resolution") is not None

    @property
    def samples(self) -> bool:
        """Whether it makes something without being given a picture or an embedding."""
        needed = ("low_resolution", "embedding", "tokens")
        return self.system is not None or not any(one.kind in needed for one in self.conditions.values())

    @property
    def edits(self) -> bool:
        """Whether inpainting and the like work with it: a single model of pictures."""
        return self.system is None and self.samples and self.pictures

    @property
    def pictures(self) -> bool:
        """Whether it makes pictures that can be shown as such."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)

    @property
    def subject(self) -> Path:
        """The run that figures of the lecture are about: of a system its base."""
        return self.path if self.base is None else stage_of(self.path, self.base)

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        if self.upscales:
            return f"{self.name} (makes pictures larger)"
        what = {"imagen": "text to image, ", "unclip": "text to image by embeddings, "}.get(self.system or "", "")
        what = what or ("text to image, " if self.text else f"{len(self.classes)} classes, " if self.classes else "")
        return f"{self.name} ({what}{size})"


@dataclass
class Library:
    """The models in some folders, read again at every :meth:`refresh`.

    Args:
        runs: the folder of runs, each of whose folders may hold a model.
        named: folders of runs or systems that are offered first.
        device: where models are loaded; by default a GPU if there is one.
    """

    runs: Path
    named: Sequence[Path] = ()
    device: str | None = None
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    _models: OrderedDict[tuple[Path, float], Model] = field(default_factory=OrderedDict[tuple[Path, float], Model])
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for path in self.named:
            _entry(path.name, path)  # what can't be read is said before the page opens
        self.refresh()

    def refresh(self) -> dict[str, Entry]:
        """The models that are there now: those named, the runs, those that come with the package."""
        found: dict[str, Entry] = {}
        folders = [*self.named]
        if self.runs.is_dir():
            folders += sorted(path for path in self.runs.iterdir() if path.is_dir() and path not in self.named)
        for path in folders:
            self._add(found, str(path), path)
        for name in pretrained.SAID:
            self._add(found, name, pretrained.path(name))
        self.entries = found
        return found

    def _add(self, found: dict[str, Entry], name: str, path: Path) -> None:
        try:
            entry = _entry(name, path)
        except InputError:
            return  # no run, one of another version, or one that is being written
        if entry is not None:
            found[name] = entry

    def entry(self, name: str | None) -> Entry:
        """The model of that name."""
        if name not in self.entries:
            self.refresh()
        if name not in self.entries:
            raise InputError(f"There is no model {name!r} any more; choose another one." if name else "Choose a model.")
        return self.entries[name]

    def choices(self, *able: str) -> list[tuple[str, str]]:
        """What to show and the name, of the models that are ``able`` to do something: properties of an entry."""
        return [(str(e), e.name) for e in self.entries.values() if any(getattr(e, what) for what in able)]

    def load(self, name: str | None, *, stage: str | None = None) -> Model:
        """A model, ready to sample; the last few stay in memory.

        Args:
            name: one of the :attr:`entries`.
            stage: of a system, one of its stages.
        """
        entry = self.entry(name)
        path = entry.path if stage is None else stage_of(entry.path, stage)
        files = list(path.rglob("model.safetensors"))
        if not files:
            raise InputError(f"{path} has no weights any more, or none yet; choose another model.")
        key = (path, max(file.stat().st_mtime for file in files))
        with self._lock:
            if key not in self._models:
                device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
                self._models[key] = load(path, device, untrained=True)
            self._models.move_to_end(key)
            while len(self._models) > _LOADED:
                self._models.popitem(last=False)
            return self._models[key]


def _entry(name: str, path: Path) -> Entry | None:
    """What a folder holds, by its configuration; None for a model that makes no samples, such as a classifier."""
    if not is_system(path):
        config, info = read_config(path)
        if config.classifies or config.contrasts:
            return None
        how = config.sampling
        return Entry(name, path, info.shape, dict(info.conditions), how, how)
    system = read_system(path)
    stages: dict[str, tuple[Any, Info]] = {one: read_config(stage_of(path, one)) for one in system.stages}
    conditions = {key: one for _, info in reversed(stages.values()) for key, one in info.conditions.items()}
    base = next(one for one, (_, info) in stages.items() if len(info.shape) == 3)
    last, info = stages[system.stages[-1]]
    return Entry(name, path, info.shape, conditions, stages[base][0].sampling, last.sampling, base, system.system)
