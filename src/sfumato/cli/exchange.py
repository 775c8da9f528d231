"""``sfumato export`` and ``sfumato import``: models for other programs, and from them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli import flags
from sfumato.cli.commands import RUN, TRUST
from sfumato.cli.flags import Fields, option
from sfumato.errors import InputError, nearest
from sfumato.models.storage import is_system
from sfumato.recipes.openai import GUIDED, PROGRAMS, UPSAMPLERS
from sfumato.recipes.published import EDM

if TYPE_CHECKING:
    from sfumato.models.model import Model

_EXPORT = """\
Write a trained model for other programs, with equal outputs: a pipeline of diffusers, or the network as a graph of ONNX
or OpenVINO that runs at any batch size.
"""


def export(arguments: list[str]) -> int:
    fields: Fields = {
        "run": RUN,
        "out": option(
            Path | None,
            "A folder for diffusers; a file .onnx, .xml (openvino) or .safetensors (default: within RUN/export).",
            None,
            positional="OUT",
        ),
        "to": option(str, "What for: diffusers, onnx, openvino or safetensors.", ...),
        "precision": option(
            str, "fp32, or int8 for onnx and openvino, calibrated on trajectories of the model.", "fp32"
        ),
        "overwrite": option(bool, "Replace existing files.", False),
        "trust": TRUST,
    }
    options = flags.parse(fields, arguments, prog="sfumato export", description=_EXPORT)
    if is_system(options.run):
        from sfumato.cli import system

        more = {"precision": options.precision, "overwrite": options.overwrite, "trust": options.trust}
        system.export(options.run, options.to, options.out, **more)
        return 0
    from sfumato.interop.export import TARGETS
    from sfumato.interop.export import export as write
    from sfumato.models.model import load

    model = load(options.run, trust=options.trust)
    # an unknown target is refused there
    name = options.to if options.precision == "fp32" else f"{options.to}-{options.precision}"
    out = options.out or options.run / "export" / f"{name}{TARGETS.get(options.to, '')}"
    notes = write(model, options.to, out, precision=options.precision, overwrite=options.overwrite)
    print(f"{options.to}: {out}")
    for note in notes:
        print(note)
    return 0


ORIGINS = ("diffusers", *PROGRAMS, "edm")

_IMPORT = """\
Turn the weights of another program into a run with the same outputs: sample, evaluate, info and export work on it.
"""


def import_weights(arguments: list[str]) -> int:
    fields: Fields = {
        "weights": option(Path, "A folder that diffusers saved, or a file of tensors.", ..., positional="WEIGHTS"),
        "run": option(Path, "The run directory to write.", ...),
        "origin": option(
            str | None,
            "The program that wrote them: " + ", ".join(ORIGINS) + " (default: diffusers for a folder; for a file, as "
            "the name of a published model says).",
        ),
        "variant": option(
            str | None, "Which weights of a folder of diffusers, where there are several, such as fp16 or ema."
        ),
        "flags": option(
            str | None,
            "What a file of tensors is of: the name of a published model ("
            + ", ".join((*GUIDED, *UPSAMPLERS, *EDM))
            + "), or in one string the flags of its authors' program, such as '--image_size 64 --num_channels 128'.",
        ),
        "data": option(str | None, "Data to evaluate it on: a name, a folder of images, an array."),
        "overwrite": option(bool, "Replace an existing run.", False),
    }
    options = flags.parse(fields, _joined(arguments), prog="sfumato import", description=_IMPORT)
    from sfumato.interop import save_run

    model = _load(options)
    if options.data is not None:
        channels, *sides = model.info.shape
        kinds = {1: "grey", 3: "rgb", 4: "rgba"}
        data = {"source": options.data, "size": sides, "channels": kinds.get(channels)}
        model.config = model.config.override(data=data)
    save_run(model, options.run, overwrite=options.overwrite)
    print(f"{sum(p.numel() for p in model.denoiser.parameters()):,} parameters: {options.run}")
    return 0


def _joined(arguments: list[str]) -> list[str]:
    """The value of ``--flags`` begins as an option does, so that it must be joined to its name."""
    joined = list(arguments)
    if "--flags" in joined[:-1]:
        place = joined.index("--flags")
        joined[place : place + 2] = [f"--flags={joined[place + 1]}"]
    return joined


def _load(options: Any) -> Model:
    from sfumato.interop import load_diffusers, load_edm, load_guided_diffusion, load_guided_upsampler

    path, origin = options.weights, options.origin
    settings = None if options.flags is None else _settings(options.flags)
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.")
    if origin is not None and origin not in ORIGINS:
        raise InputError(f"--origin is {origin!r}{nearest(origin, ORIGINS)}")
    if origin is None and path.is_dir():
        origin = "diffusers"
    elif origin is None and isinstance(settings, str):
        guided = (*GUIDED, *UPSAMPLERS)
        origin = "edm" if settings in EDM else "guided-diffusion" if settings in guided else None
        if origin is None:
            raise InputError(f"There is no published model {settings!r}{nearest(settings, (*guided, *EDM))}")
    if origin is None:
        raise InputError(f"{path} does not say which program wrote it; give --origin {' or '.join(ORIGINS[1:])}.")
    if origin == "diffusers":
        if settings is not None:
            raise InputError("A folder of diffusers describes itself; leave --flags out.")
        return load_diffusers(path, variant=options.variant)
    if settings is None:
        raise InputError("A file of tensors does not describe its network; give the flags of its program with --flags.")
    if origin == "edm":
        return load_edm(path, settings)
    upsamples = settings in UPSAMPLERS if isinstance(settings, str) else "large_size" in settings
    load = load_guided_upsampler if upsamples else load_guided_diffusion
    return load(path, settings, program=None if isinstance(settings, str) else origin)


def _settings(text: str) -> str | dict[str, str]:
    """The name of a published model, or flags with their values."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"The --flags can't be read ({error}).") from None
    if len(words) == 1 and not words[0].startswith("-"):
        return words[0]
    settings: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        value = value if equals else next(rest, "--")
        if not name.startswith("--") or value.startswith("--"):
            raise InputError(f"The --flags are pairs of a name and a value, --image_size 64; got {word!r}.")
        settings[name.removeprefix("--")] = value
    return settings
