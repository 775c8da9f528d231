"""Settings of the U-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from sfumato.config.conditions import Slots, conditioned
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class UNetConfig(Slots):
    """A U-Net of residual blocks and self-attention."""

    kind: Literal["unet"] = "unet"
    channels: tuple[PositiveInt, ...] = Field(
        default=(64, 128, 128), min_length=1, description="Width per resolution, finest first."
    )
    patch: int = Field(
        default=1,
        ge=1,
        description="Side of patches of the input that are one position of the finest resolution: 2 leaves a quarter "
        "of them.",
    )
    first: int | None = Field(
        default=None, ge=1, description="Width of the first convolution; that of the finest resolution."
    )
    blocks: int = Field(default=2, ge=1, description="Residual blocks per resolution.")
    attention: tuple[int, ...] = Field(
        default=(2,), description="Resolutions with self-attention, by index from the finest."
    )
    up_attention: Literal["all", "last"] = Field(
        default="all", description="Which of their blocks have it on the way up: all, or the last of each resolution."
    )
    middle: int = Field(default=2, ge=1, description="Residual blocks in the middle.")
    middle_attention: bool = Field(default=True, description="Whether the middle has self-attention.")
    skips: Literal["all", "blocks"] = Field(
        default="all", description="What is joined on the way up: all activations (DDPM), or those of blocks only."
    )
    resample: Literal["learned", "asymmetric", "fixed", "block", "projected"] = Field(
        default="learned",
        description="Change of resolution: by convolutions (learned; asymmetric pads as DDPM does), by a filter alone "
        "(fixed), or by a filter in residual blocks (block as in ADM; projected as in NCSN++).",
    )
    taps: tuple[PositiveFloat, ...] = Field(
        default=(1.0, 1.0), description="The filter: 1 1 averages and repeats, 1 3 3 1 is that of NCSN++."
    )
    residual_input: bool = Field(
        default=False, description="Add the input, brought to each resolution, on the way down, as NCSN++ does."
    )
    rescale: bool = Field(default=False, description="Divide sums of two branches by the square root of 2.")
    heads: int = Field(default=4, ge=1, description="Attention heads.")
    head_channels: int | None = Field(
        default=None, ge=1, description="Channels per attention head, in place of a number of heads."
    )
    groups: int = Field(default=32, ge=1, description="Groups of the normalizations, at most.")
    group_channels: int = Field(default=1, ge=1, description="Channels of such a group, at least.")
    eps: float = Field(default=1e-5, gt=0, description="What the normalizations add to the variance.")
    embedding: int | None = Field(
        default=None, ge=2, description="Width of the time embedding; four times the first width."
    )
    time_features: int | None = Field(
        default=None, ge=2, multiple_of=2, description="Sinusoidal time features; as many as the first width."
    )
    time_scale: float = Field(
        default=1.0,
        gt=0,
        description="Largest frequency of sinusoidal time features, spread of that of random ones.",
    )
    time_period: float = Field(
        default=10_000.0,
        gt=1,
        description="Ratio of the largest frequency of sinusoidal time features to the smallest.",
    )
    time_kind: Literal["sinusoidal", "fourier", "learned"] = Field(
        default="sinusoidal", description="Features of the noise level: sinusoids, or those of random frequencies."
    )
    vector_in: Literal["embedding", "features"] = Field(
        default="embedding", description="Whether labels are added to the embedding of time or to its features."
    )
    modulation: Literal["adaptive", "additive"] = Field(
        default="adaptive", description="The embedding scales and shifts the normalized activations, or adds to them."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Fraction of activations left out in the training.")
    checkpointing: bool = Field(
        default=False, description="Compute the blocks again in the backward pass, which saves memory and costs time."
    )
    initialization: Literal["torch", "xavier"] = Field(
        default="torch", description="Initial weights: the default of torch, or Xavier's as in DDPM and NCSN++."
    )

    def options(self) -> dict[str, Any]:
        """The settings as arguments of a :class:`~sfumato.networks.unet.UNet`."""
        return self.model_dump(exclude={"kind", "labels_in"})

    def build(self, shape: tuple[int, ...], classes: int, outputs: int | None = None) -> nn.Module:
        """The network for data of ``shape`` ``(C, *space)``, told of ``classes`` labels when there are any.

        It returns ``outputs`` channels, by default as many as the data have.
        """
        from sfumato.networks.unet import UNet

        if len(shape) not in (2, 3):
            raise InputError(f"A U-Net takes signals (C, L) or images (C, H, W); the data have shape {shape}.")
        network = UNet(shape[0], outputs or shape[0], **self.options(), dims=1 if len(shape) == 2 else 2)
        network.check(shape)
        return conditioned(network, classes, self.labels_in, network.width, self.tokens, self.concatenated)
