"""What a U-Net is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sfumato.errors import InputError
from sfumato.networks.embeddings import TimeFeatures
from sfumato.networks.layers import Dims, Downsample, Modulation, ResBlock, Upsample
from sfumato.networks.resampling import Resample, Smoothing

Resampling = Literal["learned", "asymmetric", "fixed", "block", "projected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a U-Net is made of.

    Attributes:
        channels: width of each resolution, from the finest; each further one halves the sides.
        patch: side of the patches of the input that the first convolution sees as one position, and that the last one
            gives (Luhman and Luhman 2022): the finest resolution has ``1 / patch`` of the sides.
        first: width of the first convolution; by default that of the finest resolution.
        blocks: residual blocks per resolution.
        attention: which resolutions have self-attention, by index from the finest.
        up_attention: whether all blocks of these resolutions have it on the way up too, or only the ``"last"`` of each.
        middle: residual blocks at the coarsest resolution, between down and up.
        middle_attention: whether the first of them is followed by attention.
        skips: ``"all"`` joins every activation of the way down, those of the first convolution and of the
            down-sampling too, to one more block per resolution on the way up, as DDPM does; ``"blocks"`` only those
            of the residual blocks, which is a third fewer blocks.
        resample: how the resolution changes: ``"learned"`` by a strided convolution and one after nearest neighbours;
            ``"asymmetric"`` so too, the strided one padded at the far end only, as DDPM does; ``"fixed"`` by a filter;
            ``"block"`` by a filter within a residual block (Dhariwal and Nichol 2021, sec. 3); ``"projected"`` by one
            whose skip has a convolution too (Y. Song et al. 2021, app. H).
        taps: the filter.
        residual_input: whether the input, filtered and convolved to each resolution in turn, is added on the way down
            (Y. Song et al. 2021, app. H).
        rescale: whether sums of two branches are divided by the square root of 2.
        heads: attention heads.
        head_channels: channels per attention head, in place of a number of heads.
        groups: groups of the normalizations, at most.
        group_channels: channels of a group, at least.
        eps: what the normalizations add to the variance.
        embedding: width of the time embedding; by default four times the first width.
        time_features: number of time features; by default the first width.
        time_scale: the largest frequency of sinusoidal time features, the standard deviation of random ones.
        time_period: the ratio of the largest frequency of sinusoidal time features to the smallest.
        time_kind: ``"sinusoidal"``, random ``"fourier"`` or ``"learned"`` features of time.
        vector_in: whether the slot ``vector`` is added to the ``"embedding"`` or to the ``"features"`` of time.
        modulation: how blocks take in the embedding: ``"adaptive"`` group normalization, or ``"additive"``, the same
            numbers at every position.
        dropout: the fraction of activations left out in each block, in calls with keys.
        checkpointing: compute the activations within blocks anew in the backward pass, to save their memory.
        tokens: features of a token of the slot ``tokens``, if it has that slot: every self-attention is then followed
            by attention to the tokens.
        concatenated: channels of the slot ``channels``.
        initialization: ``"torch"``, the default of its layers, or ``"xavier"`` (Glorot and Bengio 2010), uniform and
            without biases, as in DDPM and score-SDE. Branches that start at zero do so with both.
        dims: 1 for signals, 2 for images.
    """

    channels: Sequence[int] = (64, 128)
    patch: int = 1
    first: int | None = None
    blocks: int = 2
    attention: Sequence[int] = ()
    up_attention: Literal["all", "last"] = "all"
    middle: int = 2
    middle_attention: bool = True
    skips: Literal["all", "blocks"] = "all"
    resample: Resampling = "learned"
    taps: Smoothing = (1.0, 1.0)
    residual_input: bool = False
    rescale: bool = False
    heads: int = 1
    head_channels: int | None = None
    groups: int = 32
    group_channels: int = 1
    eps: float = 1e-5
    embedding: int | None = None
    time_features: int | None = None
    time_scale: float = 1.0
    time_period: float = 10_000.0
    time_kind: TimeFeatures = "sinusoidal"
    vector_in: Literal["embedding", "features"] = "embedding"
    modulation: Modulation = "adaptive"
    dropout: float = 0.0
    checkpointing: bool = False
    tokens: int | None = None
    concatenated: int = 0
    initialization: Literal["torch", "xavier"] = "torch"
    dims: Dims = 2

    def check(self) -> None:
        """Check that the settings go together.

        Raises:
            InputError: if they do not.
        """
        if not self.channels or self.blocks < 1 or self.middle < 1:
            raise InputError("A U-Net needs at least one resolution, and one block there and in the middle.")
        if self.patch < 1:
            raise InputError(f"A patch has a side of at least 1; got {self.patch}.")
        odd = [level for level in self.attention if not 0 <= level < len(self.channels)]
        if odd:
            raise InputError(
                f"Attention is asked at resolution {odd[0]}, but there are {len(self.channels)}, counted from 0."
            )

        if self.features < 2 or self.features % 2:
            raise InputError(f"Time features are an even number from 2 on; got {self.features}.")
        if self.tokens is not None and self.tokens < 1:
            raise InputError(f"Tokens have at least 1 feature; got {self.tokens}.")
        if self.tokens is not None and not self.attention and not self.middle_attention:
            raise InputError(
                "Tokens are attended to where there is self-attention, but there is none; give resolutions for "
                "attention, or middle_attention."
            )
        if self.concatenated < 0:
            raise InputError(f"The channels of a condition are a number from 0 on; got {self.concatenated}.")

    @property
    def width(self) -> int:
        return self.embedding or 4 * self.channels[0]

    @property
    def features(self) -> int:
        return self.time_features or 2 * (self.channels[0] // 2)

    @property
    def within(self) -> bool:
        """Whether the resolution changes within residual blocks."""
        return self.resample in ("block", "projected")

    def res_block(self, inputs: int, outputs: int, direction: Literal["down", "up"] | None = None) -> ResBlock:
        return ResBlock(
            self.dims,
            inputs,
            outputs,
            self.width,
            self.groups,
            self.modulation,
            eps=self.eps,
            group_channels=self.group_channels,
            dropout=self.dropout,
            rescale=self.rescale,
            resample=Resample(self.dims, direction, self.taps) if direction else None,
            project=direction is not None and self.resample == "projected",
        )

    def downsample(self, channels: int) -> nn.Module:
        if self.resample == "block" or self.resample == "projected":
            return self.res_block(channels, channels, "down")
        return Downsample(self.dims, channels, self.resample, self.taps)

    def upsample(self, channels: int) -> nn.Module:
        if self.within:
            return self.res_block(channels, channels, "up")
        taps = self.taps if self.resample == "fixed" else (1.0, 1.0)
        return Upsample(self.dims, channels, self.resample != "fixed", taps)
