"""Systems of several models on the command line: trained, and what commands on a run do with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from sfumato.cli import flags
from sfumato.cli.commands import given_flags, given_of, print_settings, settings_of, with_fitted
from sfumato.cli.flags import Fields, option
from sfumato.cli.train import OPTIONS, budget_of, shown
from sfumato.config import Component, Config, DataConfig, SamplingConfig, merge, parse, read_file
from sfumato.errors import InputError, nearest
from sfumato.models.storage import System, read_config, read_system, stage_of, trained_stage
from sfumato.runs.budget import has_gpu
from sfumato.systems.stages import SYSTEMS, planned, stored

if TYPE_CHECKING:
    from rich.console import RenderableType

_TRAIN = """\
Train a system: a model of small images, base, and one that scales them up, up; a cascade by the class of the images,
imagen by their captions. In unclip (DALL-E 2) clip, prior and decoder take the place of base.

Each is a run in the folder of the system, and can be stopped, resumed, sampled and evaluated by itself. Settings of a
stage are options with its name, such as --up.training.steps; those of the data are the same for both. A file of
settings has the group data and one for each stage: base and up; imagen has layout before them, and unclip has layout,
clip, prior, decoder and up. A --budget is divided among the stages
that are not begun.
"""
_OPTIONS: Fields = {
    **{name: one for name, one in OPTIONS.items() if name not in ("task", "condition", "init_from")},
    "stage": option(str | None, "Train this stage only, such as base or up; --overwrite then replaces it alone."),
    "factor": option(
        int | None,
        "How many times larger the up-sampler makes the images of the base (default: 4 for imagen, 2 for a cascade). "
        "With less, give a large base --base.model.network.patch 2.",
    ),
}


def train(arguments: list[str]) -> int:
    first = flags.scan(arguments, _OPTIONS, Config)
    asked, folder = first.value("system"), first.value("resume")
    if asked is not None and asked not in SYSTEMS:
        raise InputError(f"There is no system {asked!r}{nearest(asked, SYSTEMS)}")
    asked = read_system(folder).system if folder is not None else asked or "cascade"
    names = tuple(planned(system=asked)) if folder is None else read_system(folder).trained
    groups: dict[str, Any] = {name: (Config, Field(default_factory=Config)) for name in names}
    data = (DataConfig, Field(default_factory=DataConfig))
    scanned = flags.scan(arguments, _OPTIONS, create_model("System", __base__=Component, data=data, **groups))
    if len(scanned.words) > 1:
        raise InputError(f"One DATA is trained on; got {' and '.join(map(repr, scanned.words))}.")
    stages = _stages(scanned, asked, trust="trust" in scanned.values)
    fields = {
        **_OPTIONS,
        "data": flags.group(stages[names[0]].data, leave=("scale_down", "edges", "embeddings")),
    }
    for name, config in stages.items():
        fields[name] = flags.group(config, leave=("data",))
    options = flags.parse(fields, scanned.options, prog=f"sfumato train [DATA] --system {asked}", description=_TRAIN)
    values = options.model_dump()
    over = {name: values[name] for name in ("data", *stages)}
    if over["data"]["embedder"] is None:
        del over["data"]["embedder"]  # that of each stage
    if options.print_config:
        both = {name: merge(merge(c.model_dump(), {"data": over["data"]}), over[name]) for name, c in stages.items()}
        configs = {name: parse(Config, settings, origin="the options", trust=True) for name, settings in both.items()}
        print(json.dumps({name: config.model_dump(mode="json") for name, config in configs.items()}, indent=2))
        return 0
    from sfumato.systems.train import train as train_system

    more: dict[str, Any] = {
        "system": asked,
        "recipe": options.recipe,
        "run": options.resume or options.run,
        "stage": options.stage,
    }
    more |= {"resume": options.resume is not None, "overwrite": options.overwrite, "trust": True}
    budget = budget_of(scanned, stages[names[0]])
    # a recipe of the system's own has as many steps as it needs
    more["budget"] = budget if SYSTEMS[asked] is None else scanned.value("budget")
    return shown(options.quiet, lambda terminal: train_system(over, reporter=terminal, **more))


def _stages(scanned: flags.Scanned, system: str, trust: bool) -> dict[str, Config]:
    """The configurations that the options start from: of recipes, file and kinds, or of the system that is there."""
    folder, file, recipe, factor = map(scanned.value, ("resume", "config", "recipe", "factor"))
    source = next(iter(scanned.words), None) or scanned.value("data.source")
    if folder is not None:
        if any(given is not None for given in (source, recipe, factor)):
            raise InputError("A system that is resumed has its settings; leave DATA, --recipe and --factor out.")
        return stored(folder, merge(read_file(file) if file is not None else {}, scanned.kinds), trust=trust)
    over: dict[str, Any] = read_file(file) if file is not None else {}
    if source is not None:
        over = merge(over, {"data": {"source": source}})
    if factor is not None:
        if not factor.isdecimal() or int(factor) < 2:
            raise InputError(f"--factor is {factor}; expected a whole number from 2 on.")
        over = merge(over, {"up": {"conditions": {"low_resolution": {"factor": int(factor)}}}})
    return planned(merge(over, scanned.kinds), system=system, recipe=recipe, gpu=has_gpu(), trust=True)


def info(folder: Path, trust: bool, everything: bool) -> Iterator[RenderableType]:
    """What a system is: the measures of the whole, and each of its stages, also of one that is not trained yet."""
    from sfumato.cli.info import measured, of_run
    from sfumato.models.model import load

    system = read_system(folder)
    whole = "".join(f"\n{title}  {value}" for title, value in measured(folder / "evaluation.json").items())
    yield f"{system.system}  {folder}, of the stages {', '.join(system.trained)}{whole}"
    for name in system.trained:
        yield f"\nstage {name}"
        run = stage_of(folder, name)
        if (run / "config.json").is_file():
            yield of_run(load(run, trust=trust), everything)
        else:
            yield f"not trained yet: sfumato train --resume {folder} --stage {name}"


def export(folder: Path, to: str, out: Path | None, *, trust: bool, **options: Any) -> None:
    """Export each stage of a system into a folder, beside what says how they work together."""
    from sfumato.interop.export import TARGETS, check
    from sfumato.interop.export import export as write
    from sfumato.models.model import load
    from sfumato.models.storage import write_system

    system, suffix = read_system(folder), TARGETS.get(to, "")
    out = out or folder / "export" / (to if options["precision"] == "fp32" else f"{to}-{options['precision']}")
    if out.suffix or out.is_file():
        raise InputError(f"A system is written as a folder with a part for each stage; got {out}.")
    places = {name: out / f"{name}{suffix}" for name in system.stages}
    models = {name: load(trained_stage(folder, name), trust=trust) for name in system.stages}
    for name in system.stages:
        check(to, places[name], options["precision"], options["overwrite"])
    for name, model in models.items():
        try:
            notes = write(model, to, places[name], **options)
        except InputError as error:
            raise InputError(f"The stage {name!r}: {error}") from error
        print(f"{name}, {to}: {places[name]}")
        for note in notes:
            print(note)
    write_system(out, System(system=system.system, stages=system.stages))


def with_sampling(
    prog: str,
    arguments: list[str],
    fields: Fields,
    description: str,
    folder: Path,
    *,
    several: bool,
    given: str = "",
    usual: Mapping[str, Any] | None = None,
) -> tuple[Any, SamplingConfig, dict[str, Any]]:
    """As :func:`sfumato.cli.commands.with_sampling`, of a system: the settings of its last stage have plain names.

    Those of the stages before are options with the name of the stage, and are given as its options are.
    """
    *before, last = read_system(folder).stages
    groups: dict[str, Any] = {name: (SamplingConfig, Field(default_factory=SamplingConfig)) for name in before}
    kind = create_model("Sampling", __base__=SamplingConfig, **groups)
    scanned = flags.scan(arguments, fields, kind)
    known: dict[str, Any] = {}
    starts: dict[str, SamplingConfig] = {}
    for name in (*before, last):
        config, info = read_config(trained_stage(folder, name), trust="trust" in scanned.values)
        own = {key: value for key, value in scanned.kinds.items() if key not in before}
        kinds = own if name == last else scanned.kinds.get(name, {})
        start = config.sampling.model_dump()
        if usual is not None:
            start = usual.get(name, start) if name != last else {k: v for k, v in usual.items() if k not in before}
        starts[name] = parse(SamplingConfig, merge(start, kinds), trust=True)
        known |= {key: condition for key, condition in info.conditions.items() if condition.kind != given}
    fields = {**fields, **given_flags(known, several=several)}
    # again: it is known now which flags take several words
    scanned = flags.scan(arguments, fields, kind)
    fields |= {**flags.flag_fields(starts[last]), **{name: flags.group(starts[name]) for name in before}}
    options = flags.parse(fields, [*scanned.words, *scanned.options], prog=prog, description=description)
    values = options.model_dump()
    found = {name: values[name] for name in before} | {last: settings_of(options)}
    sampling: dict[str, SamplingConfig] = {}
    for name, settings in found.items():
        sampling[name] = parse(SamplingConfig, settings, origin="the options", trust=True)
        prefix = "" if name == last else f"{name}."
        named = any(key.startswith((f"{prefix}sampler.", f"{prefix}grid.")) for key in scanned.values)
        if not named and usual is None and (name != last or getattr(options, "sweep", None) is None):
            sampling[name] = with_fitted(sampling[name], stage_of(folder, name))
    if options.print_config:
        raise SystemExit(
            print_settings(sampling[last], **{name: sampling[name].model_dump(mode="json") for name in before})
        )
    return (
        options,
        sampling[last],
        {**given_of(options, known), **{name: {"sampling": sampling[name]} for name in before}},
    )
