"""Batches as a pure function of the seed and the global sample index."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.data.dataset import Dataset, as_tensor
from sfumato.data.options import height_width
from sfumato.errors import InputError
from sfumato.random import permutation, uniform


@dataclass(frozen=True, eq=False)
class Batch:
    """A run of consecutive samples.

    Attributes:
        x0: float32 in [-1, 1].
        labels: int64, or None for data without labels.
        start: the global index of the first sample; the others follow.
    """

    x0: Float[Tensor, "batch channels *space"]
    labels: Int[Tensor, "batch"] | None
    start: int


_AT_ONCE = 1 << 24  # values that statistics convert to float64 at once, 128 MiB


@functools.lru_cache(maxsize=4)  # a batch touches the current epoch and perhaps the next
def _epoch_order(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    order = permutation(seed, "order", epoch, size)
    order.setflags(write=False)
    return order


@dataclass(frozen=True, eq=False)
class Loader:
    """An endless stream of samples in which sample ``n`` depends on the seed and ``n`` alone.

    Sample ``n`` is item ``n % N`` of epoch ``n // N``, and each epoch has its own random order of all ``N`` images. So
    batches of any sizes, on any number of processes, before or after a restart, cut the same stream.

    Attributes:
        dataset: where the images come from.
        seed: decides orders, flips and crops.
        flip: mirror each sample left to right with probability 1/2.
        crop: take a random window of this size, a side or ``(height, width)``, from each sample; None for all of it.

    Raises:
        InputError: if the dataset is empty, or ``flip`` or ``crop`` ask for what its shape does not allow.
    """

    dataset: Dataset
    seed: int
    flip: bool = False
    crop: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        shape, name = self.dataset.shape, self.dataset.name
        if len(self.dataset) == 0:
            raise InputError(f"{name} is empty: there is nothing to load.")
        if (self.flip or self.crop is not None) and len(shape) != 3:
            option = "flip" if self.flip else "crop"
            raise InputError(f"{option} is for images; {name} has shape {shape}, without height and width.")
        if self.crop is not None:
            height, width = height_width(self.crop, "crop")
            if height > shape[1] or width > shape[2]:
                raise InputError(
                    f"crop={self.crop} is larger than the images of {name}, {shape[1]}x{shape[2]}; take a smaller crop."
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, *space)`` of a sample, after the crop."""
        shape = self.dataset.shape
        return shape if self.crop is None else (shape[0], *height_width(self.crop, "crop"))

    def indices(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Which images of the dataset samples ``start ... start + count - 1`` are; int64 ``(count,)``.

        Raises:
            InputError: if ``start`` is negative or ``count`` is not positive.
        """
        if start < 0 or count < 1:
            raise InputError(f"start={start}, count={count}; expected start >= 0 and count >= 1.")
        size, stop = len(self.dataset), start + count
        return np.concatenate(
            [
                _epoch_order(self.seed, epoch, size)[max(start - epoch * size, 0) : stop - epoch * size]
                for epoch in range(start // size, (stop - 1) // size + 1)
            ]
        )

    def batch(self, start: int, count: int) -> Batch:
        """Samples ``start ... start + count - 1``.

        Raises:
            InputError: if ``start`` is negative or ``count`` is not positive.
        """
        indices = self.indices(start, count)
        images = self._images(indices, start)
        if self.flip:
            mirrored = uniform(self.seed, "flip", start, count).numpy() < 0.5
            images[mirrored] = images[mirrored][..., ::-1]
        labels = self.dataset.labels
        return Batch(as_tensor(images), None if labels is None else torch.from_numpy(labels[indices]), start)

    def std(self, count: int) -> float:
        """The standard deviation of all values of the first ``count`` samples, computed a part of them at a time."""
        size = max(1, _AT_ONCE // math.prod(self.shape))
        total, mean, squares = 0, 0.0, 0.0
        for start in range(0, count, size):
            x0 = self.batch(start, min(size, count - start)).x0.double()
            deviation, own = float(x0.std(correction=0)), float(x0.mean())
            if count <= size:
                return deviation
            # sums of squares about the means of two parts give that about the common mean (Chan, Golub, LeVeque 1979)
            away = own - mean
            squares += deviation**2 * x0.numel() + away**2 * total * x0.numel() / (total + x0.numel())
            total += x0.numel()
            mean += away * x0.numel() / total
        return math.sqrt(squares / total)

    def _images(self, indices: npt.NDArray[np.int64], start: int) -> npt.NDArray[Any]:
        """Copies of these images, cropped."""
        images = self.dataset.images
        if self.crop is None:
            return images[indices]
        height, width = height_width(self.crop, "crop")
        room = np.array([images.shape[2] - height + 1, images.shape[3] - width + 1])
        corners = (uniform(self.seed, "crop", start, len(indices), (2,)).numpy() * room).astype(np.int64)
        return np.stack(
            [
                images[index, :, top : top + height, left : left + width]
                for index, (top, left) in zip(indices, corners, strict=True)
            ]
        )
