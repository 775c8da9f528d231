"""Settings of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sfumato.config.base import Component

if TYPE_CHECKING:
    from sfumato.data import Dataset


class DataConfig(Component):
    """What is trained on, and how it is read."""

    source: str = Field(
        default="digits", description="A name (digits), a folder of images, an .npy or .npz file, or hf:NAME."
    )
    size: int | tuple[int, int] | None = Field(
        default=None, description="Side, or height and width, that images are resized to."
    )
    channels: Literal["grey", "rgb", "rgba"] | None = Field(
        default=None, description="Channels that images are converted to."
    )
    value_range: tuple[float, float] | None = Field(default=None, description="What float arrays span, such as 0 1.")
    layout: Literal["NHW", "NHWC", "NCHW", "NCL", "NC"] | None = Field(
        default=None, description="The axes of an array."
    )
    crop: Literal["center", "none"] = Field(
        default="center", description="Whether resizing crops to the shape of `size`."
    )
    random_crop: int | tuple[int, int] | None = Field(default=None, description="Train on random windows of this size.")
    flip: bool = Field(default=False, description="Mirror half of the images left to right while training.")
    labels: bool = Field(
        default=False, description="Train with labels: those of the source, or the sub-folders of a folder."
    )
    holdout: int | float = Field(
        default=0.1, ge=0, description="Images kept out of training: a count, or a fraction below 1."
    )
    workers: int = Field(default=4, ge=1, description="Threads that decode images.")
    cache: str | None = Field(
        default=None, description="Where decoded images are kept (default: sfumato in the user's folder for caches)."
    )

    def build(self) -> Dataset:
        """Read the data."""
        from sfumato import data

        return data.load(
            self.source,
            size=self.size,
            channels=self.channels,
            labels=self.labels,
            value_range=self.value_range,
            layout=self.layout,
            crop=self.crop,
            workers=self.workers,
            cache=self.cache,
        )
