"""What a person asks for on the page, as the library takes it, and back from the metadata of a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.app.library import Entry, Library
from sfumato.config import GuidanceConfig, SamplingConfig, parse
from sfumato.errors import InputError
from sfumato.models.facts import Batch, all_facts_of, model_of, read_all_facts
from sfumato.models.model import Model
from sfumato.models.options import sampling_options

AS_TRAINED = "as trained"
"""The choice that leaves a setting as the model has it."""
SOLVERS = ("best", "ancestral", "ddim", "euler", "heun", "dpm++2m", "dpm++3m", "dpm++2m-sde", "unipc", "deis", "lms")
GRIDS = ("best", "uniform", "trailing", "quadratic", "log_snr", "karras")
MOST_PICTURES, MOST_STEPS, MOST_SEED = 16, 1000, 2**31 - 1
_HIGHEST, _MOST_SCALE = 1e9, 1000.0  # a noise level above all, a guidance scale above all
NO_CLASS = "any"
"""The choice of no class: each in turn, or as in the data."""


@dataclass
class Asked:
    """The values of the controls of a sampling, as the browser sends them: :func:`request` checks them."""

    model: Any
    prompt: Any = ""
    label: Any = NO_CLASS
    seed: Any = 0
    first: Any = 0
    count: Any = 4
    steps: Any = 0  # 0: as trained
    solver: Any = AS_TRAINED
    grid: Any = AS_TRAINED
    scale: Any = None
    low: Any = None
    high: Any = None
    restored: dict[str, Any] = field(default_factory=dict[str, Any])  # settings of a picture, under the controls


@dataclass(frozen=True)
class Request:
    """What is sampled.

    Attributes:
        entry: the model.
        sampling: the settings of its last stage.
        given: conditions by name, and the settings of an earlier stage by its name.
        prompt: the caption, of a model that takes one.
        seed, first, count: which samples.
    """

    entry: Entry
    sampling: SamplingConfig
    given: dict[str, Any]
    prompt: str | None
    seed: int
    first: int
    count: int

    @property
    def base_sampling(self) -> SamplingConfig:
        """The sampling settings of the base of a system, or of a single model."""
        base = self.entry.base
        return self.sampling if base is None else self.given[base]["sampling"]

    def with_base_sampling(self, sampling: SamplingConfig) -> Request:
        """The same with other settings there."""
        if self.entry.base is None:
            return replace(self, sampling=sampling)
        return replace(self, given={**self.given, self.entry.base: {"sampling": sampling}})

    def sample(self, model: Model) -> Tensor:
        """The images, ``(count, C, *space)`` in [-1, 1]."""
        how: dict[str, Any] = {"seed": self.seed, "first": self.first, "sampling": self.sampling, **self.given}
        if self.prompt is None:
            return model.sample(self.count, progress=False, **how)
        return torch.cat([images for _, images in model.generate_parts([self.prompt], count=self.count, **how)])

    def facts(self, model: Model) -> dict[str, Any]:
        """What made the images, for their metadata: enough for ``sfumato generate --like`` and for the page."""
        facts = all_facts_of(model, self.sampling, self.seed, self.given)
        if self.prompt is None:
            return facts
        return {**facts, "prompt": self.prompt, "batch": vars(Batch(1, 0, self.first, self.count, self.prompt))}


def whole(value: Any, low: int, high: int, name: str) -> int:
    """A whole number from the browser, between bounds."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is a whole number from {low} to {high:,}.") from None
    if not low <= number <= high:
        raise InputError(f"{name} lies from {low} to {high:,}; got {number:,}.")
    return number


