"""The settings of the data of a run."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from sfumato.config.component import Built, group
from sfumato.errors import InputError


class _Training(Built):
    """Which part of the data is trained on, and how it varies."""

    random_crop: int | tuple[int, int] | None = Field(default=None, description="Train on random crops of this size.")
    scale_down: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Downscale images by this factor, exactly as the condition low_resolution of a later stage does.",
    )
    edges: bool = Field(
        default=False,
        description="Add the edges of the full images as channels, their strength and directions, for a layout.",
    )
    embedder: Path | None = Field(
        default=None,
        description="Add embeddings of images and captions as columns image_embedding and caption_embedding, by this "
        "run of train --task contrast, or this folder of a CLIP that transformers saved.",
    )
    embeddings: bool = Field(
        default=False, description="Model the embeddings of the images in their place, as vectors; needs data.embedder."
    )
    flip: bool = Field(default=False, description="Flip images horizontally at random while training.")
    holdout: int | float = Field(
        default=0.1, ge=0, description="Images kept out of training: a count, or a fraction below 1."
    )

    @model_validator(mode="after")
    def _edges_stay(self) -> _Training:
        if self.edges and self.flip:
            raise InputError("The directions of edges do not turn with a flipped image; leave data.flip out.")
        return self

    @model_validator(mode="after")
    def _embedded(self) -> _Training:
        if self.embeddings and (self.edges or self.flip or self.random_crop is not None or self.scale_down > 1):
            raise InputError("Embeddings have no edges, flips, crops or scales; leave these settings of the data out.")
        return self


DataConfig = group(
    "DataConfig",
    "The data, and how they are read.",
    "sfumato.data.sources:load",
    base=_Training,
    leave=("columns",),
)
