"""The layers that the networks are made of, in one and two dimensions."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.convolution import Conv3x3, Pointwise
from sfumato.networks.dropout import Dropout
from sfumato.networks.normalization import GroupNorm
from sfumato.networks.resampling import Resample, Smoothing

Dims = Literal[1, 2]
Modulation = Literal["adaptive", "additive"]
M = TypeVar("M", bound=nn.Module)
_PLAIN = 512 * 512
"""Queries times keys, up to which attention is computed by plain products where that is faster."""


def conv(
    dims: Dims, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, pad: int | None = None
) -> nn.Conv1d | nn.Conv2d:
    """A convolution over ``dims`` spatial axes, by default padded to keep the size."""
    pad = kernel // 2 if pad is None else pad
    planar = {(1, 1, 0): Pointwise, (3, 1, 1): Conv3x3}.get((kernel, stride, pad), nn.Conv2d)
    return (planar if dims == 2 else nn.Conv1d)(inputs, outputs, kernel, stride=stride, padding=pad)


def zero(module: M) -> M:
    """The module with all parameters zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(
    channels: int, groups: int, affine: bool = True, eps: float = 1e-5, group_channels: int = 1
) -> nn.GroupNorm:
    """Group normalization with at most ``groups`` groups: the largest number that divides the channels.

    Groups have at least ``group_channels`` channels, where there are so many.

    Raises:
        InputError: if ``groups < 1`` or ``group_channels < 1``.
    """
    if groups < 1 or group_channels < 1:
        raise InputError(
            f"Group normalization needs at least 1 group, of at least 1 channel; got {groups} of {group_channels}."
        )
    most = min(groups, max(1, channels // group_channels))
    divisor = next(g for g in range(most, 0, -1) if channels % g == 0)
    return GroupNorm(divisor, channels, affine=affine, eps=eps)


def head_count(channels: int, heads: int, head_channels: int | None) -> int:
    """The attention heads of ``channels``: ``heads``, or as many as ``head_channels`` go into them.

    Raises:
        InputError: if they do not divide the channels.
    """
    if head_channels is None:
        if heads < 1 or channels % heads:
            raise InputError(f"{heads} attention heads do not divide {channels} channels.")
        return heads
    if head_channels < 1 or channels % head_channels:
        raise InputError(f"Attention heads of {head_channels} channels do not divide {channels} channels.")
    return channels // head_channels


def attend(
    q: Float[Tensor, "batch heads queries width"],
    k: Float[Tensor, "batch heads keys width"],
    v: Float[Tensor, "batch heads keys width"],
    seen: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "batch heads queries width"]:
    r"""Attention, :math:`\operatorname{softmax}(q k^T / \sqrt{d})\, v`; keys where ``seen`` is False are left out.

    The kernel of PyTorch, but where its gradient is slow: on a processor in bfloat16 three plain products take a tenth
    of its time for 64 positions with heads of 8 channels, and half for 256 with heads of 64 (torch 2.13); with a
    thousand positions the kernel is ahead again, and saves their square in memory.
    """
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad
    if not slow or q.shape[-2] * k.shape[-2] > _PLAIN:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v


class ResBlock(nn.Module):
    r"""A residual block: two times normalization, SiLU and convolution, the last one zero at the start.

    The embedding scales and shifts the second normalization (adaptive group norm, Dhariwal and Nichol 2021, sec. 3),
    which has no gain and bias of its own then: those of the embedding are all it needs. Or it is added to every
    position before the second normalization (Ho et al. 2020, app. B).

    Args:
        dims: spatial axes.
        inputs: channels of the input.
        outputs: channels of the output.
        embedding: width of the embedding.
        groups: groups of the normalizations, at most.
        group_channels: channels of a group, at least.
        modulation: how the embedding acts.
        eps: what the normalizations add to the variance.
        dropout: the fraction of the activations that is left out before the last convolution, in calls with keys.
        rescale: whether the sum of the two branches is divided by :math:`\sqrt 2` (Y. Song et al. 2021, app. H).
        resample: changes the resolution of both branches, within the block (BigGAN; Brock et al. 2019).
        project: a 1x1 convolution on the skip even where the channels stay.
    """

    def __init__(
        self,
        dims: Dims,
        inputs: int,
        outputs: int,
        embedding: int,
        groups: int,
        modulation: Modulation = "adaptive",
        *,
        eps: float = 1e-5,
        group_channels: int = 1,
        dropout: float = 0.0,
        rescale: bool = False,
        resample: Resample | None = None,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.adaptive = modulation == "adaptive"
        self.rescale = rescale
        self.resample = resample
        self.norm1 = group_norm(inputs, groups, eps=eps, group_channels=group_channels)
        self.conv1 = conv(dims, inputs, outputs)
        linear = nn.Linear(embedding, 2 * outputs if self.adaptive else outputs)
        self.modulation = zero(linear) if self.adaptive else linear
        self.norm2 = group_norm(outputs, groups, not self.adaptive, eps, group_channels)
        self.dropout = Dropout(dropout) if dropout else None
        self.conv2 = zero(conv(dims, outputs, outputs))
        same = inputs == outputs and not project
        self.skip = nn.Identity() if same else conv(dims, inputs, outputs, kernel=1)

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        embedding: Float[Tensor, "batch embedding"],
        keys: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch outputs *other"]:
        """The output; ``keys`` of the samples decide what is left out (see :class:`Dropout`)."""
        h = functional.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        told = self.modulation(embedding).reshape(x.shape[0], -1, *[1] * (x.ndim - 2))
        if self.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), scale + 1.0)
        else:
            h = self.norm2(h + told)
        h = functional.silu(h)
        if self.dropout is not None:
            h = self.dropout(h, keys)
        out = self.skip(x) + self.conv2(h)
        return out * math.sqrt(0.5) if self.rescale else out


class Attention(nn.Module):
    r"""Multi-head self-attention over all positions, as a residual branch that is zero at the start.

    With ``rescale``, the sum of the branches is divided by :math:`\sqrt 2`.

    Raises:
        InputError: if the heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        groups: int,
        *,
        eps: float = 1e-5,
        group_channels: int = 1,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        self.heads = head_count(channels, heads, None)
        self.rescale = rescale
        self.norm = group_norm(channels, groups, eps=eps, group_channels=group_channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        batch, channels = x.shape[:2]
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(batch, -1, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)
        out = x + self.out(mixed).transpose(1, 2).reshape(x.shape)
        return out * math.sqrt(0.5) if self.rescale else out


class CrossAttention(nn.Module):
    """Multi-head attention of all positions to the tokens of a condition, a residual branch that is zero at the start.

    One more key, zero as its value is, can always be attended to: to attend to nothing is a choice, so that a sample
    whose tokens are all masked is defined, and equal to one without tokens.

    Args:
        channels: channels of the input.
        width: features of a token.
        heads: attention heads.
        groups: groups of the normalization, at most.
        group_channels: channels of a group, at least.

    Raises:
        InputError: if the heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        heads: int,
        groups: int,
        *,
        eps: float = 1e-5,
        group_channels: int = 1,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        self.heads = head_count(channels, heads, None)
        self.rescale = rescale
        self.norm = group_norm(channels, groups, eps=eps, group_channels=group_channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(width, 2 * channels)
        self.out = zero(nn.Linear(channels, channels, bias=False))

    def forward(
        self,
        x: Float[Tensor, "batch channels *space"],
        tokens: Float[Tensor, "batch length width"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch channels *space"]:
        """The output; tokens whose ``mask`` is False are not seen."""
        if tokens is not None:
            q = self.q(self.norm(x).flatten(2).transpose(1, 2)).unflatten(2, (self.heads, -1)).transpose(1, 2)
            kv = functional.pad(self.kv(tokens), (0, 0, 0, 1)).unflatten(2, (2, self.heads, -1))
            k, v = kv.permute(2, 0, 3, 1, 4)
            seen = None if mask is None else functional.pad(mask, (0, 1), value=True)[:, None, None]
            mixed = attend(q, k, v, seen).transpose(1, 2).flatten(2)
            x = x + self.out(mixed).transpose(1, 2).reshape(x.shape)
        return x * math.sqrt(0.5) if self.rescale else x


class Downsample(nn.Module):
    """Halves every side.

    Args:
        dims: spatial axes.
        channels: channels, which stay.
        kind: ``"learned"`` is a strided convolution; ``"asymmetric"`` too, padded at the far end only (Ho et al. 2020,
            code); ``"fixed"`` averages with the filter ``taps``.
        taps: the filter.
    """

    def __init__(
        self,
        dims: Dims,
        channels: int,
        kind: Literal["learned", "asymmetric", "fixed"] = "learned",
        taps: Smoothing = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.far = [0, 1] * dims if kind == "asymmetric" else None
        strided = conv(dims, channels, channels, stride=2, pad=0 if self.far else 1) if kind != "fixed" else None
        self.resample = strided or Resample(dims, "down", taps)

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *half"]:
        return self.resample(functional.pad(x, self.far) if self.far else x)


class Upsample(nn.Module):
    """Doubles every side with the filter ``taps``, by default nearest neighbours; then a convolution, if learned."""

    def __init__(self, dims: Dims, channels: int, learned: bool = True, taps: Smoothing = (1.0, 1.0)) -> None:
        super().__init__()
        self.resample = Resample(dims, "up", taps)
        self.conv = conv(dims, channels, channels) if learned else nn.Identity()

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *double"]:
        return self.conv(self.resample(x))