def number(value: Any, low: float, high: float, name: str) -> float:
    """A number from the browser, between bounds."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not low <= found <= high:
        raise InputError(f"{name} is a number from {low:g} to {high:g}.")
    return found


def request(library: Library, asked: Asked) -> Request:
    """What is sampled, with every value from the browser checked."""
    entry = library.entry(asked.model)
    if not entry.samples:
        raise InputError(f"{entry.name} needs a picture to begin with; it is used in the tab Edit.")
    given = conditions(entry, asked.prompt, asked.label)
    prompt = None
    if entry.text is not None:
        prompt = given.pop(entry.text, None)
        if prompt is None:
            raise InputError("Say in the prompt what to draw, such as: a small red circle above a large blue square")
    base = _settings(entry.sampling, asked)
    last = base if entry.base is None else _restored(asked, "last", entry.last)
    if entry.base is not None:
        given[entry.base] = {"sampling": base}
        others = asked.restored.get("others", {})
        given |= {stage: {"sampling": parse(SamplingConfig, how)} for stage, how in others.items()}
    seed, first = whole(asked.seed, 0, MOST_SEED, "The seed"), whole(asked.first, 0, MOST_SEED, "The index")
    return Request(entry, last, given, prompt, seed, first, whole(asked.count, 1, MOST_PICTURES, "The count"))


def conditions(entry: Entry, prompt: Any, label: Any) -> dict[str, Any]:
    """The prompt and the class that a model is given, by the names of its conditions; one that is left out is not."""
    given: dict[str, Any] = {}
    words = " ".join(str(prompt or "").split())[:500]
    if entry.text is not None and words:
        given[entry.text] = words
    name = entry.condition("label")
    if name is not None and label != NO_CLASS:
        if label not in entry.classes:
            raise InputError(f"There is no class {label!r}; choose one of the list.")
        given[name] = label
    return given


def _restored(asked: Asked, name: str, usual: SamplingConfig) -> SamplingConfig:
    return parse(SamplingConfig, asked.restored[name]) if name in asked.restored else usual


def _settings(base: SamplingConfig, asked: Asked) -> SamplingConfig:
    """The sampling settings of the base."""
    base = _restored(asked, "base", base)
    options: dict[str, Any] = {}
    if asked.steps:
        options["steps"] = whole(asked.steps, 1, MOST_STEPS, "The number of steps")
    for name, value, known in (("solver", asked.solver, SOLVERS), ("grid", asked.grid, GRIDS)):
        if value == AS_TRAINED:
            continue
        if value not in known:
            raise InputError(f"There is no {name} {value!r}; choose one of the list.")
        options[name] = value
    if asked.scale is not None:
        guidance = base.guidance.model_dump()
        low, high = _level(asked.low, 0.0), _level(asked.high, _HIGHEST)
        scale = number(asked.scale, 0.0, _MOST_SCALE, "The guidance scale")
        interval = None if (low, high) == (0.0, _HIGHEST) else (low, high)
        guided = {"rescale": guidance["rescale"], "interval": interval} if scale != 1.0 else {"rescale": 0.0}
        options["guidance"] = {**guidance, "interval": None, **guided, "scale": scale}
    return sampling_options(base, options)[0]


def _level(value: Any, usual: float) -> float:
    """An end of the interval of guidance, which may be left out."""
    empty = value is None or not str(value).strip()
    return usual if empty else number(value, 0.0, _HIGHEST, "An end of guidance, a noise level,")


def ends(guidance: GuidanceConfig) -> tuple[str, str]:
    """The ends of its interval as the controls show them."""
    low, high = guidance.interval or (0.0, _HIGHEST)
    return f"{low:g}" if low > 0.0 else "", f"{high:g}" if high < _HIGHEST else ""


def restored(library: Library, path: Path) -> Asked:
    """What made a picture, from its metadata; a model is found among those of the page."""
    facts = read_all_facts(path)
    folder = model_of(facts)
    entry = next((one for one in library.refresh().values() if folder and one.path.resolve() == folder.resolve()), None)
    if entry is None:
        raise InputError(
            f"The model that made it, {facts['model']}, is not on this page; open the page with its folder."
        )
    settings: dict[str, Any] = facts["settings"]
    own = {key: value for key, value in settings.items() if key in SamplingConfig.model_fields}
    stages = {key: value for key, value in settings.items() if key not in own}
    last = parse(SamplingConfig, own)
    base = last
    if entry.base is not None:
        base = parse(SamplingConfig, stages.pop(entry.base, entry.sampling.model_dump()))
    for how in (last, base, *(parse(SamplingConfig, one) for one in stages.values())):
        if how.guidance.weak_run is not None or how.guidance.classifier is not None:
            raise InputError("This picture was guided by a second model, which the page does not do.")
    given: Mapping[str, Any] = facts.get("given") or {}
    name = entry.condition("label")
    low, high = ends(base.guidance)
    return Asked(
        entry.name,
        prompt=str(facts.get("prompt") or next(iter(facts.get("prompts", [])), "")),
        label=str(given.get(name, NO_CLASS)) if name is not None else NO_CLASS,
        seed=facts["seed"],
        first=facts.get("index", facts.get("first", 0)),
        count=1,
        steps=base.steps,
        scale=base.guidance.scale,
        low=low,
        high=high,
        restored={
            "base": base.model_dump(mode="json"),
            "last": last.model_dump(mode="json"),
            "others": stages,
        },
    )
