"""ONNX models, and onnxruntime to run them."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.interop.engines.deviation import Call
from sfumato.interop.engines.graph import OUTPUT, Graph, Run, require

LARGEST = 2**31 - 2**26
"""Bytes of weights in one file: its format ends at 2 GiB, and the graph needs some of them."""


def convert(graph: Graph, description: str) -> Any:
    """The ONNX model of a graph, for any batch size, with a description inside."""
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", "ONNX")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.exported, input_names=list(graph.inputs), output_names=[OUTPUT], dynamo=True, verbose=False
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    model: Any = program.model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape[0] = "batch"
    model.metadata_props["sfumato"] = description
    return program.model_proto


def quantize(model: Any, graph: Graph, calls: Sequence[Call]) -> Any:
    """The model with int8 convolutions and products, with ranges taken from the calls."""
    onnx = require("onnx", "onnx", "ONNX")
    quantization = require("onnxruntime.quantization", "onnx", "int8 in ONNX")
    shapes = require("onnxruntime.quantization.shape_inference", "onnx", "int8 in ONNX")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter(calls)

        def get_next(self) -> dict[str, Any] | None:
            call = next(self.items, None)
            return None if call is None else graph.arrays(call.x, call.time, call.cond)

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantized = (str(Path(folder) / f"{n}.onnx") for n in ("plain", "prepared", "quantized"))
        large = is_large(model)
        write(model, Path(plain))
        shapes.quant_pre_process(
            plain, prepared, skip_symbolic_shape=True, save_as_external_data=large, all_tensors_to_one_file=large
        )
        quantization.quantize_static(
            prepared,
            quantized,
            Reader(),
            per_channel=True,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            use_external_data_format=large,
        )
        result = onnx.load_model(quantized)
    kept = {item.key for item in result.metadata_props}
    result.metadata_props.extend(item for item in model.metadata_props if item.key not in kept)
    return result


def compiler(model: Any, graph: Graph, precision: str) -> Callable[[int], Run]:
    """What runs the model by batch size; one session does for all, in the precision of the model."""
    runtime = require("onnxruntime", "onnx", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with as_source(model) as source:
        session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda count: lambda arrays: session.run([OUTPUT], arrays)[0]


def is_large(model: Any) -> bool:
    """Whether the weights of the model are more than one file can hold."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST


@contextlib.contextmanager
def as_source(model: Any) -> Generator[bytes | str]:
    """The model as engines read it: its bytes, or the path of a file that exists within the context."""
    if not is_large(model):
        yield model.SerializeToString()
        return
    # an engine may still have the weights mapped into its memory
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "graph.onnx"
        write(model, path)
        yield str(path)


def write(model: Any, path: Path) -> None:
    """Write the model as one file, or if that can't hold its weights, with these beside it as ``path.data``."""
    onnx = require("onnx", "onnx", "ONNX")
    if not is_large(model):
        onnx.save_model(model, str(path))
        return
    # writing them apart takes them out of the model that is given
    copied = type(model)()
    copied.CopyFrom(model)
    onnx.save_model(copied, str(path), save_as_external_data=True, location=f"{path.name}.data")
