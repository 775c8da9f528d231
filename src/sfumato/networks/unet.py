"""The U-Net."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sfumato.errors import InputError
from sfumato.networks.attention import Attention, CrossAttention, head_count
from sfumato.networks.embeddings import TimeEmbedding
from sfumato.networks.layers import (
    Coordinates,
    Dims,
    Downsample,
    Dropout,
    Norm,
    PixelNorm,
    Resample,
    Upsample,
    check_divisible,
    concatenate,
    conv,
    from_patches,
    group_norm,
    number_layers,
    to_patches,
    zero,
)
from sfumato.networks.slots import check_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A U-Net of residual blocks and self-attention.

    With its options it is the network of DDPM, Improved DDPM and ADM (Dhariwal and Nichol 2021, sec. 3), DDPM++ or
    NCSN++ (Y. Song et al. 2021, app. H).

    Attributes:
        channels: width of each resolution, from the finest; each further one halves the sides.
        patch: side of the patches of the input that are one position of the finest resolution (Luhman and Luhman 2022);
            2 leaves a quarter of the positions.
        first: width of the first convolution; by default that of the finest resolution.
        coordinates: whether the first convolution is also given where each position is, from -1 to 1 along each axis
            (Liu et al. 2018), by which convolutions and attention can tell left from right.
        blocks: residual blocks per resolution; one number for all, or one for each from the finest.
        attention: resolutions with self-attention, by index from the finest.
        up_attention: whether all blocks of these resolutions have it on the way up too, or only the last of each.
        middle: residual blocks at the coarsest resolution, between down and up.
        middle_attention: whether the first of them is followed by self-attention.
        skips: which activations of the way down are joined on the way up: all, as in DDPM, or those of residual blocks
            only, which is a third fewer blocks.
        resample: how the resolution changes: by convolutions (learned; asymmetric pads as DDPM does), by a filter alone
            (fixed), or by a filter within residual blocks (block as in ADM; projected as in NCSN++).
        taps: the filter: 1 1 averages and repeats, 1 3 3 1 is that of NCSN++.
        residual_input: whether the input, filtered to each resolution, is added on the way down, as in NCSN++.
        rescale: whether sums of two branches are divided by the square root of 2.
        heads: attention heads.
        head_channels: channels per attention head, in place of a number of heads.
        normalization: group normalization, over all positions; or of the channels of each pixel by themselves, by which
            a crop has the output that it has in the whole image.
        groups: groups of the normalizations, at most.
        group_channels: channels of such a group, at least.
        eps: what the normalizations add to the variance.
        embedding: width of the time embedding; by default four times the first of the channels.
        time_features: number of time features, even; by default the first of the channels.
        time_scale: largest frequency of sinusoidal and learned time features, standard deviation of random ones.
        time_period: ratio of the largest frequency of sinusoidal time features to the smallest.
        time_kind: features of time: sinusoidal, random Fourier ones, or learned.
        vector_in: whether the vector of a condition is added to the embedding of time or to its features.
        modulation: whether the embedding scales and shifts normalized activations (adaptive) or is added (additive).
        dropout: fraction of activations that is left out in training.
        checkpointing: compute the blocks again in the backward pass, which saves memory and costs time.
        tokens: features of a token of the slot ``tokens``, which every self-attention is then followed by attention to;
            None for a network without that slot.
        concatenated: channels of the slot ``channels``.
        initialization: initial weights: the default of torch, or Xavier's, uniform and without biases, as in DDPM and
            NCSN++.
        dims: 1 for signals, 2 for images.
    """

    channels: tuple[int, ...] = (64, 128, 128)
    patch: int = 1
    first: int | None = None
    coordinates: bool = False
    blocks: int | tuple[int, ...] = 2
    attention: tuple[int, ...] = ()
    up_attention: Literal["all", "last"] = "all"
    middle: int = 2
    middle_attention: bool = True
    skips: Literal["all", "blocks"] = "all"
    resample: Literal["learned", "asymmetric", "fixed", "block", "projected"] = "learned"
    taps: tuple[float, ...] = (1.0, 1.0)
    residual_input: bool = False
    rescale: bool = False
    heads: int = 4
    head_channels: int | None = None
    normalization: Literal["group", "pixel"] = "group"
    groups: int = 32
    group_channels: int = 1
    eps: float = 1e-5
    embedding: int | None = None
    time_features: int | None = None
    time_scale: float = 1.0
    time_period: float = 10_000.0
    time_kind: Literal["sinusoidal", "fourier", "learned"] = "sinusoidal"
    vector_in: Literal["embedding", "features"] = "embedding"
    modulation: Literal["adaptive", "additive"] = "adaptive"
    dropout: float = 0.0
    checkpointing: bool = False
    tokens: int | None = None
    concatenated: int = 0
    initialization: Literal["torch", "xavier"] = "torch"
    dims: Dims = 2

    def __post_init__(self) -> None:
        if isinstance(self.blocks, tuple) and len(self.blocks) != len(self.channels):
            raise InputError(
                f"A U-Net has blocks for each resolution, or one number for all: got {len(self.blocks)} numbers for "
                f"{len(self.channels)} resolutions."
            )
        sizes = (*self.channels, *self.depths, self.middle, self.patch, 1 if self.first is None else self.first)
        if not self.channels or min(sizes) < 1:
            raise InputError("The channels, blocks, middle, patch and first convolution of a U-Net are at least 1.")
        if self.eps <= 0.0:
            raise InputError(f"What normalizations add to the variance (eps) is above 0; got {self.eps:g}.")
        for level in self.attention:
            if not 0 <= level < len(self.channels):
                raise InputError(f"Attention cannot be at resolution {level}: there are {len(self.channels)}, from 0.")
        if self.tokens is not None and not self.attention and not self.middle_attention:
            raise InputError(
                "Tokens are attended to where there is self-attention, but there is none; give resolutions for "
                "attention, or middle_attention."
            )

    @property
    def depths(self) -> tuple[int, ...]:
        """The residual blocks of each resolution, from the finest."""
        return self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * len(self.channels)

    @property
    def embedding_width(self) -> int:
        return 4 * self.channels[0] if self.embedding is None else self.embedding

    @property
    def feature_count(self) -> int:
        return 2 * (self.channels[0] // 2) if self.time_features is None else self.time_features

    def norm(self, channels: int, affine: bool = True) -> Norm:
        if self.normalization == "pixel":
            return PixelNorm(channels, affine, self.eps)
        return group_norm(channels, self.groups, affine, self.eps, self.group_channels)

    def resampler(self, channels: int, direction: Literal["down", "up"]) -> nn.Module:
        if self.resample == "block" or self.resample == "projected":
            return ResBlock(self, channels, channels, direction)
        if direction == "down":
            return Downsample(self.dims, channels, self.resample, self.taps)
        fixed = self.resample == "fixed"
        return Upsample(self.dims, channels, not fixed, self.taps if fixed else (1.0, 1.0))


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
            heads = head_count(outputs, blueprint.heads, blueprint.head_channels)
            self.attention = Attention(blueprint.norm(outputs), heads, rescale=blueprint.rescale)
            if blueprint.tokens is not None:
                norm = blueprint.norm(outputs)
                self.cross = CrossAttention(norm, heads, blueprint.tokens, rescale=blueprint.rescale)

    def forward(
        self, x: Tensor, embedding: Tensor, keys: Tensor | None, tokens: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        x = self.res(x, embedding, keys)
        x = x if self.attention is None else self.attention(x)
        return x if self.cross is None else self.cross(x, tokens, mask)


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
        self.blueprint, self.inputs, self.factor = b, inputs, b.patch * 2 ** (len(channels) - 1)
        self.tokens, self.concatenated = b.tokens, b.concatenated
        embedding = (b.feature_count, b.embedding_width, b.time_scale, b.time_kind, b.time_period, b.vector_in)
        self.time = TimeEmbedding(*embedding)
        self.width = self.time.vector_width
        self.joins_all = b.skips == "all"
        current = b.first or channels[0]
        patch_inputs = (inputs + b.concatenated) * b.patch**b.dims
        self.coordinates = Coordinates() if b.coordinates else None
        self.first = conv(b.dims, patch_inputs + b.dims * b.coordinates, current)
        self.skip_widths = [current] if self.joins_all else []
        self.down = nn.ModuleList()
        for level, width in enumerate(channels):
            stage = nn.ModuleList()
            for _ in range(b.depths[level]):
                stage.append(UNetBlock(b, current, width, level in b.attention))
                current = width
                self.skip_widths.append(current)
            if level < len(channels) - 1:
                stage.append(b.resampler(current, "down"))
                self.skip_widths += [current] if self.joins_all else []
            self.down.append(stage)
        if b.residual_input:
            widths = zip([patch_inputs, *channels], channels[:-1], strict=False)
            self.residuals = nn.ModuleList(_ResidualInput(b, before, after) for before, after in widths)
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
        skips = [x] if self.joins_all else []
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
                attend = level in b.attention and (b.up_attention == "all" or i == count - 1)
                stage.append(UNetBlock(b, current + joined.pop(), width, attend))
                current = width
            if level > 0:
                stage.append(b.resampler(current, "up"))
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
        for stage in self.up:
            for module in stage:  # pyright: ignore[reportGeneralTypeIssues]
                x = torch.cat([x, skips.pop()], dim=1) if isinstance(module, UNetBlock) else x
                x = self.run(module, x, embedding, *options)
        return from_patches(self.last(functional.silu(self.norm(x))), self.blueprint.patch)
