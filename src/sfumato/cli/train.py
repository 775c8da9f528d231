"""``sfumato train``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from sfumato.cli import flags
from sfumato.cli.commands import PRINT, TRUST, print_settings
from sfumato.cli.flags import Fields, Scanned, option
from sfumato.config import Config, merge, parse, read_file
from sfumato.errors import InputError
from sfumato.models.storage import is_system
from sfumato.runs.budget import has_gpu

_TRAIN = """\
Train a denoising diffusion model in a run directory, with sample grids and an evaluation.

DATA is a name, a folder of images, an .npy or .npz file, or hf:NAME (the same as --data.source). Every setting of the
configuration is an option. Defaults come from the recipe for the data; a file given with --config overrides the
recipe, and options override the file.
"""
OPTIONS: Fields = {
    "run": option(Path | None, "The run directory (default: runs/ and the name of the data)."),
    "resume": option(Path | None, "Continue this run where it stopped, bit for bit."),
    "overwrite": option(bool, "Replace an existing run.", False),
    "config": option(Path | None, "A file of settings, TOML or JSON; the config.json of a run is one."),
    "recipe": option(
        str | None,
        "Settings to start from: digits, small, cifar, images, ddpm, vectors, or a published model by a name that "
        "sfumato info --presets lists (default: as suits DATA).",
    ),
    "task": option(
        Literal["generate", "classify", "upscale", "text", "contrast"],
        "What to train: a generative model, a classifier of noisy images for guidance, a super-resolution model, a "
        "model of captioned images, or embeddings of images and captions in one space (CLIP).",
        "generate",
    ),
    "condition": option(
        tuple[str, ...],
        "What the network is given besides the noise level, such as label, or none (default: as in the recipe). The "
        "settings of a condition are --conditions.NAME.SETTING.",
        (),
    ),
    "budget": option(
        str | None,
        "Train for this time, such as 30m or 2h, in as many steps as a measurement finds to fit (default: 30m for "
        "images without a GPU, a named recipe and --training.steps; else the steps of the recipe).",
    ),
    "system": option(
        str | None,
        "Train several models that are sampled as one, into one folder: cascade or imagen, a model of small images by "
        "their classes or captions, and one that upscales them; or unclip, DALL-E 2. Its options: sfumato train "
        "--system imagen --help.",
    ),
    "init_from": option(
        Path | None,
        "Start from the weights of this run, with its model and settings, on other data; give --data.size and other "
        "differences as usual. Tensors whose shape differs, such as those of other classes, start from random weights.",
    ),
    "quiet": option(bool, "Show nothing but errors; the run keeps a log, train.log, in any case.", False),
    "trust": TRUST,
    "print_config": PRINT,
}


def train(arguments: list[str]) -> int:
    scanned = flags.scan(arguments, OPTIONS, Config)
    resume = scanned.value("resume")
    if "system" in scanned.values or (resume is not None and is_system(resume)):
        from sfumato.cli import system

        return system.train(arguments)
    if len(scanned.words) > 1:
        raise InputError(f"One DATA is trained on; got {' and '.join(map(repr, scanned.words))}.")
    fields = {**OPTIONS, **flags.flag_fields(_base_config(scanned))}
    options = flags.parse(fields, scanned.options, prog="sfumato train [DATA]", description=_TRAIN)
    config = parse(Config, flags.settings(options, Config), origin="the options", trust=True)
    if options.print_config:
        return print_settings(config)

    from sfumato.runs import train as runs

    if options.resume is not None and (options.run is not None or options.overwrite):
        raise InputError("--resume goes on with a run as it is; leave --run and --overwrite out.")
    more: dict[str, Any] = {"run": options.resume or options.run, "resume": options.resume is not None}
    # what may be imported was judged with the settings
    more |= {"overwrite": options.overwrite, "trust": True, "budget": budget_of(scanned, config)}
    return shown(options.quiet, lambda terminal: runs.train(config, reporter=terminal, **more))


def shown(quiet: bool, work: Callable[[Any], object]) -> int:
    """The exit code of a training that is shown in the terminal, and says in words how it ended."""
    from sfumato.io.files import SaveError
    from sfumato.runs.directory import Interrupted
    from sfumato.runs.reporting import Terminal
    from sfumato.training.loop import Diverged

    terminal = Terminal(quiet=quiet)
    try:
        work(terminal)
    except Interrupted as stop:
        terminal.close()
        terminal.say(str(stop), always=True)
        return 128 + stop.signal_number
    except Diverged as error:
        terminal.close()
        terminal.say(
            f"sfumato: {error} Training stopped; {error.saved}. "
            "Try a lower optimizer.learning-rate, a longer optimizer.warmup, or training.precision fp32.",
            always=True,
        )
        return 1
    except SaveError as error:
        terminal.close()
        terminal.say(f"sfumato: {error}", always=True)
        return 1
    finally:
        terminal.close()
    return 0


def budget_of(scanned: Scanned, config: Config) -> str | None:
    """The budget that is named, or that of who names none: for images, where the recipe could take days."""
    budget, steps = scanned.value("budget"), any(key.endswith("training.steps") for key in scanned.values)
    if budget is not None and steps:
        raise InputError("--budget decides the steps; leave it or --training.steps out.")
    decided = steps or {"resume", "recipe", "config", "init_from", "task"} & scanned.values.keys()
    suits = config.data.source != "digits" and config.model.network.kind != "mlp"
    return budget or ("30m" if suits and not decided and not has_gpu() else None)


def _base_config(scanned: Scanned) -> Config:
    """The configuration that the options start from: of the run, or of recipe, file, conditions and kinds."""
    source = next(iter(scanned.words), None) or scanned.value("data.source")
    resume, file, recipe, start, task = map(scanned.value, ("resume", "config", "recipe", "init_from", "task"))
    trust = "trust" in scanned.values
    if resume is not None:
        if any(given is not None for given in (source, file, recipe, start, task)):
            raise InputError(
                "A run that is resumed has its data and settings; leave DATA, --config, --recipe and --task out. A new "
                "run can start from its weights: --init-from."
            )
        from sfumato.models.storage import read_config

        values: dict[str, Any] = read_config(resume, trust=trust)[0].model_dump()
    else:
        from sfumato.recipes import named

        over = read_file(file) if file is not None else {}
        group: Any = over.get("data", {})
        of_file = group if isinstance(group, dict) else {}
        layout = scanned.value("data.layout") or of_file.get("layout")
        if start is not None and (recipe is not None or task is not None):
            raise InputError("--init-from has the settings of its run; leave --recipe and --task out.")
        if start is None:
            values = named(recipe, source or of_file.get("source"), layout, gpu=has_gpu(), task=task or "generate")
        else:
            values = _settings_to_go_on(start, trust)
        values = merge(values, over)
        if file is not None:
            parse(Config, values, origin=str(file), trust=trust)
        if source is not None:
            values = merge(values, {"data": {"source": source}})
    if "condition" in scanned.values:
        names = [name for name in scanned.values["condition"] if name != "none"]
        kept = values.get("conditions", {})
        values = {**values, "conditions": {name: kept.get(name, {"kind": name}) for name in names}}
    values = merge(values, {"conditions": scanned.kinds.get("conditions", {})})
    values = parse(Config, values, trust=trust or bool(scanned.kinds.get("conditions"))).model_dump()
    # kinds that are named on the command line are trusted: the person who typed them knows them
    return parse(Config, merge(values, scanned.kinds), trust=True)


def _settings_to_go_on(run: str, trust: bool) -> dict[str, Any]:
    """The settings of a run for other data of the same kind."""
    from sfumato.models.storage import read_config

    config, info = read_config(run, trust=trust)
    values = config.model_dump()
    if config.data.edges:
        raise InputError(
            f"{run} was trained on edges, as a layout is, and does not go on with other data; name it as "
            "--training.init-from of a training with the same captions."
        )
    factor = config.data.scale_down
    data: dict[str, Any] = {"size": [factor * side for side in info.shape[1:]] if len(info.shape) == 3 else None}
    if len(info.shape) == 3:
        data["channels"] = {1: "grey", 3: "rgb", 4: "rgba"}.get(info.shape[0])
    kept = {
        name: values["data"][name] for name in ("source", "random_crop", "flip", "scale_down") if name in values["data"]
    }
    return {**values, "data": {**data, **kept}, "training": {**values["training"], "init_from": run, "freeze": ()}}
