"""The configurations of the stages of a system: from recipes, or from a system that is there."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from sfumato.config import Config, merge, parse
from sfumato.errors import InputError, nearest
from sfumato.models.storage import read_config, read_system, stage_of
from sfumato.recipes import named

Settings = Mapping[str, Any]

SYSTEMS: dict[str, str | None] = {"cascade": None, "imagen": "text", "unclip": "text"}
"""The systems that can be trained, and the recipe that the stages of each start from; None for that of the data."""


def planned(
    over: Settings | None = None,
    *,
    system: str = "cascade",
    recipe: str | None = None,
    gpu: bool = True,
    trust: bool = False,
) -> dict[str, Config]:
    """How the stages of a new system are trained.

    Args:
        over: settings in place of those of the recipes: those of a stage by its name, and ``data`` of all of them.
        system: one of :data:`SYSTEMS`.
        recipe: the recipe that each starts from; by default the one that suits system and data.
        gpu: whether there is a GPU, for which the usual recipe is larger.
        trust: whether settings may name Python code of other packages.
    """
    if system not in SYSTEMS:
        raise InputError(f"There is no system {system!r}{nearest(system, SYSTEMS)}")
    common, stages = _changes(system)
    chosen = _checked(over, stages)
    shared = merge(common, chosen.get("data", {}))
    if (embedder := shared.pop("embedder", None)) is not None:
        stages = _embedded_by(str(Path(embedder).absolute()), stages, system)
    where: dict[str, Any] = {"source": shared.get("source"), "layout": shared.get("layout"), "gpu": gpu}
    values: dict[str, Any] = {}
    for name, changed in stages.items():
        usual = named(changed.get("recipe", recipe or SYSTEMS[system]), **where)
        changed = {key: value for key, value in changed.items() if key != "recipe"}
        values[name] = merge(merge(usual, changed), {"data": shared})
        if values[name]["data"].get("random_crop") is not None:
            raise InputError("The stages of a system are trained on whole images; leave --data.random-crop out.")
    for name in set(starts(values)) - set(starts(_merged(values, chosen))):
        # what would start from it starts from another run, or from nothing
        del values[name]
    if shared.get("flip"):
        # their directions would not turn
        values = {n: merge(v, {"data.edges": False}) if v["data"].get("edges") else v for n, v in values.items()}
    for name, scale in _scales(_merged(values, chosen)).items():
        if any(side % scale for side in _sides(shared.get("size"))):
            raise InputError(
                f"The images of the stage {name} have sides {scale} times smaller; choose a data.size that {scale} "
                f"divides, not {shared['size']}."
            )
        values[name] = merge(values[name], {"data.scale_down": scale})
        own = stages[name].get("model", {}).get("network", {})
        if (patch := values[name].get("model", {}).get("network", {}).get("patch")) and "patch" not in own:
            # as many positions in each stage, for images of whatever size
            values[name] = merge(values[name], {"model.network.patch": max(1, patch // scale)})
    return _parsed(_merged(values, chosen), trust)


def _embedded_by(embedder: str, stages: Mapping[str, Any], system: str) -> dict[str, Any]:
    """The stages with a contrastive model that is there, in place of the one that they would train."""
    own = {stage["data"]["embedder"] for stage in stages.values() if "embedder" in stage.get("data", {})}
    if not own:
        raise InputError(f"No stage of {system} is given embeddings; leave data.embedder out.")
    kept = {name: stage for name, stage in stages.items() if name not in own}
    return {
        name: merge(stage, {"data.embedder": embedder}) if "embedder" in stage.get("data", {}) else stage
        for name, stage in kept.items()
    }


def _changes(system: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of all stages of a new system, and what each changes in the ``recipe`` that it starts from.

    That can be a stage of another system, such as ``"imagen.up"``, with all that it changes.
    """
    file = files("sfumato.recipes").joinpath(f"{system}.toml").read_text(encoding="utf-8")
    stages: dict[str, Any] = tomllib.loads(file)
    common: dict[str, Any] = stages.pop("data", {})
    for name, changed in stages.items():
        other, _, stage = changed.get("recipe", "").partition(".")
        if stage:
            own = {key: value for key, value in changed.items() if key != "recipe"}
            stages[name] = merge(_changes(other)[1][stage], own)
    return common, stages


