"""The same image at a lower resolution, for super-resolution and cascades."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
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


def blurred(
    images: Float[Tensor, "batch channels height width"], std: Shaped[Tensor, "batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Images blurred by Gaussians of these standard deviations in pixels, cut at 3 of the largest; edges mirror."""
    count, channels, height, width = images.shape
    reach = min(math.ceil(3.0 * float(std.max())), height - 1, width - 1)
    if reach < 1:
        return images
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernels = torch.exp(-0.5 * (offsets / std.double().cpu().clamp(min=1e-3)[:, None]).square())
    kernels = (kernels / kernels.sum(1, keepdim=True)).to(images).repeat_interleave(channels, 0)[:, None]
    planes = functional.pad(images, [reach] * 4, mode="reflect").flatten(0, 1)[None]
    planes = functional.conv2d(planes, kernels[:, :, None], groups=count * channels)
    planes = functional.conv2d(planes, kernels[:, :, :, None], groups=count * channels)
    return planes.reshape(images.shape)


def scaled_up(
    low: Float[Tensor, "batch planes h w"], shape: Sequence[int], how: str
) -> Float[Tensor, "batch channels height width"]:
    """Low-resolution images in a shape ``(channels, height, width)``."""
    channels, *sides = shape
    if low.shape[1] not in (1, channels):
        raise InputError(f"The low-resolution image has {low.shape[1]} channels; expected {channels}.")
    return functional.interpolate(low.expand(-1, channels, -1, -1), sides, mode=how)


@dataclass(frozen=True)
class Base:
    """The low-resolution image at the size of ``x``: what a residual model is given of its data; 0 for a null one."""

    name: str
    how: str

    def __call__(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        if self.name not in cond:
            return torch.zeros_like(x)
        return scaled_up(without_null(cond[self.name])[0].to(x), x.shape[1:], self.how)


@dataclass(frozen=True)
class LowResolution(Condition):
    r"""The image at a lower resolution, scaled up and concatenated to the input (Saharia et al. 2021).

    Training can add noise to it, :math:`\sqrt{1 - s^2}\, y + s\, \epsilon` with :math:`s` uniform in [0, ``noise``],
    and the network sees :math:`s` (Ho et al. 2022, "Cascaded diffusion models", sec. 4.2): it then depends less on what
    an earlier stage, or an unknown camera, got wrong.

    Training can also blur it, by a Gaussian whose standard deviation is uniform in [0, ``blur``] of its pixels, which
    the network is not told (Saharia et al. 2021, sec. 2.3): a real picture is less sharp than one that was scaled down.

    Attributes:
        drop: the fraction of samples that are trained without it, from 0 to below 1.
        column: the column of the data that holds low-resolution images; without one, the images are scaled down.
        factor: how many times smaller its sides are.
        down: how the clean image is scaled down: anti-aliased bicubic interpolation, or the mean of each square.
        up: how it is scaled up to the size of the input.
        noise: the largest level of the noise that training adds to it, from 0 to 1; 0 for none.
        level: the level of the noise that sampling adds to it, from 0 to 1.
        blur: the largest standard deviation, in its pixels, by which training blurs it; 0 for none.
        channels: its channels, taken from the data.
    """

    drop: float = 0.0
    column: str | None = None
    factor: int = 4
    down: Literal["bicubic", "area"] = "bicubic"
    up: Literal["bicubic", "bilinear"] = "bicubic"
    noise: float = 0.0
    level: float = 0.0
    blur: float = 0.0
    channels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1 or not 0.0 <= self.level <= self.noise <= 1.0:
            needs = "factor >= 1 and 0 <= level <= noise <= 1 (the network knows the levels of training only)"
            raise InputError(f"A low resolution needs {needs}; got {self.factor}, {self.level} and {self.noise}.")
        if not 0.0 <= self.blur <= 10.0:
            raise InputError(f"The blur of a low resolution is from 0 to 10 of its pixels; got {self.blur}.")

    @property
    def summary(self) -> str:
        return f"{self.factor}x up-scaling" if self.column is None else "low-resolution images"

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
        if self.blur:
            low = blurred(low, draws.uniform("blur") * self.blur)
        if not self.noise:
            return {"value": low}
        level = (draws.uniform("level") * self.noise).to(low)
        return self._noisy(low, level, draws.normal("noise", low.shape[1:]))

    def example(self, x0: Tensor, columns: Mapping[str, Tensor], *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        return self.given(self.of(x0, columns), len(x0), seed=seed, first=first)

    def of(self, x0: Tensor, columns: Mapping[str, Tensor]) -> Float[Tensor, "batch channels h w"]:
        """The low-resolution images in [-1, 1] of clean ones, without noise, clipped as those of files are."""
        if self.column is None:
            return scale_down(x0, self.factor, self.down).clamp(-1.0, 1.0)
        return _signed(take(columns, self.column))

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

    def build_encoder(self, shape: Sequence[int], width: int, tokens: int) -> nn.Module:
        return LowResolutionEncoder(self, shape, width)


def augmented(conditions: Mapping[str, Condition], level: float | None) -> dict[str, Condition]:
    """The conditions with another level of the noise that sampling adds to low-resolution images; None leaves it."""
    if level is None:
        return dict(conditions)
    noisy = {name: c for name, c in conditions.items() if isinstance(c, LowResolution) and c.noise}
    if not noisy:
        raise InputError(
            "input_noise is what is added to a low-resolution image, and this model was trained without: "
            "leave it out, or train with --conditions.low-resolution.noise 0.5."
        )
    if most := [c.noise for c in noisy.values() if level > c.noise]:
        raise InputError(f"input_noise is {level:g}; the network knows the levels of its training, 0 to {most[0]:g}.")
    return {**conditions, **{name: replace(c, level=level) for name, c in noisy.items()}}


def base_of(conditions: Mapping[str, Condition]) -> Base:
    """What a residual model with these conditions is given of its data."""
    for name, condition in conditions.items():
        if isinstance(condition, LowResolution):
            return Base(name, condition.up)
    raise InputError("A residual model needs an image to add to: train it with --condition low_resolution.")


class LowResolutionEncoder(nn.Module):
    """The image at the size of the input, or a number per channel for none; and an embedding of its noise level."""

    takes_x = True

    def __init__(self, condition: LowResolution, shape: Sequence[int], width: int) -> None:
        super().__init__()
        if len(shape) != 3:
            raise InputError(f"A low resolution is that of images (C, H, W); the samples have shape {tuple(shape)}.")
        self.channels, *_ = shape
        self.mode = condition.up
        self.null = Null((self.channels, 1, 1), condition.drop)
        self.embed = TimeEmbedding(64, width, scale=100.0) if condition.noise else None
        self.null_level = Null((width,), condition.drop) if condition.noise else None

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        value: Float[Tensor, "batch planes h w"],
        level: Float[Tensor, "batch"] | None = None,
    ) -> dict[str, Tensor]:
        value, null = without_null(value)
        slots = {"channels": self.null(scaled_up(value, (self.channels, *x.shape[2:]), self.mode), null)}
        if self.embed is not None and self.null_level is not None and level is not None:
            slots["vector"] = self.null_level(self.embed(without_null(level)[0]), null)
        return slots


def _signed(images: Tensor) -> Tensor:
    """Images in [-1, 1] from 8-bit ones, or as they are."""
    return images.float() / 127.5 - 1.0 if images.dtype == torch.uint8 else images.float()
