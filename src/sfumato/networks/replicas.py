"""Copies of a network that share its weights, or have them in half the memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_HALVED = (nn.Linear, nn.Conv1d, nn.Conv2d)


def twin(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A network of the same layers, in evaluation mode, whose parameters and buffers are those of ``network``.

    Args:
        network: what is copied; it stays as it is.
        dtype: what the twin keeps the weights of its matrices and convolutions in; by default they are shared too.
    """
    shared: dict[int, Tensor] = {id(buffer): buffer for buffer in network.buffers()}
    for module in network.modules():
        halved = dtype is not None and isinstance(module, _HALVED)
        for parameter in module.parameters(recurse=False):
            kept = nn.Parameter(parameter.detach().to(dtype), requires_grad=False) if halved else parameter
            shared[id(parameter)] = kept
    # what the memory of a deep copy holds is not copied again
    return copy.deepcopy(network, shared).eval()


class Half(nn.Module):
    """A network that computes in bfloat16 from weights in bfloat16, made once from those of ``network``.

    Normalizations keep their gains in float32 and their sums too; what they, the matrix products and the convolutions
    exchange is bfloat16. The output is meant to be combined with an input in float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = twin(network, torch.bfloat16)

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        """The output for ``x`` at ``time``, in bfloat16."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.network(x, time, **cond)
