"""Batches as a pure function of the seed and the global sample index."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.dataset import Dataset, as_tensor
from sfumato.errors import InputError, check_arguments
from sfumato.io.images import height_width
from sfumato.random import permutation, sent, uniform


@dataclass(frozen=True, eq=False)
class Batch:
    """A run of consecutive samples."""

    x0: Float[Tensor, "batch channels *space"]  # in [-1, 1]
    cond: dict[str, Tensor]  # the columns of the data, by name
    start: int  # the global index of the first sample

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; a GPU computes on meanwhile."""
        return Batch(sent(self.x0, device), {name: sent(c, device) for name, c in self.cond.items()}, self.start)


_AT_ONCE = 1 << 24  # values that statistics convert to float64 at once, 128 MiB
_epoch_order = functools.lru_cache(maxsize=4)(permutation)  # a batch touches the current epoch and perhaps the next


@dataclass(frozen=True, eq=False)
class Loader:
    """An endless stream of samples in which sample ``n`` depends on the seed and ``n`` alone.

    Sample ``n`` is item ``n % N`` of epoch ``n // N``, and each epoch has its own random order of all ``N`` images. So
    batches of any sizes, on any number of processes, before or after a restart, cut the same stream.
    """

    dataset: Dataset
    seed: int = 0  # decides orders, flips and crops
    flip: bool = False  # mirror each sample with probability 1/2, left to right, and images in its columns with it
    crop: int | tuple[int, int] | None = None  # take a random window, a side or (height, width), from each sample

    def __post_init__(self) -> None:
        check_arguments(Loader, vars(self))
        shape, name = self.dataset.shape, self.dataset.name
        if len(self.dataset) == 0:
            raise InputError(f"{name} is empty: there is nothing to load.")
        if (self.flip or self.crop is not None) and len(shape) != 3:
            option = "flip" if self.flip else "crop"
            raise InputError(f"{option} is for images; {name} has shape {shape}, without height and width.")
        if self.crop is not None:
            if self._pictures:
                raise InputError(f"crop is for images alone; {name} has other images too, {self._pictures[0]!r}.")
            height, width = height_width(self.crop, "crop")
            if height > shape[1] or width > shape[2]:
                raise InputError(f"crop={self.crop} is larger than the images of {name}, {shape[1]}x{shape[2]}.")

    @property
    def _pictures(self) -> list[str]:
        """The columns that hold images."""
        return [name for name, column in self.dataset.columns.items() if column.values.ndim == 4]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, *space)`` of a sample, after the crop."""
        shape = self.dataset.shape
        return shape if self.crop is None else (shape[0], *height_width(self.crop, "crop"))

    def indices(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Which images of the dataset samples ``start ... start + count - 1`` are; int64 ``(count,)``."""
        if start < 0 or count < 1:
            raise InputError(f"start={start}, count={count}; expected start >= 0 and count >= 1.")
        size, stop = len(self.dataset), start + count
        epochs = range(start // size, (stop - 1) // size + 1)
        orders = [_epoch_order(self.seed, "order", e, size)[max(start - e * size, 0) : stop - e * size] for e in epochs]
        return np.concatenate(orders)

    def batch(self, start: int, count: int) -> Batch:
        """Samples ``start ... start + count - 1``."""
        indices = self.indices(start, count)
        images = self.dataset.images[indices]
        if self.crop is not None:
            _, height, width = self.shape
            room = np.array([images.shape[2] - height + 1, images.shape[3] - width + 1])
            corners = (uniform(self.seed, "crop", start, count, (2,)).numpy() * room).astype(np.int64)
            pairs = zip(images, corners.tolist(), strict=True)
            images = np.stack([image[:, y : y + height, x : x + width] for image, (y, x) in pairs])
        cond = self.dataset.rows(indices)
        if self.flip:
            mirrored = uniform(self.seed, "flip", start, count) < 0.5
            images[mirrored.numpy()] = images[mirrored.numpy()][..., ::-1]
            for name in self._pictures:
                cond[name][mirrored] = cond[name][mirrored].flip(-1)
        return Batch(as_tensor(images), cond, start)

    def std(self, count: int) -> float:
        """The standard deviation of all values of the first ``count`` samples, computed a part of them at a time."""
        size = max(1, _AT_ONCE // math.prod(self.shape))
        total, mean, squares = 0, 0.0, 0.0
        for start in range(0, count, size):
            x0 = self.batch(start, min(size, count - start)).x0.double()
            deviation, its_mean = float(x0.std(correction=0)), float(x0.mean())
            if count <= size:
                return deviation
            # sums of squares about the means of two parts give that about the common mean (Chan, Golub, LeVeque 1979)
            away = its_mean - mean
            squares += deviation**2 * x0.numel() + away**2 * total * x0.numel() / (total + x0.numel())
            total += x0.numel()
            mean += away * x0.numel() / total
        return math.sqrt(squares / total)
