"""Images (or signals), with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.selection import Images, Rows
from sfumato.errors import InputError
from sfumato.random import permutation

# What float images may stray beyond [-1, 1] by: the rounding of half precision, not another range.
_SLACK = 1e-3


def as_tensor(images: npt.NDArray[Any]) -> Float[Tensor, "batch channels *space"]:
    """float32 in [-1, 1] from stored images: uint8 becomes ``x / 127.5 - 1``, float32 is taken as it is."""
    if images.dtype == np.float32:
        return torch.from_numpy(images)
    # In NumPy, on one thread: so little work is not worth a barrier among the threads that train the network.
    values = images.astype(np.float32)
    values /= 127.5
    values -= 1.0
    return torch.from_numpy(values)


@dataclass(frozen=True, eq=False)
class Dataset:
    """``N`` images (or signals) of one shape.

    Attributes:
        images: ``(N, C, *space)``, uint8 in 0 ... 255 (kept so: a quarter of the memory) or float32 in [-1, 1]; an
            array in memory, one mapped from a file, or rows of either. ``space`` is ``(H, W)`` for images, ``(L,)`` for
            signals, ``()`` for vectors.
        labels: int64 ``(N,)``, each in 0 ... ``len(classes) - 1``, or None.
        classes: the name of each class; empty without labels.
        name: what the data is called in records and pictures.

    Raises:
        InputError: if dtype, shape, range or labels are not as above.
    """

    images: Images
    labels: npt.NDArray[np.integer[Any]] | None
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != np.uint8 and images.dtype != np.float32:
            raise InputError(
                f"{self.name}: images are {images.dtype}; a Dataset takes uint8 in 0 ... 255 or float32 in [-1, 1]."
            )
        if images.ndim < 2 or 0 in images.shape[1:]:
            raise InputError(f"{self.name}: images have shape {images.shape}; expected (N, channels, *space).")
        # Reading every page of a memory-mapped file would defeat its purpose; arrays in memory are cheap to check, and
        # rows of an array were checked with it.
        if images.dtype == np.float32 and images.size and not isinstance(images, np.memmap | Rows):
            low, high = float(images.min()), float(images.max())
            if not (low >= -1.0 - _SLACK and high <= 1.0 + _SLACK):  # also catches NaN
                raise InputError(f"{self.name}: float images span [{low:g}, {high:g}]; map them to [-1, 1] first.")
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_labels(self, labels: npt.NDArray[np.integer[Any]]) -> None:
        if labels.shape != (len(self.images),) or labels.dtype != np.int64:
            raise InputError(
                f"{self.name}: labels are {labels.dtype} of shape {labels.shape}; "
                f"expected int64 of shape ({len(self.images)},), one for each image."
            )
        if labels.size and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            raise InputError(
                f"{self.name}: labels span {labels.min()} ... {labels.max()} but there are {len(self.classes)} "
                f"class names; expected 0 ... {len(self.classes) - 1}."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, *space)`` of one image."""
        return tuple(int(side) for side in self.images.shape[1:])

    @property
    def bins(self) -> int | None:
        """The number of grey values: 256 for uint8; for float32 the fewest on whose grid from -1 to 1 the images lie.

        None for float images that lie on no grid of at most 256 values, which are continuous.
        """
        if self.images.dtype == np.uint8:
            return 256
        values = np.unique(np.asarray(self.images))
        if len(values) < 2 or len(values) > 256:
            return None
        for bins in range(len(values), 257):
            places = (values.astype(np.float64) + 1.0) * (0.5 * (bins - 1))
            if float(np.abs(places - places.round()).max()) < _SLACK:
                return bins
        return None

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Float[Tensor, "batch channels *space"]:
        """The images of these indices as a new float32 tensor in [-1, 1]."""
        return as_tensor(self.images[np.asarray(indices, dtype=np.int64)])

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Dataset:
        """A dataset of these images, in this order; it shares their memory."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return Dataset(Rows(self.images, chosen), labels, self.classes, self.name)

    def split(self, holdout: int | float, seed: int) -> tuple[Dataset, Dataset]:
        """``(train, heldout)``: disjoint, together the whole, a function of the seed alone.

        Args:
            holdout: how many images to hold out: a count (int, at least 1), a fraction (0 < float < 1) of the images
                rounded to the nearest count, or 0 for none (then ``heldout`` is empty and ``train`` is this dataset).
            seed: the held-out images are the first of ``sfumato.random.permutation(seed, "split", 0, N)``.

        Raises:
            InputError: if ``holdout`` is none of these, or leaves nothing on one side.
        """
        if holdout == 0:
            return self, self.subset([])
        if isinstance(holdout, bool) or not (0.0 < holdout < 1.0 if isinstance(holdout, float) else holdout >= 1):
            raise InputError(
                f"holdout is {holdout}; expected a count of images (a whole number), a fraction between 0 and 1, or 0."
            )
        size = len(self)
        count = round(holdout * size) if isinstance(holdout, float) else holdout
        if count < 1:
            raise InputError(f"holdout={holdout} of the {size} images of {self.name} rounds to none; hold out more.")
        if count >= size:
            raise InputError(
                f"holdout={holdout} leaves nothing to train on: {self.name} has {size} images; hold out fewer."
            )
        order = permutation(seed, "split", 0, size)
        return self.subset(order[count:]), self.subset(order[:count])
