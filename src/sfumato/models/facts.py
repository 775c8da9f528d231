"""How a picture was made, for its metadata, and whether it can be made again."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato import pretrained
from sfumato.config import SamplingConfig, parse
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.pictures import read_facts
from sfumato.models.model import Model

_OWN = "sfumato:"
"""What the metadata call a model that comes with sfumato, before its name."""


def facts_of(model: Model, sampling: SamplingConfig, seed: int, **more: Any) -> dict[str, Any]:
    """How images are made, in short; ``more`` are other options, of which None is left out."""
    facts = {
        "model": None if model.run is None else str(model.run),
        "step": model.step,
        "seed": seed,
        "steps": sampling.steps,
        "sampler": sampling.sampler.kind,
        "grid": sampling.grid.kind,
        "guidance": sampling.guidance.scale,
        "settings": sampling.model_dump(mode="json", exclude_defaults=True),
        **{name: str(value) if isinstance(value, Path) else value for name, value in more.items()},
    }
    return {name: value for name, value in facts.items() if value is not None}


def all_facts_of(model: Model, sampling: SamplingConfig, seed: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the pictures of one call have in common, enough to make them again.

    Args:
        model: the model, or the system of several.
        sampling: the settings of its last stage.
        seed: the seed of the noise.
        given: the conditions, and for a system the settings of earlier stages: ``{"base": {"sampling": ...}}``.
    """
    from sfumato import __version__

    settings = {**sampling.model_dump(mode="json")}
    settings |= {name: given[name]["sampling"].model_dump(mode="json") for name in model.stages if name in given}
    own = model.run is not None and model.run.parent == Path(pretrained.__file__).parent
    conditions = {name: value for name, value in given.items() if name not in model.stages}
    more: dict[str, Any] = {"settings": settings, "fingerprint": fingerprints(model, settings)}
    more |= {"given": conditions or None, "device": model.device.type, "sfumato": __version__}
    facts = facts_of(model, sampling, seed, **more)
    return facts | ({"model": f"{_OWN}{model.run.name}"} if own and model.run is not None else {})


def fingerprints(model: Model, settings: Mapping[str, Any]) -> dict[str, str]:
    """What tells the weights of each stage from others, and what was fitted to them where these settings use it."""
    *_, last = model.stages or ["model"]
    found: dict[str, str] = {}
    for name, stage in (model.stages or {"model": model}).items():
        own = {k: v for k, v in settings.items() if k not in model.stages} if name == last else settings.get(name, {})
        sampling = parse(SamplingConfig, own, trust=True)
        found[name] = stage.fingerprint
        if sampling.tuned(stage.fitted).needs_plan or sampling.needs_gamma:
            fitted = json.dumps(stage.fitted.to_dict(), sort_keys=True, default=str)
            found[name] += f"+{hashlib.sha256(fitted.encode()).hexdigest()}"
    return found


def read_all_facts(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """What :func:`all_facts_of` wrote into a picture.

    Metadata are not trusted: settings that name code of other packages are refused unless ``trust`` is true.
    """
    facts = read_facts(path)
    if not {"seed", "settings", "model"} <= facts.keys() or not isinstance(facts["settings"], dict):
        raise InputError(f"{path.name} does not hold all settings that made it, and can't be made again.")
    own = {key: value for key, value in facts["settings"].items() if key in SamplingConfig.model_fields}
    stages = {key: value for key, value in facts["settings"].items() if key not in own}
    for settings in (own, *stages.values()):
        parse(SamplingConfig, settings, origin=f"{path.name}, its settings", trust=trust)
    return facts


def model_of(facts: Mapping[str, Any]) -> Path | None:
    """The model that facts name, if it is here."""
    name = str(facts.get("model", ""))
    if name.startswith(_OWN):
        return pretrained.path(name.removeprefix(_OWN))
    return Path(name) if name and Path(name).is_dir() else None


def check_same(model: Model, facts: Mapping[str, Any], like: Path, *, moved: bool) -> None:
    """Refuse weights other than those that made a picture, or warn if they were asked for."""
    if fingerprints(model, facts["settings"]) != facts.get("fingerprint"):
        steps = f"(step {model.step:,}) than those that made {like} (step {facts.get('step', '?')})"
        if not moved:
            raise InputError(
                f"{model.run} holds other weights {steps}; take them all the same, or others, with --model."
            )
        warnings.warn(f"{model.run} holds other weights {steps}: the pictures differ.", SfumatoWarning, stacklevel=3)
    if facts.get("device") != model.device.type:
        made = f"{like} was made on {facts.get('device')}, and this is {model.device.type}"
        warnings.warn(f"{made}: the pictures are the same to rounding.", SfumatoWarning, stacklevel=3)


@dataclass(frozen=True)
class Batch:
    """What decides the last bits of a picture besides itself: how many are computed with it, and where it stands.

    Attributes:
        prompts: how many.
        place: which of them is its own, from 0.
        first: the first index.
        count: how many indices.
        longest: the prompt with the most tokens, to which the others are padded.
    """

    prompts: int
    place: int
    first: int
    count: int
    longest: str
