"""``sfumato import``: weights of other programs as a run."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.cli import flags
from sfumato.config import Config, merge, parse
from sfumato.errors import InputError, nearest
from sfumato.recipes.openai import GUIDED, PROGRAMS
from sfumato.recipes.published import EDM

if TYPE_CHECKING:
    from sfumato.models.model import Model

ORIGINS = ("diffusers", *PROGRAMS, "edm")


@dataclasses.dataclass
class _Import:
    weights: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="WEIGHTS", help="A folder that diffusers saved, or a file of tensors."),
    ]
    run: Annotated[Path, tyro.conf.arg(help="The run directory to write.")]
    from_: Annotated[
        str | None,
        tyro.conf.arg(
            name="from",
            help="Whose they are: " + ", ".join(ORIGINS) + " (default: diffusers for a folder; for a file, as the name "
            "of a published model says).",
            help_behavior_hint="",
        ),
    ] = None
    flags: Annotated[
        str | None,
        tyro.conf.arg(
            help="What a file of tensors is of: the name of a published model ("
            + ", ".join((*GUIDED, *EDM))
            + "), or in one string the flags of its authors' program, such as '--image_size 64 --num_channels 128'.",
            help_behavior_hint="",
        ),
    ] = None
    data: Annotated[
        str | None,
        tyro.conf.arg(help="Data to evaluate it on: a name, a folder of images, an array.", help_behavior_hint=""),
    ] = None
    overwrite: Annotated[bool, tyro.conf.arg(help="Replace a run that is there.")] = False


def import_weights(arguments: list[str]) -> int:
    options = flags.parse(
        _Import,
        _joined(arguments),
        prog="sfumato import",
        description="Make a run of the weights of another program, with equal outputs: sample, evaluate, info and "
        "export work on it.",
    )
    from sfumato.interop import save_run

    model = _load(options)
    if options.data is not None:
        model.config = _with_data(model, options.data)
    save_run(model, options.run, overwrite=options.overwrite)
    print(f"{sum(p.numel() for p in model.denoiser.parameters()):,} parameters: {options.run}")
    return 0


def _joined(arguments: list[str]) -> list[str]:
    """The value of ``--flags`` begins as an option does, so that it must be joined to its name."""
    made = list(arguments)
    if "--flags" in made[:-1]:
        place = made.index("--flags")
        made[place : place + 2] = [f"--flags={made[place + 1]}"]
    return made


def _load(options: _Import) -> Model:
    from sfumato.interop import load_diffusers, load_edm, load_guided_diffusion

    path, origin = options.weights, options.from_
    settings = None if options.flags is None else _settings(options.flags)
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.")
    if origin is not None and origin not in ORIGINS:
        raise InputError(f"--from is {origin!r}{nearest(origin, ORIGINS)}")
    if origin is None and path.is_dir():
        origin = "diffusers"
    elif origin is None and isinstance(settings, str):
        origin = "edm" if settings in EDM else "guided-diffusion" if settings in GUIDED else None
        if origin is None:
            raise InputError(f"There is no published model {settings!r}{nearest(settings, (*GUIDED, *EDM))}")
    if origin is None:
        raise InputError(f"{path} does not say whose tensors it holds; say it with --from {' or '.join(ORIGINS[1:])}.")
    if origin == "diffusers":
        if settings is not None:
            raise InputError("A folder of diffusers describes itself; leave --flags out.")
        return load_diffusers(path)
    if settings is None:
        raise InputError("A file of tensors does not describe its network; give the flags of its program with --flags.")
    if origin == "edm":
        return load_edm(path, settings)
    return load_guided_diffusion(path, settings, program=None if isinstance(settings, str) else origin)


def _settings(text: str) -> str | dict[str, str]:
    """The name of a published model, or flags with their values."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"The --flags can't be read ({error}).") from None
    if len(words) == 1 and not words[0].startswith("-"):
        return words[0]
    found: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        value = value if equals else next(rest, "--")
        if not name.startswith("--") or value.startswith("--"):
            raise InputError(f"The --flags are pairs of a name and a value, --image_size 64; got {word!r}.")
        found[name.removeprefix("--")] = value
    return found


def _with_data(model: Model, source: str) -> Config:
    channels, *sides = model.facts.shape
    kinds = {1: "grey", 3: "rgb", 4: "rgba"}
    data = {"source": source, "size": sides, "channels": kinds.get(channels)}
    return parse(Config, merge(model.config.model_dump(), {"data": data}), origin="the options")
