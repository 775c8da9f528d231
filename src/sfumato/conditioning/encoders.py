"""Encoders: each turns a named condition into one slot of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.errors import InputError, nearest


class LabelEncoder(nn.Module):
    """A learned vector per class, and one for no class: slot ``vector``.

    A label of -1 is the null condition.
    """

    slot = "vector"

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.5)

    def null(self, batch: int, device: torch.device) -> Int[Tensor, "batch"]:
        return torch.full((batch,), -1, dtype=torch.long, device=device)

    def forward(self, labels: Int[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        return self.table(labels + 1)


class Conditioned(nn.Module):
    """A network whose named conditions are encoded into its slots.

    A missing condition is the null condition of its encoder.

    Args:
        network: called as ``network(x, time, **slots)``.
        encoders: an encoder per condition; two encoders of one slot are added.
    """

    def __init__(self, network: nn.Module, encoders: Mapping[str, LabelEncoder]) -> None:
        super().__init__()
        self.network = network
        self.encoders = nn.ModuleDict(dict(encoders))

    def forward(
        self, x: Float[Tensor, "batch inputs *space"], time: Float[Tensor, "batch"], **cond: Tensor
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output of the network.

        Raises:
            InputError: for a condition that no encoder knows.
        """
        slots: dict[str, Tensor] = {}
        for name in cond:
            if name not in self.encoders:
                raise InputError(f"The model knows no condition {name!r}{nearest(name, self.encoders)}")
        for name, module in self.encoders.items():
            encoder = cast(LabelEncoder, module)
            given = cond[name] if name in cond else encoder.null(x.shape[0], x.device)
            encoded = encoder(given)
            slots[encoder.slot] = slots[encoder.slot] + encoded if encoder.slot in slots else encoded
        return self.network(x, time, **slots)


def drop(labels: Int[Tensor, "batch"], dropped: Bool[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """Labels with those of the ``dropped`` samples made null, for classifier-free guidance (Ho and Salimans 2022)."""
    return labels.masked_fill(dropped, -1)
