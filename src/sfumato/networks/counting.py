"""How large a network is, and how much it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sfumato.networks.replicas import twin


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        parameters: numbers that are learned.
        macs: multiply-accumulates of one call for one sample, those of convolutions, linear layers and attention.
    """

    parameters: int
    macs: int

    @property
    def work(self) -> str:
        """The multiply-accumulates in a readable unit."""
        thousands = min(4, (len(str(self.macs)) - 1) // 3)
        unit = ("", "k", "M", "G", "T")[thousands]
        return f"{self.macs / 1000.0**thousands:.3g} {unit}MAC"

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters, {self.work} per call"


@torch.no_grad()
def count(network: nn.Module, shape: Sequence[int]) -> Size:
    """The size of a network for one sample of ``shape`` ``(channels, *space)``.

    Nothing is computed and no memory is taken: the network may be on the device ``meta``, or as large as it likes.
    """

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device="meta")

    # a compiled network that is called here would not be compiled any more
    network = twin(network)
    state: dict[str, Any] = {name: empty(tensor) for name, tensor in network.named_parameters()}
    parameters = sum(tensor.numel() for tensor in state.values())
    state |= {name: empty(tensor) for name, tensor in network.named_buffers()}
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    x, time = torch.empty(1, *shape, device="meta", dtype=dtype), torch.empty(1, device="meta", dtype=dtype)
    with FlopCounterMode(display=False) as counter:
        functional_call(network, state, (x, time))
    # an operation is counted as a multiplication and an addition
    return Size(parameters, counter.get_total_flops() // 2)
