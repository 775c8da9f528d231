"""OpenVINO: the fastest on processors with instructions for bf16 and int8."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import SfumatoWarning
from sfumato.interop.engines import onnx
from sfumato.interop.engines.deviation import Call
from sfumato.interop.engines.network import Arrays
from sfumato.interop.engines.program import Program, require


def graph(program: Program, facts: str) -> Any:
    """The model of OpenVINO, for any batch size, with facts of it inside.

    Raises:
        InputError: if the packages that make it are not installed.
    """
    openvino = require("openvino", "openvino", "OpenVINO")
    # its own reader of torch's graphs crashes on blocks that scale and shift
    with onnx.source(onnx.graph(program, facts)) as given:
        found = openvino.Core().read_model(given)
    found.set_rt_info(facts, ["sfumato"])
    return found


def _reshape(found: Any, program: Program, count: int) -> None:
    shapes = {"x": program.sides, "time": (), **{name: tuple(null.shape[1:]) for name, null in program.nulls.items()}}
    found.reshape({name: [count, *shape] for name, shape in shapes.items()})


def quantized(found: Any, program: Program, calls: Sequence[Call]) -> Any:
    """The model with int8 convolutions and products, whose ranges are those of the calls.

    Raises:
        InputError: if NNCF is not installed.
    """
    nncf = require("nncf", "int8", "int8 in OpenVINO")
    nncf.set_log_level("ERROR")
    items = [dict(zip(program.inputs, program.arrays(call.x, call.time, call.cond), strict=True)) for call in calls]
    # its progress is not what was asked for
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(found, nncf.Dataset(items), subset_size=len(items))


def has_bf16(core: Any) -> bool:
    """Whether the processor has instructions for bf16."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def runner(found: Any, program: Program, precision: str) -> Callable[[int], Callable[[Arrays], Any]]:
    """What compiles the model for batches of a size: a known size is a fifth faster than any."""
    openvino = require("openvino", "openvino", "OpenVINO")
    core = openvino.Core()
    able = has_bf16(core)
    if precision == "bf16" and not able:
        warnings.warn(
            "This processor has no instructions for bf16; OpenVINO computes in fp32.", SfumatoWarning, stacklevel=4
        )
    # what a model in int8 leaves to floating point loses nothing more by bf16
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if able and precision != "fp32" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }

    def compiled(count: int) -> Callable[[Arrays], Any]:
        fixed = found.clone()
        _reshape(fixed, program, count)
        made = core.compile_model(fixed, "CPU", hints)
        # the result is copied: the next call writes over it
        return lambda arrays: made(arrays, share_inputs=True, share_outputs=False)[0]

    return compiled


def write(found: Any, path: Path) -> None:
    """Write the model: the graph as ``path``, its weights beside it as ``.bin``."""
    require("openvino", "openvino", "OpenVINO").save_model(found, str(path), compress_to_fp16=False)
