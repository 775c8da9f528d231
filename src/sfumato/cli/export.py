"""``sfumato export``: a model for other programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.cli import flags
from sfumato.cli.commands import Run, load_model


@dataclasses.dataclass
class _Export:
    run: Run
    to: Annotated[str, tyro.conf.arg(help="What for: diffusers, onnx, openvino or safetensors.")]
    out: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="OUT",
            help="A folder for diffusers; a file .onnx, .xml (openvino) or .safetensors (default: within RUN/export).",
            help_behavior_hint="",
        ),
    ] = None
    precision: Annotated[
        str, tyro.conf.arg(help="fp32, or int8 for onnx and openvino, calibrated on trajectories of the model.")
    ] = "fp32"
    overwrite: Annotated[bool, tyro.conf.arg(help="Replace what is there.")] = False


def export(arguments: list[str]) -> int:
    options = flags.parse(
        _Export,
        arguments,
        prog="sfumato export",
        description="Write a trained model for other programs, with equal outputs: a pipeline of diffusers, or the "
        "network as a graph of ONNX or OpenVINO that runs at any batch size.",
    )
    from sfumato.interop.export import TARGETS
    from sfumato.interop.export import export as write

    model = load_model(options.run, "cpu")
    # a target that there is not is refused there
    name = options.to if options.precision == "fp32" else f"{options.to}-{options.precision}"
    out = options.out or options.run / "export" / f"{name}{TARGETS.get(options.to, '')}"
    notes = write(model, options.to, out, precision=options.precision, overwrite=options.overwrite)
    print(f"{options.to}: {out}")
    for note in notes:
        print(note)
    return 0
