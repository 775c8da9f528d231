"""The options of commands that can run the network in an inference engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sfumato.cli.flags import option
from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.config import SamplingConfig
    from sfumato.models.model import Model

ENGINE = {
    "engine": option(
        str | None, "Run the network in an engine on the processor: openvino or onnxruntime (default: torch).", None
    ),
    "engine_precision": option(
        str | None, "What the engine computes in: fp32, bf16 or int8 (default: bf16 in openvino, else fp32).", None
    ),
}


def device(options: Any) -> str | None:
    """The device that a command's options ask for: engines take the processor.

    Raises:
        InputError: if the options contradict each other, or there is no such engine.
    """
    if options.engine is None:
        if options.engine_precision is not None:
            raise InputError("--engine-precision is that of an engine; name one with --engine openvino or onnxruntime.")
        return options.device
    from sfumato.interop import engines

    engines.check(options.engine, _precision(options))
    if options.device not in (None, "cpu"):
        raise InputError(f"Engines run on the processor; leave --device {options.device} out.")
    return "cpu"


def within(model: Model, options: Any, sampling: SamplingConfig) -> Model:
    """The model in the engine that was asked for, if any; how far it is from the model in torch is said."""
    if options.engine is None:
        return model
    from sfumato.interop import engines

    precision = _precision(options)
    fast = engines.compile(model, options.engine, precision, sampling=sampling)
    # not where results go, which may be JSON
    print(
        f"{options.engine} in {precision}, against fp32 in torch: {engines.deviation(model, fast, 4, sampling)}",
        file=sys.stderr,
    )
    return fast


def _precision(options: Any) -> str:
    return options.engine_precision or ("bf16" if options.engine == "openvino" else "fp32")
