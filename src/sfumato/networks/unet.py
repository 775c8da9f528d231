"""The U-Net."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sfumato.errors import InputError
from sfumato.networks.attention import Attention, CrossAttention, head_count
from sfumato.networks.blueprint import Blueprint
from sfumato.networks.embeddings import TimeEmbedding
from sfumato.networks.layers import (
    Coordinates,
    Downsample,
    Dropout,
    Resample,
    Upsample,
    check_divisible,
    concatenate,
    conv,
    from_patches,
    number_layers,
    to_patches,
    zero,
)
from sfumato.networks.slots import check_tokens


class ResBlock(nn.Module):
    r"""Two normalized 3x3 convolutions with SiLU, conditioned on an embedding of time; the second one starts at zero.

    The embedding scales and shifts the second normalization (adaptive group norm, Dhariwal and Nichol 2021, sec. 3),
    which then has no gain and bias itself. Or it is added to every position before the second normalization
    (Ho et al. 2020, app. B). With a ``direction`` the resolution of both branches changes within the block (BigGAN;
    Brock et al. 2019).
    """

    def __init__(
        self, blueprint: Blueprint, inputs: int, outputs: int, direction: Literal["down", "up"] | None = None
    ) -> None:
        super().__init__()
        b = blueprint
        self.adaptive, self.rescale = b.modulation == "adaptive", b.rescale
        self.resample = Resample(b.dims, direction, b.taps) if direction else None
        self.norm1 = b.norm(inputs)
        self.conv1 = conv(b.dims, inputs, outputs)
        linear = nn.Linear(b.embedding_width, 2 * outputs if self.adaptive else outputs)
        self.modulation = zero(linear) if self.adaptive else linear
        self.norm2 = b.norm(outputs, affine=not self.adaptive)
        self.dropout = Dropout(b.dropout) if b.dropout else None
        self.conv2 = zero(conv(b.dims, outputs, outputs))
        same = inputs == outputs and not (direction and b.resample == "projected")
        self.skip = nn.Identity() if same else conv(b.dims, inputs, outputs, kernel=1)

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        embedding: Float[Tensor, "batch embedding"],
        keys: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch outputs *other"]:
        h = functional.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        modulation = self.modulation(embedding).reshape(x.shape[0], -1, *[1] * (x.ndim - 2))
        if self.adaptive:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), scale + 1.0)
        else:
            h = self.norm2(h + modulation)
        h = functional.silu(h)
        h = h if self.dropout is None else self.dropout(h, keys)
        out = self.skip(x) + self.conv2(h)
        return out * math.sqrt(0.5) if self.rescale else out


class UNetBlock(nn.Module):
    """A residual block, followed by self-attention and attention to tokens where there are any."""

    def __init__(self, blueprint: Blueprint, inputs: int, outputs: int, attend: bool) -> None:
        super().__init__()
        self.res = ResBlock(blueprint, inputs, outputs)
        self.attention = self.cross = None
        if attend:
            b = blueprint
            heads = head_count(outputs, b.heads, b.head_channels)
            if b.tokens is None or b.cross != "only":
                joined = b.tokens if b.cross == "joined" else None
                self.attention = Attention(b.norm(outputs), heads, joined, rescale=b.rescale)
            if b.tokens is not None and b.cross != "joined":
                self.cross = CrossAttention(b.norm(outputs), heads, b.tokens, rescale=b.rescale)

    def forward(
        self, x: Tensor, embedding: Tensor, keys: Tensor | None, tokens: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        x = self.res(x, embedding, keys)
        x = x if self.attention is None else self.attention(x, tokens, mask)
        return x if self.cross is None else self.cross(x, tokens, mask)


def halving(blueprint: Blueprint, inputs: int, outputs: int) -> nn.Module:
    """What halves the sides."""
    b = blueprint
    if b.resample == "block" or b.resample == "projected":
        return ResBlock(b, inputs, outputs, "down")
    return Downsample(b.dims, inputs, b.resample, b.taps, outputs)


def doubling(blueprint: Blueprint, channels: int) -> nn.Module:
    """What doubles the sides."""
    b = blueprint
    if b.resample == "block" or b.resample == "projected":
        return ResBlock(b, channels, channels, "up")
    fixed = b.resample == "fixed"
    return Upsample(b.dims, channels, not fixed, b.taps if fixed else (1.0, 1.0))


class _ResidualInput(nn.Module):
    """The input of a resolution, convolved and then filtered to the next, where it is added."""

    def __init__(self, blueprint: Blueprint, inputs: int, outputs: int) -> None:
        super().__init__()
        self.resample = Resample(blueprint.dims, "down", blueprint.taps)
        # no position of the convolution is lost to the filter at the border
        self.conv = conv(blueprint.dims, inputs, outputs, pad=1 + self.resample.pad)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return (x + self.resample.filter(self.conv(before), 0)) * math.sqrt(0.5)


class UNetEncoder(nn.Module):
    """The first half of a U-Net: the time embedding, the first convolution, the way down and the middle."""

    def __init__(self, inputs: int, blueprint: Blueprint) -> None:
        super().__init__()
        b, channels = blueprint, blueprint.channels
        early, last = b.order == "resampling", len(channels) - 1
        self.blueprint, self.inputs, self.factor = b, inputs, b.patch * 2 ** (last + early)
        self.tokens, self.concatenated = b.tokens, b.concatenated
        embedding = (b.feature_count, b.embedding_width, b.time_scale, b.time_kind, b.time_period, b.vector_in)
        self.time = TimeEmbedding(*embedding)
        self.width = self.time.vector_width
        self.joins_all = b.skips == "all"
        current = b.first or channels[0]
        patch_inputs = (inputs + b.concatenated) * b.patch**b.dims
        self.coordinates = Coordinates() if b.coordinates else None
        self.first = conv(b.dims, patch_inputs + b.dims * b.coordinates, current)
        # the first convolution has no block at its resolution that it could be joined to, if that changes first
        self.joins_first = self.joins_all and not early
        self.skip_widths = [current] if self.joins_first else []
        self.down = nn.ModuleList()
        halved = [patch_inputs]
        for level, width in enumerate(channels):
            stage = nn.ModuleList()
            blocks: list[int | None] = list(range(b.depths[level]))
            if early or level < last:
                blocks.insert(0 if early else len(blocks), None)
            for block in blocks:
                halves = block is None
                outputs = current if halves and b.resample == "fixed" else width
                if halves:
                    stage.append(halving(b, current, outputs))
                    halved.append(outputs)
                else:
                    attend = b.attends(level, block, b.depths[level], "down")
                    stage.append(UNetBlock(b, current, outputs, attend))
                if self.joins_all or not halves:
                    self.skip_widths.append(outputs)
                current = outputs
            self.down.append(stage)
        if b.residual_input:
            self.residuals = nn.ModuleList(
                _ResidualInput(b, before, after) for before, after in itertools.pairwise(halved)
            )
        self.middle = nn.ModuleList(
            UNetBlock(b, current, current, b.middle_attention and i == 0) for i in range(b.middle)
        )

    def check(self, shape: Sequence[int]) -> None:
        """Check that inputs of shape ``(channels, *space)`` fit."""
        channels, *sides = shape
        if channels != self.inputs or len(sides) != self.blueprint.dims:
            takes = f"{self.inputs} channels over {self.blueprint.dims} spatial axes"
            raise InputError(f"This network takes {takes}; got shape {tuple(shape)}.")
        check_divisible(sides, self.factor, "down-sampling", "fewer resolutions")

    def run(self, module: Callable[..., Tensor], x: Tensor, embedding: Tensor, *options: Tensor | None) -> Tensor:
        """The output of a block or of a change of resolution; ``options`` are keys, tokens and mask."""
        if not isinstance(module, UNetBlock | ResBlock):
            return module(x)
        inputs = (x, embedding, *(options if isinstance(module, UNetBlock) else options[:1]))
        if self.blueprint.checkpointing and torch.is_grad_enabled():
            # no generator is used within, so there is no state of one to restore
            return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
        return module(*inputs)

    def descend(self, x: Tensor, embedding: Tensor, *options: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The activation after the middle, and those that are joined on the way up."""
        x = residual = to_patches(x, self.blueprint.patch)
        x = self.first(x if self.coordinates is None else self.coordinates(x))
        skips = [x] if self.joins_first else []
        for level, stage in enumerate(self.down):
            for module in stage:  # pyright: ignore[reportGeneralTypeIssues]
                x = self.run(module, x, embedding, *options)
                is_block = isinstance(module, UNetBlock)
                if not is_block and self.blueprint.residual_input:
                    x = residual = self.residuals[level](x, residual)
                if is_block or self.joins_all:
                    skips.append(x)
        for module in self.middle:
            x = self.run(module, x, embedding, *options)
        return x, skips

    def initialize(self) -> None:
        """Initialize the weights by the blueprint, and number the dropout layers."""
        number_layers(self)
        if self.blueprint.initialization == "torch" or next(self.parameters()).is_meta:
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and bool(module.weight.any()):
                # weaker queries, keys and values: attention that starts soft (Karras et al. 2022, code)
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(0.2) if name.endswith("qkv") else 1.0)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class UNet(UNetEncoder):
    """A U-Net of residual blocks and self-attention.

    Args:
        channels: width of each resolution, from the finest; each further one halves the sides.
        options: the other attributes of a :class:`Blueprint`.
    """

    def __init__(self, inputs: int, outputs: int, channels: Sequence[int] = (64, 128, 128), **options: Any) -> None:
        b = Blueprint(channels=tuple(channels), **options)
        super().__init__(inputs, b)
        current, joined = channels[-1], list(self.skip_widths)
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(channels))):
            stage = nn.ModuleList()
            count = b.depths[level] + self.joins_all
            for i in range(count):
                attend = b.attends(level, i, count, "up")
                stage.append(UNetBlock(b, current + joined.pop(), width, attend))
                current = width
            if level > 0 or b.order == "resampling":
                stage.append(doubling(b, current))
            self.up.append(stage)
        self.norm = b.norm(current)
        self.last = zero(conv(b.dims, current, outputs * b.patch**b.dims))
        self.initialize()

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        vector: Float[Tensor, "batch width"] | None = None,
        tokens: Float[Tensor, "batch length features"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
        channels: Float[Tensor, "batch concatenated *space"] | None = None,
        keys: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output for ``x`` at ``time`` (see :mod:`sfumato.networks` for the slots)."""
        self.check(x.shape[1:])
        x = concatenate(x, channels, self.concatenated)
        check_tokens(tokens, mask, x, self.tokens)
        embedding = self.time.activated(time, vector)
        options = (keys, None if tokens is None else tokens.to(x.dtype), mask)
        x, skips = self.descend(x, embedding, *options)
        scale = self.blueprint.skip_scale
        skips = skips if scale == 1.0 else [skip * scale for skip in skips]
        for stage in self.up:
            for module in stage:  # pyright: ignore[reportGeneralTypeIssues]
                x = torch.cat([x, skips.pop()], dim=1) if isinstance(module, UNetBlock) else x
                x = self.run(module, x, embedding, *options)
        return from_patches(self.last(functional.silu(self.norm(x))), self.blueprint.patch)
