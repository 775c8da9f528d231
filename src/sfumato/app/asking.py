"""What a person asks for on the page, as the library takes it, and back from the metadata of a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.app.library import Entry, Library
from sfumato.config import GuidanceConfig, SamplingConfig, parse
from sfumato.errors import InputError
from sfumato.models.options import sampling_options

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.models.model import Model

AS_TRAINED = "as trained"
"""The choice that leaves a setting as the model has it."""
SOLVERS = ("best", "ancestral", "ddim", "euler", "heun", "dpm++2m", "dpm++3m", "dpm++2m-sde", "unipc", "deis", "lms")
GRIDS = ("best", "uniform", "trailing", "quadratic", "log_snr", "karras")
MOST_PICTURES, MOST_STEPS, MOST_SEED = 16, 1000, 2**31 - 1
_HIGHEST = 1e9  # a noise level above all
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
    def painting(self) -> SamplingConfig:
        """The settings of the stage that paints."""
        painter = self.entry.painter
        return self.sampling if painter is None else self.given[painter]["sampling"]

    def with_painting(self, sampling: SamplingConfig) -> Request:
        """The same with other settings of the stage that paints."""
        if self.entry.painter is None:
            return Request(self.entry, sampling, self.given, self.prompt, self.seed, self.first, self.count)
        given = {**self.given, self.entry.painter: {"sampling": sampling}}
        return Request(self.entry, self.sampling, given, self.prompt, self.seed, self.first, self.count)

    def sample(self, model: Model) -> Tensor:
        """The images, ``(count, C, *space)`` in [-1, 1]."""
        import torch

        how: dict[str, Any] = {"seed": self.seed, "first": self.first, "sampling": self.sampling, **self.given}
        if self.prompt is None:
            return model.sample(self.count, progress=False, **how)
        return torch.cat([images for _, images in model.generate_parts([self.prompt], count=self.count, **how)])

    def facts(self, model: Model) -> dict[str, Any]:
        """What made the images, for their metadata: enough for ``sfumato generate --like`` and for the page."""
        from sfumato.models.facts import Batch, all_facts_of

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


def request(library: Library, asked: Asked) -> Request:
    """What is sampled, with every value from the browser checked."""
    entry = library.entry(asked.model)
    if not entry.samples:
        raise InputError(f"{entry.name} needs a picture to begin with; it is used in the tab Edit.")
    given: dict[str, Any] = {}
    prompt = None
    if entry.text is not None:
        prompt = " ".join(str(asked.prompt or "").split())[:500]
        if not prompt:
            raise InputError("Say in the prompt what to draw, such as: a small red circle above a large blue square")
    name = entry.condition("label")
    if name is not None and asked.label != NO_CLASS:
        if asked.label not in entry.classes:
            raise InputError(f"There is no class {asked.label!r}; choose one of the list.")
        given[name] = asked.label
    painting = _settings(entry.sampling, asked)
    last = painting if entry.painter is None else _restored(asked, "last", entry.last)
    if entry.painter is not None:
        given[entry.painter] = {"sampling": painting}
        others = asked.restored.get("others", {})
        given |= {stage: {"sampling": parse(SamplingConfig, how)} for stage, how in others.items()}
    seed, first = whole(asked.seed, 0, MOST_SEED, "The seed"), whole(asked.first, 0, MOST_SEED, "The index")
    return Request(entry, last, given, prompt, seed, first, whole(asked.count, 1, MOST_PICTURES, "The count"))


def _restored(asked: Asked, name: str, usual: SamplingConfig) -> SamplingConfig:
    return parse(SamplingConfig, asked.restored[name]) if name in asked.restored else usual


def _settings(base: SamplingConfig, asked: Asked) -> SamplingConfig:
    """The settings of the stage that paints."""
    base = _restored(asked, "painting", base)
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
        low, high = (_level(asked.low, 0.0), _level(asked.high, _HIGHEST))
        interval = None if (low, high) == (0.0, _HIGHEST) else (low, high)
        guided = {"rescale": guidance["rescale"], "interval": interval} if asked.scale != 1.0 else {"rescale": 0.0}
        options["guidance"] = {**guidance, "interval": None, **guided, "scale": float(asked.scale)}
    return sampling_options(base, options)[0]


def _level(value: Any, usual: float) -> float:
    """An end of the interval of guidance, which may be left out."""
    if value is None or not str(value).strip():
        return usual
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"The ends of guidance are noise levels, numbers such as 0.1 and 5; got {value!r}.") from None


def ends(guidance: GuidanceConfig) -> tuple[str, str]:
    """The ends of its interval as the controls show them."""
    low, high = guidance.interval or (0.0, _HIGHEST)
    return f"{low:g}" if low > 0.0 else "", f"{high:g}" if high < _HIGHEST else ""


def restored(library: Library, path: Path) -> Asked:
    """What made a picture, from its metadata; a model is found among those of the page."""
    from sfumato.models.facts import model_of, read_all_facts

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
    painting = last
    if entry.painter is not None:
        painting = parse(SamplingConfig, stages.pop(entry.painter, entry.sampling.model_dump()))
    for how in (last, painting, *(parse(SamplingConfig, one) for one in stages.values())):
        if how.guidance.weak_run is not None or how.guidance.classifier is not None:
            raise InputError("This picture was guided by a second model, which the page does not do.")
    given: dict[str, Any] = facts.get("given") or {}
    name = entry.condition("label")
    low, high = ends(painting.guidance)
    return Asked(
        entry.name,
        prompt=str(facts.get("prompt") or next(iter(facts.get("prompts", [])), "")),
        label=str(given.get(name, NO_CLASS)) if name is not None else NO_CLASS,
        seed=facts["seed"],
        first=facts.get("index", facts.get("first", 0)),
        count=1,
        steps=painting.steps,
        scale=painting.guidance.scale,
        low=low,
        high=high,
        restored={
            "painting": painting.model_dump(mode="json"),
            "last": last.model_dump(mode="json"),
            "others": stages,
        },
    )
