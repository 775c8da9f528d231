"""Models for other programs."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sfumato.errors import InputError, nearest
from sfumato.interop import engines
from sfumato.interop.engines import onnx, openvino
from sfumato.interop.engines.graph import require_weights
from sfumato.interop.model import description, raw_slots
from sfumato.interop.to_diffusers import write_diffusers
from sfumato.io.tensors import write_tensors
from sfumato.models.cascade import one_stage
from sfumato.models.model import Model

TARGETS = {"diffusers": "", "onnx": ".onnx", "openvino": ".xml", "safetensors": ".safetensors"}
"""What a model can be written as, with the end of the file's name; a folder has none."""

QUANTIZED = ("onnx", "openvino")
"""Targets that int8 can be written to."""


def export(
    model: Model, to: str, out: str | Path, *, precision: str = "fp32", overwrite: bool = False
) -> tuple[str, ...]:
    """Write a model for other programs; the same job as ``sfumato export``.

    ::

        sfumato.interop.export(sfumato.load("runs/images"), "onnx", "images.onnx")

    Args:
        model: a trained model.
        to: ``"diffusers"``, a folder that ``DDPMPipeline.from_pretrained`` loads; ``"onnx"`` and ``"openvino"``, the
            network as a graph for any batch size; or ``"safetensors"``, the weights. All but the first carry the
            configuration.
        out: the file or folder.
        precision: ``"fp32"``, or ``"int8"`` for a graph with ranges taken from trajectories of the model.
        overwrite: whether to replace what is there.

    Returns:
        Sentences on what the user of the result must know.
    """
    out = Path(out)
    one_stage(model, "An export")
    check(to, out, precision, overwrite)
    if to != "safetensors":
        model.require_denoiser()
    require_weights(model.denoiser.network)
    slots = raw_slots(model) if to in QUANTIZED else ()
    notes = [f"The graph is the network without the conditions {', '.join(slots)}."] if slots else []
    write: dict[str, Callable[[Path], None]] = {
        "diffusers": lambda path: notes.extend(write_diffusers(model, path)),
        "onnx": lambda path: onnx.write(engines.convert(onnx, model, precision)[1], path),
        "openvino": lambda path: openvino.write(engines.convert(openvino, model, precision)[1], path),
        "safetensors": lambda path: write_tensors(path, model.denoiser.state_dict(), json.loads(description(model))),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    # beside its place, so that it can be moved there whole
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        write[to](Path(folder) / out.name)
        written = sorted(Path(folder).iterdir())
        _free([out.with_name(path.name) for path in written if path.name != out.name], overwrite)
        if out.is_dir():
            shutil.rmtree(out)
        for path in written:
            path.replace(out.with_name(path.name))
    return tuple(notes)


def check(to: str, out: Path, precision: str, overwrite: bool) -> None:
    """Refuse a target, a precision or a place that can't be had, before any work."""
    if to not in TARGETS:
        raise InputError(f"There is no target {to!r}{nearest(to, TARGETS)}")
    if precision not in ("fp32", "int8"):
        raise InputError(
            f"A file holds fp32 or int8, not {precision!r}; what else is computed in is chosen where it is run."
        )
    if precision == "int8":
        if to not in QUANTIZED:
            raise InputError(f"int8 is for {' and '.join(QUANTIZED)}; {to} takes fp32.")
        engines.check("openvino" if to == "openvino" else "onnxruntime", precision)
    end = TARGETS[to]
    if out.suffix != end and (end or out.is_file()):
        raise InputError(f"{to} is written as {f'a file *{end}' if end else 'a folder'}; got {out}.")
    # what is known to be written beside it is found before the work, and what else there may be after it
    beside = [out.with_suffix(".bin")] if to == "openvino" else []
    _free([out, *beside], overwrite)
    if any(path.is_dir() for path in beside):
        raise InputError(f"{beside[0]} is a folder, and is not replaced by the weights of {out.name}.")
    if out.exists() and out.is_dir() != (not end):
        raise InputError(f"{out} is a {'folder' if out.is_dir() else 'file'}, and is not replaced.")
    if out.is_dir() and any(out.iterdir()) and not (out / "model_index.json").is_file():
        raise InputError(f"The folder {out} holds other things than a pipeline of diffusers, and is not replaced.")


def _free(paths: list[Path], overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path} already exists; choose another name, or replace it with --overwrite.")
