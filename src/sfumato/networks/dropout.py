"""Dropout without a generator."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import InputError


class Dropout(nn.Module):
    """Leaves out a random fraction of the activations of each sample and scales up the others.

    (Srivastava et al. 2014.) What is left out is a function of the key of the sample, the number of the layer and the
    position: the same whatever the batch, the device, or how often the layer is computed, so under gradient
    checkpointing too. A call without keys leaves nothing out.

    Args:
        rate: the fraction that is left out.
        layer: the number of this layer in its network (see :func:`number_layers`).

    Raises:
        InputError: if the rate is not in [0, 1).
    """

    def __init__(self, rate: float, layer: int = 0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise InputError(f"The fraction that dropout leaves out must be at least 0 and below 1; got {rate}.")
        self.rate, self.layer = rate, layer

    def forward(
        self, x: Float[Tensor, "batch *shape"], keys: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """What is left of ``x``; ``keys`` are numbers of 32 bits."""
        if keys is None or self.rate == 0.0:
            return x
        position = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device)
        key = _mix(keys.to(torch.int32) + _mix(torch.full_like(keys, self.layer + 1, dtype=torch.int32)))
        noise = _mix(position * _signed(0x9E3779B1) + key[:, None])
        kept = noise >= int(self.rate * 2**32) - 2**31
        return x * kept.reshape(x.shape).to(x.dtype) / (1.0 - self.rate)


def number_layers(network: nn.Module) -> None:
    """Number the dropout layers of a network, so that each leaves out something else."""
    for layer, module in enumerate(m for m in network.modules() if isinstance(m, Dropout)):
        module.layer = layer


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _mix(word: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The finalizer of MurmurHash3 (Appleby): a bijection of 32 bits that spreads each bit over all."""
    word = word ^ ((word >> 16) & 0xFFFF)
    word = word * _signed(0x85EBCA6B)
    word = word ^ ((word >> 13) & 0x7FFFF)
    word = word * _signed(0xC2B2AE35)
    return word ^ ((word >> 16) & 0xFFFF)
