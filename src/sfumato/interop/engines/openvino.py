"""OpenVINO: the fastest on CPUs with instructions for bf16 and int8."""

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
from sfumato.interop.engines.graph import Graph, Run, require


def convert(graph: Graph, description: str) -> Any:
    """The model of OpenVINO of a graph, for any batch size, with a description inside."""
    openvino = require("openvino", "openvino", "OpenVINO")
    # its reader of torch's graphs crashes on blocks that scale and shift
    with onnx.as_source(onnx.convert(graph, description)) as source:
        model = openvino.Core().read_model(source)
    model.set_rt_info(description, ["sfumato"])
    return model


def quantize(model: Any, graph: Graph, calls: Sequence[Call]) -> Any:
    """The model with int8 convolutions and products, with ranges taken from the calls."""
    nncf = require("nncf", "int8", "int8 in OpenVINO")
    nncf.set_log_level("ERROR")
    items = [graph.arrays(call.x, call.time, call.cond) for call in calls]
    # it prints its progress
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(model, nncf.Dataset(items), subset_size=len(items))


def has_bf16(core: Any) -> bool:
    """Whether the CPU has instructions for bf16."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compiler(model: Any, graph: Graph, precision: str) -> Callable[[int], Run]:
    """What compiles the model for a batch size: with a fixed size it is a fifth faster."""
    core = require("openvino", "openvino", "OpenVINO").Core()
    able = has_bf16(core)
    if precision == "bf16" and not able:
        warnings.warn("This CPU has no instructions for bf16; OpenVINO computes in fp32.", SfumatoWarning, stacklevel=4)
    # what a model in int8 leaves to floating point loses nothing more by bf16
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if able and precision != "fp32" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }

    def compiled(count: int) -> Run:
        fixed = model.clone()
        shapes = graph.shapes.items()
        fixed.reshape({name: [count, *(-1 if side is None else side for side in shape)] for name, shape in shapes})
        run = core.compile_model(fixed, "CPU", hints)
        # the result is copied: the next call writes over it
        return lambda arrays: run(arrays, share_inputs=True, share_outputs=False)[0]

    return compiled


def write(model: Any, path: Path) -> None:
    """Write the model: the graph as ``path``, its weights beside it as ``.bin``."""
    require("openvino", "openvino", "OpenVINO").save_model(model, str(path), compress_to_fp16=False)
