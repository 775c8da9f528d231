"""A network that runs in an engine, called as the network it was made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.interop.engines.program import Program

Arrays = list[Any]
"""NumPy arrays in the order of a graph's inputs: x, time, conditions."""


class EngineNetwork(nn.Module):
    """A network without weights of torch: it hands its inputs to an engine on the processor.

    Args:
        program: what it computes.
        compiled: gives what runs batches of a size; it is asked once for each size.
    """

    def __init__(self, program: Program, compiled: Callable[[int], Callable[[Arrays], Any]]) -> None:
        super().__init__()
        self._program, self._compiled = program, compiled
        self._ready: dict[int, Callable[[Arrays], Any]] = {}

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions it takes."""
        return tuple(self._program.nulls)

    def forward(
        self, x: Float[Tensor, "batch inputs *space"], time: Float[Tensor, "batch"], **cond: Tensor
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output, in the type of ``x``.

        Raises:
            InputError: for a condition that the network does not know, or if a gradient is asked for.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError("An engine gives no gradients; take the model without it where they are needed.")
        count = x.shape[0]
        arrays = self._program.arrays(x, time, cond)
        if count not in self._ready:
            self._ready[count] = self._compiled(count)
        return torch.from_numpy(self._ready[count](arrays)).to(x.device, x.dtype)
