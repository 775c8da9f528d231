"""A classifier of noisy images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.blueprint import Plan
from sfumato.networks.layers import attend, group_norm, head_count
from sfumato.networks.unet import WayDown


class Classifier(WayDown):
    """A classifier of noisy images: the way down of a U-Net, then attention pooling (Dhariwal and Nichol 2021, app. H).

    The mean of all positions attends to itself and to each of them, which are told apart by learned vectors.

    Args:
        inputs: channels of the input.
        classes: number of classes.
        size: side of the square input.
        channels: width of each resolution, from the finest.
        options: the other attributes of a :class:`Plan`.

    Raises:
        InputError: if the settings contradict each other.
    """

    def __init__(self, inputs: int, classes: int, size: int, channels: Sequence[int], **options: Any) -> None:
        plan = Plan(channels=channels, **options)
        if plan.tokens is not None or plan.concatenated:
            raise InputError("A classifier has no slots for conditions; leave tokens and concatenated out.")
        super().__init__(inputs, plan)
        current, positions = self.current, (size // self.factor) ** plan.dims
        self.size = size
        self.check((inputs, *[size] * plan.dims))
        self.norm = group_norm(current, plan.groups, eps=plan.eps, group_channels=plan.group_channels)
        self.heads = head_count(current, plan.heads, plan.head_channels)
        self.position = nn.Parameter(torch.randn(1 + positions, current) / math.sqrt(current))
        self.qkv = nn.Linear(current, 3 * current)
        self.out = nn.Linear(current, classes)
        self.initialize()

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        keys: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """The logits of the classes.

        Raises:
            InputError: for another size than that it was made for.
        """
        if any(side != self.size for side in x.shape[2:]):
            raise InputError(f"This classifier takes a side of {self.size}; got shape {tuple(x.shape[1:])}.")
        self.check(x.shape[1:])
        x, _ = self.descend(x, self.embed(time, None), keys, (None, None))
        tokens = functional.silu(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.position
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q[:, :, :1], k, v)
        return self.out(mixed.flatten(1))
