"""How a network is run: copies that share its weights, bfloat16, torch.compile, and what a call costs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sfumato.errors import SfumatoWarning


def copy_sharing_weights(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy in evaluation mode that shares the parameters and buffers of ``network``.

    With a ``dtype``, the copy has its own linear and convolutional weights, in this dtype.
    """
    shared: dict[int, Tensor] = {id(buffer): buffer for buffer in network.buffers()}
    for module in network.modules():
        converted = dtype is not None and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
        for parameter in module.parameters(recurse=False):
            other = nn.Parameter(parameter.detach().to(dtype), requires_grad=False) if converted else parameter
            shared[id(parameter)] = other
    # a deep copy does not copy what its memo holds
    return copy.deepcopy(network, shared).eval()


class Bfloat16Copy(nn.Module):
    """A copy of ``network`` that computes in bfloat16, from weights converted once.

    Normalizations keep their gains and sums in float32. The output is meant to be combined with an input in float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy_sharing_weights(network, torch.bfloat16)

    def forward(self, x: Tensor, time: Tensor, **slots: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.network(x, time, **slots)


def compile_in_place(network: nn.Module, *, dynamic: bool | None = None) -> None:
    """Let ``torch.compile`` compile ``network`` at its next call, or run it uncompiled with a warning where that fails.

    Other shapes are compiled for together if ``dynamic``, each by itself if False, or together from the second on.
    """
    network.compile(backend=_inductor, dynamic=dynamic)


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    try:
        return compile_fx(graph, inputs)  # pyright: ignore[reportReturnType, reportArgumentType]
    except Exception as error:
        # a tool chain fails in as many ways as it has parts, and none of them is a reason to stop
        reason = " ".join(str(error).split())[:160]
        warnings.warn(
            f"torch.compile does not work here ({reason}), so the network runs uncompiled; install a C++ compiler, or "
            "Triton for a GPU, or leave the option away.",
            SfumatoWarning,
            stacklevel=2,
        )
        return graph.forward


@dataclass(frozen=True)
class Size:
    """A network's parameters, and multiply-accumulates of a call in convolutions, linear layers and attention.

    ``activations`` are the values that its layers give, which training keeps for the gradient.
    """

    parameters: int
    macs: int
    activations: int = field(default=0, compare=False)

    def __str__(self) -> str:
        thousands = min(4, (len(str(self.macs)) - 1) // 3)
        work = f"{self.macs / 1000.0**thousands:.3g} {('', 'k', 'M', 'G', 'T')[thousands]}MAC"
        return f"{self.parameters:,} parameters, {work} per call"


@torch.no_grad()
def count(network: nn.Module, shape: Sequence[int]) -> Size:
    """The size of a network for one sample of shape ``(channels, *space)``.

    Nothing is computed and no memory is taken: the network may be on the device ``meta``, and of any size.
    """
    # of a copy: a compiled network that is called here would not be compiled any more
    network = copy_sharing_weights(network)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    state: dict[str, Any] = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    x, time = (torch.empty(1, *sides, device="meta", dtype=dtype) for sides in (shape, ()))
    activations: list[int] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            activations.append(output.numel())

    for layer in network.modules():
        if not any(layer.children()):
            layer.register_forward_hook(keep)
    with FlopCounterMode(display=False) as counter:
        functional_call(network, state, (x, time))
    # an operation is counted as a multiplication and an addition
    parameters = sum(p.numel() for p in network.parameters())
    return Size(parameters, counter.get_total_flops() // 2, sum(activations))
