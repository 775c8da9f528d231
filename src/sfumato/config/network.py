"""Settings of the networks beside the U-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sfumato.config.base import Component
from sfumato.config.conditions import Slots, conditioned
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import nn

TimeKind = Literal["sinusoidal", "fourier", "learned"]

DiTPreset = Literal[
    "DiT-S/2",
    "DiT-S/4",
    "DiT-S/8",
    "DiT-B/2",
    "DiT-B/4",
    "DiT-B/8",
    "DiT-L/2",
    "DiT-L/4",
    "DiT-L/8",
    "DiT-XL/2",
    "DiT-XL/4",
    "DiT-XL/8",
]
"""The published sizes, each with its patch (Peebles and Xie 2023)."""


class DiTConfig(Slots):
    """A transformer over patches."""

    kind: Literal["dit"] = "dit"
    preset: DiTPreset = Field(
        default="DiT-S/2", description="The published size that the numbers below are of, where they are not given."
    )
    patch: int | None = Field(default=None, ge=1, description="Side of a patch; that of the preset.")
    width: int | None = Field(default=None, ge=2, description="Width of the tokens; that of the preset.")
    depth: int | None = Field(default=None, ge=1, description="Blocks; those of the preset.")
    heads: int | None = Field(default=None, ge=1, description="Attention heads; those of the preset.")
    conditioning: Literal["cross", "context"] = Field(
        default="cross",
        description="How the tokens of a condition are taken in: by cross-attention in every block, or as more tokens "
        "in context.",
    )
    checkpointing: bool = Field(
        default=False, description="Compute the blocks again in the backward pass, which saves memory and costs time."
    )
    time_features: int = Field(default=256, ge=2, multiple_of=2, description="Features of the noise level.")
    time_scale: float = Field(
        default=1.0,
        gt=0,
        description="Largest frequency of sinusoidal and learned time features, spread of that of random ones.",
    )
    time_kind: TimeKind = Field(
        default="sinusoidal", description="Features of the noise level: sinusoids, of random or of learned frequencies."
    )

    def build(self, shape: tuple[int, ...], classes: int, outputs: int | None = None) -> nn.Module:
        """The network for data of ``shape`` ``(C, *space)``, told of ``classes`` labels when there are any.

        It returns ``outputs`` channels, by default as many as the data have.

        Raises:
            InputError: if the shape does not fit, or the numbers contradict each other.
        """
        from sfumato.networks.dit import SIZES, DiT

        size, _, patch = self.preset.removeprefix("DiT-").partition("/")
        width, depth, heads = SIZES[size]
        network = DiT(
            shape[0],
            outputs or shape[0],
            shape[1:],
            patch=self.patch or int(patch),
            width=self.width or width,
            depth=self.depth or depth,
            heads=self.heads or heads,
            tokens=self.tokens,
            conditioning=self.conditioning,
            concatenated=self.concatenated,
            checkpointing=self.checkpointing,
            time_features=self.time_features,
            time_scale=self.time_scale,
            time_kind=self.time_kind,
        )
        return conditioned(network, classes, self.labels_in, network.width, self.tokens, self.concatenated)


class MLPConfig(Component):
    """Residual blocks of linear layers, for vectors."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(default=128, ge=1, description="Width of the layers.")
    depth: int = Field(default=3, ge=1, description="Residual blocks.")
    embedding: int | None = Field(default=None, ge=1, description="Width of the time embedding; that of the layers.")
    time_features: int = Field(default=64, ge=2, multiple_of=2, description="Features of the noise level.")
    time_scale: float = Field(
        default=1.0,
        gt=0,
        description="Largest frequency of sinusoidal and learned time features, spread of that of random ones.",
    )
    time_kind: TimeKind = Field(
        default="sinusoidal", description="Features of the noise level: sinusoids, of random or of learned frequencies."
    )

    def build(self, shape: tuple[int, ...], classes: int, outputs: int | None = None) -> nn.Module:
        """The network for vectors of ``shape`` ``(C,)``, told of ``classes`` labels when there are any.

        It returns ``outputs`` numbers, by default as many as the vectors have.

        Raises:
            InputError: if the data are no vectors.
        """
        from sfumato.networks.mlp import MLP

        if len(shape) != 1:
            raise InputError(
                f"An MLP takes vectors (C,), but the data have shape {shape}; use model.network.kind unet or dit."
            )
        network = MLP(
            shape[0],
            outputs or shape[0],
            width=self.width,
            depth=self.depth,
            embedding=self.embedding,
            time_features=self.time_features,
            time_scale=self.time_scale,
            time_kind=self.time_kind,
        )
        return conditioned(network, classes, "vector", network.width)
