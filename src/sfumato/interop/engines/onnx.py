"""ONNX graphs, and onnxruntime to run them."""

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
from sfumato.interop.engines.network import Arrays
from sfumato.interop.engines.program import OUTPUT, Program, require

LARGEST = 2**31 - 2**26
"""Bytes of weights in one file: its format ends at 2 GiB, and the graph needs some of them."""


def graph(program: Program, facts: str) -> Any:
    """The ONNX model, for any batch size, with facts of it inside.

    Raises:
        InputError: if the packages that make it are not installed.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", "ONNX")
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program.exported,
                input_names=list(program.inputs),
                output_names=[OUTPUT],
                dynamo=True,
                verbose=False,
            )
    finally:
        chatter.setLevel(level)
    assert made is not None
    model: Any = made.model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape[0] = "batch"
    model.metadata_props["sfumato"] = facts
    return made.model_proto


def quantized(found: Any, program: Program, calls: Sequence[Call]) -> Any:
    """The model with int8 convolutions and products, whose ranges are those of the calls.

    Raises:
        InputError: if onnxruntime is not installed.
    """
    onnx = require("onnx", "onnx", "ONNX")
    quantization = require("onnxruntime.quantization", "onnx", "int8 in ONNX")
    shapes = require("onnxruntime.quantization.shape_inference", "onnx", "int8 in ONNX")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter(calls)

        def get_next(self) -> dict[str, Any] | None:
            call = next(self.items, None)
            if call is None:
                return None
            return dict(zip(program.inputs, program.arrays(call.x, call.time, call.cond), strict=True))

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready", "done"))
        large = is_large(found)
        write(found, Path(plain))
        shapes.quant_pre_process(
            plain, ready, skip_symbolic_shape=True, save_as_external_data=large, all_tensors_to_one_file=large
        )
        quantization.quantize_static(
            ready,
            done,
            Reader(),
            per_channel=True,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            use_external_data_format=large,
        )
        made = onnx.load_model(done)
    kept = {item.key for item in made.metadata_props}
    made.metadata_props.extend(item for item in found.metadata_props if item.key not in kept)
    return made


def runner(found: Any) -> Callable[[int], Callable[[Arrays], Any]]:
    """What runs the model; one session does for all batch sizes.

    Raises:
        InputError: if onnxruntime is not installed.
    """
    runtime = require("onnxruntime", "onnx", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with source(found) as given:
        session = runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(arrays: Arrays) -> Any:
        return session.run([OUTPUT], dict(zip(names, arrays, strict=True)))[0]

    return lambda count: run


def is_large(found: Any) -> bool:
    """Whether the weights of the model are more than one file can hold."""
    return sum(len(tensor.raw_data) for tensor in found.graph.initializer) > LARGEST


@contextlib.contextmanager
def source(found: Any) -> Generator[bytes | str]:
    """The model as engines read it: its bytes, or the path of a file that is there for as long as the context."""
    if not is_large(found):
        yield found.SerializeToString()
        return
    # an engine may still have the weights mapped into its memory
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "graph.onnx"
        write(found, path)
        yield str(path)


def write(found: Any, path: Path) -> None:
    """Write the model as one file, or if that can't hold its weights, with these beside it as ``path.data``."""
    onnx = require("onnx", "onnx", "ONNX")
    if not is_large(found):
        onnx.save_model(found, str(path))
        return
    # writing them apart takes them out of the graph that is given
    copied = type(found)()
    copied.CopyFrom(found)
    onnx.save_model(copied, str(path), save_as_external_data=True, location=f"{path.name}.data")
