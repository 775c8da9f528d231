"""The same image at a lower resolution, for super-resolution and cascades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sfumato import random
from sfumato.conditioning.base import Condition, Data, Filled, Null, rows_of, take, without_null
from sfumato.errors import InputError
from sfumato.io.images import read_any_size
from sfumato.io.reading import pixels_of
from sfumato.networks.embeddings import TimeEmbedding
from sfumato.random import Draws


def scale_down(
    images: Float[Tensor, "batch channels height width"], factor: int, how: Literal["bicubic", "area"] = "bicubic"
) -> Float[Tensor, "batch channels low_height low_width"]:
    """Images whose sides are ``factor`` times smaller: by anti-aliased bicubic interpolation, or the mean of squares.

    The interpolation is that of Pillow and of MATLAB's ``imresize`` (:math:`a = -0.5`), unrounded: near edges it can
    exceed the range of the images.
    """
    sides = images.shape[2:]
    if images.ndim != 4 or any(side % factor for side in sides):
        shape = tuple(images.shape[1:])
        raise InputError(f"A low resolution is that of images whose sides {factor} divides; got {shape}.")
    size = [side // factor for side in sides]
    if size[1] == 1 and how == "bicubic":
        # torch (2.13, on the CPU) repeats the first row of anti-aliased images that become one pixel wide
        return functional.interpolate(images.mT, size[::-1], mode=how, antialias=True).mT
    return functional.interpolate(images, size, mode=how, antialias=how == "bicubic")


@dataclass(frozen=True)
class LowResolution(Condition):
    r"""The image at a lower resolution, scaled up and concatenated to the input (Saharia et al. 2021).

    Training can add noise to it, :math:`\sqrt{1 - s^2}\, y + s\, \epsilon` with :math:`s` uniform in [0, ``noise``],
    and the network sees :math:`s` (Ho et al. 2022, "Cascaded diffusion models", sec. 4.2): it then depends less on what
    an earlier stage, or an unknown camera, got wrong.

    Attributes:
        drop: the fraction of samples that are trained without it, from 0 to below 1.
        column: the column of the data that holds low-resolution images; without one, the images are scaled down.
        factor: how many times smaller its sides are.
        down: how the clean image is scaled down: anti-aliased bicubic interpolation, or the mean of each square.
        up: how it is scaled up to the size of the input.
        noise: the largest level of the noise that training adds to it, from 0 to 1; 0 for none.
        level: the level of the noise that sampling adds to it, from 0 to 1.
        channels: its channels, taken from the data.
    """

    drop: float = 0.0
    column: str | None = None
    factor: int = 4
    down: Literal["bicubic", "area"] = "bicubic"
    up: Literal["bicubic", "bilinear"] = "bicubic"
    noise: float = 0.0
    level: float = 0.0
    channels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1 or not 0.0 <= self.level <= self.noise <= 1.0:
            needs = "factor >= 1 and 0 <= level <= noise <= 1 (the network knows the levels of training only)"
            raise InputError(f"A low resolution needs {needs}; got {self.factor}, {self.level} and {self.noise}.")

    def describe(self, data: Data) -> LowResolution:
        """With the number of channels."""
        super().describe(data)
        shape = data.shape if self.column is None else data.columns[self.column].values.shape[1:]
        return replace(self, channels=int(shape[0]))

    @property
    def parts(self) -> tuple[str, ...]:
        return ("value", "level") if self.noise else ("value",)

    def training(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        low = self.of(x0, columns)
        if not self.noise:
            return {"value": low}
        level = (draws.uniform("level") * self.noise).to(low)
        return self._noisy(low, level, draws.normal("noise", low.shape[1:]))

    def example(self, x0: Tensor, columns: Mapping[str, Tensor], *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        return self.given(self.of(x0, columns), len(x0), seed=seed, first=first)

    def of(self, x0: Tensor, columns: Mapping[str, Tensor]) -> Float[Tensor, "batch channels h w"]:
        """The low-resolution images in [-1, 1] of clean ones, without noise."""
        return scale_down(x0, self.factor, self.down) if self.column is None else _signed(take(columns, self.column))

    def _noisy(self, low: Tensor, level: Tensor, noise: Tensor) -> dict[str, Tensor]:
        s = level[:, None, None, None]
        return {"value": (1.0 - s * s).sqrt() * low + s * noise, "level": level}

    def given(self, value: Any, count: int, *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """An image of any size for all samples or one for each, ``(C, h, w)``, uint8 or in [-1, 1]; an image file."""
        if isinstance(value, str | Path):
            value = read_any_size(Path(value), self.channels)
        if not isinstance(value, Tensor):
            pixels = pixels_of(value) if isinstance(value, Image.Image) else np.asarray(value)
            if isinstance(value, Image.Image) and pixels.dtype != np.uint8:
                raise InputError("The low-resolution image has more than 8 bits; give it as a tensor in [-1, 1].")
            value = torch.from_numpy(pixels.copy())
        low = rows_of(_signed(value), count, (None, None, None), "The low-resolution image")
        if not self.noise:
            return {"value": low}
        noise = random.normal(seed, "low resolution", first, count, tuple(low.shape[1:]))
        return self._noisy(low, low.new_full((count,), self.level), noise.to(low))

    def missing(self, count: int) -> dict[str, Tensor]:
        parts = {"value": torch.full((count, 1, 1, 1), torch.nan), "level": torch.full((count,), torch.nan)}
        return {part: parts[part] for part in self.parts}

    def slots(self, shape: Sequence[int]) -> Filled:
        return Filled(vector=self.noise > 0.0, channels=shape[0])

    def encoder(self, shape: Sequence[int], width: int, tokens: int) -> nn.Module:
        return LowResolutionEncoder(self, shape, width)


class LowResolutionEncoder(nn.Module):
    """The image at the size of the input, or a number per channel for none; and an embedding of its noise level."""

    takes_space = True
    """Whether it is told the ``space`` of the input, which need not be that of the training."""

    def __init__(self, condition: LowResolution, shape: Sequence[int], width: int) -> None:
        super().__init__()
        if len(shape) != 3:
            raise InputError(f"A low resolution is that of images (C, H, W); the samples have shape {tuple(shape)}.")
        self.channels, *self.size = shape
        self.mode = condition.up
        self.null = Null((self.channels, 1, 1), condition.drop)
        self.embed = TimeEmbedding(64, width, scale=100.0) if condition.noise else None
        self.null_level = Null((width,), condition.drop) if condition.noise else None

    def forward(
        self,
        value: Float[Tensor, "batch channels h w"],
        level: Float[Tensor, "batch"] | None = None,
        space: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        value, null = without_null(value)
        if value.shape[1] not in (1, self.channels):
            raise InputError(f"The low-resolution image has {value.shape[1]} channels; expected {self.channels}.")
        value = functional.interpolate(value, list(space or self.size), mode=self.mode)
        slots = {"channels": self.null(value.expand(-1, self.channels, -1, -1), null)}
        if self.embed is not None and self.null_level is not None and level is not None:
            slots["vector"] = self.null_level(self.embed(without_null(level)[0]), null)
        return slots


def _signed(images: Tensor) -> Tensor:
    """Images in [-1, 1] from 8-bit ones, or as they are."""
    return images.float() / 127.5 - 1.0 if images.dtype == torch.uint8 else images.float()