def stored(folder: str | Path, over: Settings | None = None, *, trust: bool = False) -> dict[str, Config]:
    """How the stages of a system that is there are trained: as their runs say, or as was planned.

    Args:
        folder: the system.
        over, trust: as for :func:`planned`.
    """
    system = read_system(folder)
    values: dict[str, Any] = {}
    for name in system.trained:
        run = stage_of(folder, name)
        if (run / "config.json").is_file():
            values[name] = read_config(run, trust=trust)[0].model_dump()
        elif name in system.settings:
            values[name] = system.settings[name]
        elif name not in system.before:  # those that start from it have its weights
            raise InputError(f"{folder} does not say how its stage {name!r} is trained; train it with --run {run}.")
    chosen = _checked(over, values)
    if "embedder" in chosen.get("data", {}):
        raise InputError("The stages of this system have their embeddings; leave data.embedder out.")
    values = {name: merge(value, {"data": chosen.get("data", {})}) for name, value in values.items()}
    return _parsed(_merged(values, chosen), trust)


def _checked(over: Settings | None, stages: Mapping[str, Any]) -> Settings:
    over = over or {}
    for name, settings in over.items():
        if name not in (*stages, "data"):
            raise InputError(f"{name!r} is no stage of this system{nearest(name, (*stages, 'data'))}")
        if name != "data" and "data" in settings:
            raise InputError(f"All stages are trained on the same data; give them once, as data, and not of {name!r}.")
        if name == "data" and "edges" in settings:
            raise InputError("Edges are for the stage that learns a layout, and not for all; leave data.edges out.")
    return over


def _merged(stages: Mapping[str, Settings], over: Settings) -> dict[str, dict[str, Any]]:
    return {name: merge(settings, over.get(name, {})) for name, settings in stages.items()}


def _scales(stages: Mapping[str, Settings]) -> dict[str, int]:
    """How many times smaller the images of each stage are than those of the last.

    What is trained before the stages can have images that are smaller still than those of the first.
    """
    scales, scale = dict[str, int](), 1
    first = {stage.get("training", {}).get("init_from") for stage in stages.values()}
    for name in reversed(list(stages)):
        if stages[name].get("data", {}).get("embeddings"):
            continue  # those of the images of its contrastive model
        scales[name] = scale * (stages[name].get("data", {}).get("scale_down", 1) if name in first else 1)
        for condition in stages[name].get("conditions", {}).values():
            if condition.get("kind") == "low_resolution":
                if condition.get("down", "bicubic") != "bicubic":
                    raise InputError(
                        f"What is before {name!r} is scaled down by bicubic interpolation; leave down out."
                    )
                scale *= int(condition.get("factor", 4))
    return scales


def _sides(size: Any) -> tuple[int, ...]:
    return () if size is None else (size,) if isinstance(size, int) else tuple(size)


def starts(stages: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of those stages from whose weights others start, or whose embeddings they are given."""
    settings = [stage.model_dump() if isinstance(stage, Config) else stage for stage in stages.values()]
    sources = {str(one.get("training", {}).get("init_from")) for one in settings}
    sources |= {str(one.get("data", {}).get("embedder")) for one in settings}
    return tuple(name for name in stages if name in sources)


def _parsed(stages: Mapping[str, Any], trust: bool) -> dict[str, Config]:
    parsed = {name: parse(Config, values, origin=f"the stage {name}", trust=trust) for name, values in stages.items()}
    _check_captions(parsed)
    return parsed


def _check_captions(stages: Mapping[str, Config]) -> None:
    """Check that captions are read alike by all stages, before the first is trained."""
    read = {name: config.conditions["text"] for name, config in stages.items() if "text" in config.conditions}
    for setting in ("encoder", "column", "length", "most_words"):
        values = {name: getattr(text, setting, None) for name, text in read.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value!r} in {name}" for name, value in values.items())
            flags = " ".join(f"--{name}.conditions.text.{setting.replace('_', '-')} ..." for name in values)
            raise InputError(f"All stages read captions alike, but text.{setting} is {told}; set it for each: {flags}")
