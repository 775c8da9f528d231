"""Inference engines: the network of a model run by OpenVINO or onnxruntime.

::

    fast = sfumato.interop.engines.compile(model, "openvino", "bf16")
    images = fast.sample(64)
    print(sfumato.interop.engines.deviation(model, fast))
"""

from __future__ import annotations

import copy
from typing import Any

from sfumato.config import SamplingConfig
from sfumato.errors import InputError, nearest
from sfumato.interop.engines import onnx, openvino
from sfumato.interop.engines.deviation import Deviation, calibration, deviation
from sfumato.interop.engines.graph import Graph, GraphNetwork, graph_of, require
from sfumato.interop.model import description
from sfumato.models.cascade import one_stage
from sfumato.models.model import Model

ENGINES = {"openvino": ("fp32", "bf16", "int8"), "onnxruntime": ("fp32", "int8")}
"""The engines, each with the precisions it computes in."""


def check(engine: str, precision: str) -> None:
    """Check that there is such an engine with such a precision, and that it is installed."""
    if engine not in ENGINES:
        raise InputError(f"There is no engine {engine!r}{nearest(engine, ENGINES)}")
    if precision not in ENGINES[engine]:
        able = [name for name, known in ENGINES.items() if precision in known]
        hint = f"; {' or '.join(able)} does" if able else ""
        raise InputError(f"{engine} does not compute in {precision}, but in {' or '.join(ENGINES[engine])}{hint}.")
    extra = "onnx" if engine == "onnxruntime" else "int8" if precision == "int8" else "openvino"
    for package in (engine, "onnx", "onnxscript", *(["nncf"] if extra == "int8" else [])):
        require(package, extra, f"The engine {engine} in {precision}")


def convert(library: Any, model: Model, precision: str, sampling: SamplingConfig | None = None) -> tuple[Graph, Any]:
    """The network of a model as a graph of torch, and as a model of the ``library``, here ``onnx`` or ``openvino``.

    Ranges for int8 are taken from trajectories of the model.
    """
    graph = graph_of(model)
    converted = library.convert(graph, description(model))
    if precision == "int8":
        converted = library.quantize(converted, graph, calibration(model, sampling=sampling))
    return graph, converted


def compile(
    model: Model, engine: str = "openvino", precision: str = "fp32", *, sampling: SamplingConfig | None = None
) -> Model:
    """The same model, whose network runs in an engine on the CPU.

    It samples and is evaluated as any model; it can't be trained, and gives no gradients.

    Args:
        model: a trained model, which stays as it is.
        engine: ``"openvino"`` or ``"onnxruntime"``.
        precision: ``"fp32"``, ``"bf16"`` (OpenVINO, on CPUs that have it) or ``"int8"``, with ranges taken from
            trajectories of the model.
        sampling: the sampling of these trajectories; by default that of the configuration.
    """
    check(engine, precision)
    one_stage(model, "An engine")
    if model.device.type != "cpu":
        raise InputError(f"Engines run on the CPU, but this model is on {model.device}; move it: model.to('cpu').")
    library: Any = openvino if engine == "openvino" else onnx
    graph, converted = convert(library, model, precision, sampling)
    old, fast = model.denoiser, copy.copy(model)
    fast.denoiser = old.with_network(GraphNetwork(graph, library.compiler(converted, graph, precision)))
    fast.denoiser.eval()
    # what is written into a run is of the model in torch
    fast.run = None
    return fast


__all__ = ["ENGINES", "Deviation", "calibration", "check", "compile", "deviation"]
