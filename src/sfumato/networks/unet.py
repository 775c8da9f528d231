"""The U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.embeddings import TimeEmbedding, TimeFeatures
from sfumato.networks.layers import Attention, Dims, Downsample, Modulation, ResBlock, Upsample, conv, group_norm, zero


class _Block(nn.Module):
    """A residual block and, where asked, attention."""

    def __init__(
        self,
        dims: Dims,
        inputs: int,
        outputs: int,
        embedding: int,
        groups: int,
        heads: int | None,
        modulation: Modulation,
    ) -> None:
        super().__init__()
        self.res = ResBlock(dims, inputs, outputs, embedding, groups, modulation)
        self.attention = Attention(outputs, heads, groups) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.res(x, embedding)
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """A U-Net of residual blocks and self-attention (Ho et al. 2020, app. B; Dhariwal and Nichol 2021, sec. 3).

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        channels: width of each resolution, from the finest; each further one halves the sides.
        blocks: residual blocks per resolution.
        attention: which resolutions have self-attention, by index from the finest.
        middle: residual blocks at the coarsest resolution, between down and up.
        middle_attention: whether the first of them is followed by attention.
        skips: ``"all"`` joins every activation of the way down, those of the first convolution and of the
            down-sampling too, to one more block per resolution on the way up, as DDPM does; ``"blocks"`` only those
            of the residual blocks, which is a third fewer blocks.
        resample: ``"learned"`` changes resolution with a convolution, ``"fixed"`` by averaging and repeating.
        heads: attention heads.
        groups: groups of the normalizations, at most.
        embedding: width of the time embedding; by default four times the first width.
        time_features: number of time features; by default the first width.
        time_scale: the largest frequency of sinusoidal time features, the standard deviation of random ones.
        time_kind: ``"sinusoidal"`` or random ``"fourier"`` features of time.
        modulation: how blocks take in the embedding: ``"adaptive"`` group normalization, or ``"additive"``, the same
            numbers at every position.
        dims: 1 for signals, 2 for images.

    Raises:
        InputError: if the settings contradict each other.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: Sequence[int] = (64, 128),
        *,
        blocks: int = 2,
        attention: Sequence[int] = (),
        middle: int = 2,
        middle_attention: bool = True,
        skips: Literal["all", "blocks"] = "all",
        resample: Literal["learned", "fixed"] = "learned",
        heads: int = 1,
        groups: int = 32,
        embedding: int | None = None,
        time_features: int | None = None,
        time_scale: float = 1.0,
        time_kind: TimeFeatures = "sinusoidal",
        modulation: Modulation = "adaptive",
        dims: Dims = 2,
    ) -> None:
        super().__init__()
        if not channels or blocks < 1 or middle < 1:
            raise InputError("A U-Net needs at least one resolution, and one block there and in the middle.")
        if any(not 0 <= level < len(channels) for level in attention):
            raise InputError(
                f"Attention is asked at resolution {max(attention)}, but there are {len(channels)}, counted from 0."
            )
        self.inputs, self.dims, self.factor = inputs, dims, 2 ** (len(channels) - 1)
        self.width = width = embedding or 4 * channels[0]
        self.time = TimeEmbedding(time_features or 2 * (channels[0] // 2), width, time_scale, time_kind)

        def block(before: int, after: int, attend: bool) -> _Block:
            return _Block(dims, before, after, width, groups, heads if attend else None, modulation)

        self.every = skips == "all"
        learned = resample == "learned"
        current = channels[0]
        self.first = conv(dims, inputs, current)
        joined = [current] if self.every else []
        self.down = nn.ModuleList()
        for level, wide in enumerate(channels):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(current, wide, level in attention))
                current = wide
                joined.append(current)
            if level < len(channels) - 1:
                stage.append(Downsample(dims, current, learned))
                joined += [current] if self.every else []
            self.down.append(stage)
        self.middle = nn.ModuleList(block(current, current, middle_attention and i == 0) for i in range(middle))
        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(channels))):
            stage = nn.ModuleList()
            for _ in range(blocks + self.every):
                stage.append(block(current + joined.pop(), wide, level in attention))
                current = wide
            if level > 0:
                stage.append(Upsample(dims, current, learned))
            self.up.append(stage)
        self.norm = group_norm(current, groups)
        self.last = zero(conv(dims, current, outputs))

    def check(self, shape: Sequence[int]) -> None:
        """Check that inputs of shape ``(channels, *space)`` fit.

        Raises:
            InputError: for another number of channels or axes, or sides that the down-sampling does not divide.
        """
        channels, *sides = shape
        if channels != self.inputs or len(sides) != self.dims:
            raise InputError(
                f"This network takes {self.inputs} channels over {self.dims} spatial axes; got shape {tuple(shape)}."
            )
        if any(side % self.factor or side == 0 for side in sides):
            below = [max(1, side // self.factor) * self.factor for side in sides]
            above = [-(-side // self.factor) * self.factor for side in sides]
            fits = " or ".join("x".join(map(str, size)) for size in dict.fromkeys([tuple(below), tuple(above)]))
            raise InputError(
                f"A size of {'x'.join(map(str, sides))} is not divisible by the down-sampling of {self.factor}; "
                f"resize to {fits}, or use fewer resolutions."
            )

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        vector: Float[Tensor, "batch width"] | None = None,
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output for ``x`` at ``time``; ``vector`` is added to the time embedding.

        Raises:
            InputError: if the sides of ``x`` do not divide by the down-sampling.
        """
        self.check(x.shape[1:])
        embedding = self.time(time)
        if vector is not None:
            embedding = embedding + vector
        # every block starts from the activation of the same embedding: compute it once
        embedding = functional.silu(embedding)
        x = self.first(x)
        skips = [x] if self.every else []
        for stage in self.down:
            for module in stage:  # pyright: ignore[reportGeneralTypeIssues]
                block = isinstance(module, _Block)
                x = module(x, embedding) if block else module(x)
                if block or self.every:
                    skips.append(x)
        for module in self.middle:
            x = module(x, embedding)
        for stage in self.up:
            for module in stage:  # pyright: ignore[reportGeneralTypeIssues]
                if isinstance(module, _Block):
                    x = module(torch.cat([x, skips.pop()], dim=1), embedding)
                else:
                    x = module(x)
        return self.last(functional.silu(self.norm(x)))
