"""torch.compile, where there is a compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import SfumatoWarning


def compile_in_place(network: nn.Module, *, dynamic: bool | None = None) -> None:
    """Let ``network`` be compiled at its next call, by torch's inductor, which keeps what it made in its own cache.

    Where that fails, for want of a C++ compiler or of Triton, the network runs uncompiled after a warning.

    Args:
        network: its parameters stay where they are, with their names.
        dynamic: whether other shapes are compiled for together (True), each by itself (False), or from the second one
            on together (None).
    """
    network.compile(backend=_inductor, dynamic=dynamic)


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    try:
        return compile_fx(graph, inputs)  # pyright: ignore[reportReturnType, reportArgumentType]
    except Exception as error:
        # a tool chain fails in as many ways as it has parts, and none of them is a reason not to go on
        reason = " ".join(str(error).split())[:160]
        warnings.warn(
            f"torch.compile does not work here ({reason}), so the network runs uncompiled; install a C++ compiler, or "
            "Triton for a GPU, or leave the option away.",
            SfumatoWarning,
            stacklevel=2,
        )
        return graph.forward
