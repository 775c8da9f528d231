"""The layers that the networks are made of, in one and two dimensions."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError

Dims = Literal[1, 2]
Modulation = Literal["adaptive", "additive"]
M = TypeVar("M", bound=nn.Module)


def conv(dims: Dims, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution over ``dims`` spatial axes, padded to keep the size."""
    kind = nn.Conv2d if dims == 2 else nn.Conv1d
    return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def zero(module: M) -> M:
    """The module with all parameters zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int, groups: int, affine: bool = True) -> nn.GroupNorm:
    """Group normalization with at most ``groups`` groups: the largest number that divides the channels."""
    divisor = next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(divisor, channels, affine=affine)


class ResBlock(nn.Module):
    """A residual block: two times normalization, SiLU and convolution, the last one zero at the start.

    The embedding scales and shifts the second normalization (adaptive group norm, Dhariwal and Nichol 2021, sec. 3),
    which has no gain and bias of its own then: those of the embedding are all it needs. Or it is added to every
    position before the second normalization (Ho et al. 2020, app. B).
    """

    def __init__(
        self, dims: Dims, inputs: int, outputs: int, embedding: int, groups: int, modulation: Modulation = "adaptive"
    ) -> None:
        super().__init__()
        self.adaptive = modulation == "adaptive"
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = conv(dims, inputs, outputs)
        linear = nn.Linear(embedding, 2 * outputs if self.adaptive else outputs)
        self.modulation = zero(linear) if self.adaptive else linear
        self.norm2 = group_norm(outputs, groups, affine=not self.adaptive)
        self.conv2 = zero(conv(dims, outputs, outputs))
        self.skip = nn.Identity() if inputs == outputs else conv(dims, inputs, outputs, kernel=1)

    def forward(
        self, x: Float[Tensor, "batch inputs *space"], embedding: Float[Tensor, "batch embedding"]
    ) -> Float[Tensor, "batch outputs *space"]:
        h = self.conv1(functional.silu(self.norm1(x)))
        told = self.modulation(embedding).reshape(len(x), -1, *[1] * (x.ndim - 2))
        if self.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), scale + 1.0)
        else:
            h = self.norm2(h + told)
        return self.skip(x) + self.conv2(functional.silu(h))


class Attention(nn.Module):
    """Multi-head self-attention over all positions, as a residual branch that is zero at the start.

    Raises:
        InputError: if the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        if channels % heads:
            raise InputError(f"{heads} attention heads do not divide {channels} channels.")
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        batch, channels = x.shape[:2]
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(batch, -1, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Halves every side: with a strided convolution, or by averaging."""

    def __init__(self, dims: Dims, channels: int, learned: bool = True) -> None:
        super().__init__()
        pool = nn.AvgPool2d(2) if dims == 2 else nn.AvgPool1d(2)
        self.resample = conv(dims, channels, channels, stride=2) if learned else pool

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *half"]:
        return self.resample(x)


class Upsample(nn.Module):
    """Doubles every side by nearest neighbours; then a convolution, if it is to be learned."""

    def __init__(self, dims: Dims, channels: int, learned: bool = True) -> None:
        super().__init__()
        self.conv = conv(dims, channels, channels) if learned else nn.Identity()

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *double"]:
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
