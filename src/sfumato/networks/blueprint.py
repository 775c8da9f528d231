"""What a U-Net is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfumato.errors import InputError
from sfumato.networks.layers import Dims, Norm, PixelNorm, group_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A U-Net of residual blocks and self-attention.

    With its options it is the network of DDPM, Improved DDPM and ADM (Dhariwal and Nichol 2021, sec. 3), DDPM++ or
    NCSN++ (Y. Song et al. 2021, app. H), or the Efficient U-Net of Imagen's up-samplers (Saharia et al. 2022, app. B).
    The last has its blocks where they are cheap: the ``order`` resampling, more ``blocks`` at coarse resolutions than
    at fine ones, no ``middle``, ``skips`` of blocks scaled by 2^-1/2, and attention after the last block of the
    coarsest resolution only. Large pictures then take a fraction of the time and memory per parameter.

    Attributes:
        channels: width of each resolution, from the finest; each further one halves the sides.
        patch: side of the patches of the input that are one position of the finest resolution (Luhman and Luhman 2022);
            2 leaves a quarter of the positions.
        first: width of the first convolution; by default that of the finest resolution.
        coordinates: whether the first convolution is also given where each position is, from -1 to 1 along each axis
            (Liu et al. 2018), by which convolutions and attention can tell left from right.
        blocks: residual blocks per resolution; one number for all, or one for each from the finest.
        attention: resolutions with self-attention, by index from the finest.
        down_attention: whether all blocks of these resolutions have it on the way down, or only the last of each.
        up_attention: the same on the way up.
        middle: residual blocks at the coarsest resolution, between down and up; 0 for none.
        middle_attention: whether the first of them is followed by self-attention.
        order: what comes first at each resolution on the way down, and last on the way up: its blocks, so that the
            finest ones work at the sides of the input; or the change of resolution (resampling), at the finest too, so
            that all blocks have a quarter of the positions (Saharia et al. 2022, app. B).
        skips: which activations of the way down are joined on the way up: all, as in DDPM, or those of residual blocks
            only, which is a third fewer blocks.
        skip_scale: what these are multiplied with; Imagen's up-samplers have 2^-1/2.
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
        tokens: features of a token of the slot ``tokens``, which there is attention to wherever there is
            self-attention; None for a network without that slot.
        cross: how tokens are attended to: after self-attention, by attention of its own (separate); together with the
            positions, as further keys and values of self-attention (joined; Nichol et al. 2021, sec. 2, and the base
            model of Imagen); or in its place (only; the last stage of Imagen, which is trained on crops).
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
    down_attention: Literal["all", "last"] = "all"
    up_attention: Literal["all", "last"] = "all"
    middle: int = 2
    middle_attention: bool = True
    order: Literal["blocks", "resampling"] = "blocks"
    skips: Literal["all", "blocks"] = "all"
    skip_scale: float = 1.0
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
    cross: Literal["separate", "joined", "only"] = "separate"
    concatenated: int = 0
    initialization: Literal["torch", "xavier"] = "torch"
    dims: Dims = 2

    def __post_init__(self) -> None:
        if isinstance(self.blocks, tuple) and len(self.blocks) != len(self.channels):
            raise InputError(
                f"A U-Net has blocks for each resolution, or one number for all: got {len(self.blocks)} numbers for "
                f"{len(self.channels)} resolutions."
            )
        sizes = (*self.channels, *self.depths, self.patch, 1 if self.first is None else self.first)
        if not self.channels or min(sizes) < 1 or self.middle < 0:
            raise InputError(
                "The channels, blocks, patch and first convolution of a U-Net are at least 1, and middle at least 0."
            )
        if self.skip_scale <= 0.0:
            raise InputError(f"What joined activations are multiplied with is above 0; got {self.skip_scale:g}.")
        if self.eps <= 0.0:
            raise InputError(f"What normalizations add to the variance (eps) is above 0; got {self.eps:g}.")
        for level in self.attention:
            if not 0 <= level < len(self.channels):
                raise InputError(f"Attention cannot be at resolution {level}: there are {len(self.channels)}, from 0.")
        if self.tokens is not None and not self.attention and not (self.middle and self.middle_attention):
            raise InputError(
                "Tokens are attended to where there is self-attention, but there is none; give resolutions for "
                "attention, or middle_attention."
            )

    @property
    def depths(self) -> tuple[int, ...]:
        """The residual blocks of each resolution, from the finest."""
        return self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * len(self.channels)

    def attends(self, level: int, block: int, blocks: int, way: Literal["down", "up"]) -> bool:
        """Whether there is attention after a block of a resolution, the number ``block`` of as many as ``blocks``."""
        which = self.down_attention if way == "down" else self.up_attention
        return level in self.attention and (which == "all" or block == blocks - 1)

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
