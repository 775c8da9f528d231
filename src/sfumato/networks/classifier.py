"""A classifier of noisy images, for classifier guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.attention import head_count, multi_head
from sfumato.networks.blueprint import Blueprint
from sfumato.networks.unet import UNetEncoder


class Classifier(UNetEncoder):
    """A classifier of noisy images: the way down of a U-Net, then attention pooling (Dhariwal and Nichol 2021, app. H).

    The mean of all positions attends to itself and to each of them, which are distinguished by learned vectors.

    Args:
        inputs: channels of the input.
        classes: number of classes.
        sides: the sides of the input.
        channels, options: as for :class:`UNet`.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        sides: Sequence[int],
        channels: Sequence[int] = (64, 128, 128),
        **options: Any,
    ) -> None:
        b = Blueprint(channels=tuple(channels), **options)
        if b.tokens is not None or b.concatenated:
            raise InputError("A classifier has no slots for conditions; leave tokens and concatenated out.")
        super().__init__(inputs, b)
        self.sides = tuple(sides)
        self.check((inputs, *self.sides))
        width, positions = channels[-1], math.prod(side // self.factor for side in self.sides)
        self.norm = b.norm(width)
        self.heads = head_count(width, b.heads, b.head_channels)
        self.position = nn.Parameter(torch.randn(1 + positions, width) / math.sqrt(width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, classes)
        self.initialize()

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        keys: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """The logits of the classes."""
        if x.shape[2:] != self.sides:
            raise InputError(f"This classifier takes sides of {self.sides}; got shape {tuple(x.shape[1:])}.")
        self.check(x.shape[1:])
        x, _ = self.descend(x, self.time.activated(time, None), keys, None, None)
        tokens = functional.silu(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.position
        q, k, v = self.qkv(tokens).chunk(3, dim=2)
        return self.out(multi_head(q[:, :1], k, v, self.heads)[:, 0])
