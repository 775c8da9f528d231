"""Images (or signals, or vectors) with named columns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sfumato.data.selection import LAZY, Array, Field, Items, Lazy, Rows, as_array, check_range
from sfumato.errors import InputError, SfumatoWarning, check_arguments, shown
from sfumato.io.ranges import ROUNDING
from sfumato.io.text import packed
from sfumato.random import permutation

Indices = Sequence[int] | npt.NDArray[np.integer[Any]]


def as_tensor(images: npt.NDArray[Any]) -> Float[Tensor, "batch channels *space"]:
    """float32 in [-1, 1] from stored images: uint8 becomes ``x / 127.5 - 1``, float32 is taken as it is."""
    if images.dtype == np.float32:
        return torch.from_numpy(images)
    # In NumPy, on one thread: so little work is not worth a barrier among the threads that train the network.
    values = images.astype(np.float32)
    values /= 127.5
    values -= 1.0
    return torch.from_numpy(values)


def grey_values(images: npt.NDArray[Any]) -> int | None:
    """The fewest values evenly spaced from -1 to 1 among which all of the images are; None if 256 are too few."""
    values = np.unique(images).astype(np.float64)
    for bins in range(len(values), 257 if len(values) > 1 else 0):
        places = (values + 1.0) * (0.5 * (bins - 1))
        if np.abs(places - places.round()).max() < 1e-3:
            return bins
    return None


@dataclass(frozen=True, eq=False)
class Column:
    """One value per image: a class, a number, an embedding, tokens, another image, or a text."""

    values: Array  # (N, ...), numbers or truth values; or (N,), texts
    names: tuple[str, ...] = ()  # of the classes, for a column of whole numbers from 0 to len(names) - 1
    identity: str = ""  # of the model that made it, for a column of embeddings

    @property
    def is_text(self) -> bool:
        """Whether it holds texts, such as captions: an array of strings, or of objects that are."""
        return self.values.dtype.kind in "UO"

    def at(self, indices: Indices) -> Column:
        """The column of these images, in this order."""
        return replace(self, values=self.values[_whole(indices)])

    def texts(self, indices: Indices) -> list[str]:
        """The texts of these images."""
        return [str(text) for text in self.values[_whole(indices)]]

    def rows(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """The values of these images: int64, float32, bool, or uint8 for images.

        Texts are packed into uint8 ``(len(indices), length)`` as by :func:`sfumato.io.text.packed`.
        """
        if self.is_text:
            return packed(self.texts(indices))
        values = np.asarray(self.values[indices])
        if values.dtype.kind in "iu" and (values.dtype != np.uint8 or values.ndim < 3):
            values = values.astype(np.int64, copy=False)
        return torch.from_numpy(np.ascontiguousarray(as_array(values)))

    def check(self, name: str, count: int) -> None:
        """Check that there is a value per image, and that classes are in the range of their names."""
        values, held = self.values, f"{name}: {self.values.dtype} of shape {self.values.shape}"
        if self.is_text:
            if self.names:
                raise InputError(f"{held}; texts have no names of classes, which are whole numbers with names.")
            if values.shape != (count,):
                raise InputError(f"{held}; expected a text for each of {count} images.")
            odd = () if isinstance(values, Lazy) else [value for value in values if not isinstance(value, str)]
            if odd:
                raise InputError(f"{name} holds a {type(odd[0]).__name__}, {shown(odd[0])}; expected texts or numbers.")
            return
        if values.ndim < 1 or len(values) != count or values.dtype.kind not in "iufb":
            raise InputError(f"{held}; expected numbers with a row for each of {count} images.")
        if self.names and (values.dtype.kind not in "iu" or values.ndim != 1):
            raise InputError(f"{held}; expected a whole number per image.")
        if self.names and count and not isinstance(values, Lazy):
            low, high, names = int(np.min(values)), int(np.max(values)), len(self.names)
            if not 0 <= low <= high < names:
                raise InputError(f"{name}: classes span {low} ... {high} but there are {names} names, from 0 on.")


@dataclass(frozen=True)
class Units:
    """What turns standardized vectors back into the data: ``shift + scale * vector``."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """``N`` images (or signals) of one shape with named columns; map-style, as PyTorch expects.

    ``dataset[i]`` is a dict of tensors: ``"image"`` in [-1, 1], and one per column; of a column of texts, the text.

    Attributes:
        images: ``(N, C, *space)``, uint8 in 0 ... 255 (a quarter of the memory) or float32 in [-1, 1]; in memory,
            mapped from a file, or read item by item. ``space`` is ``(H, W)``, ``(L,)`` for signals, ``()`` for vectors.
        columns: what else is known of each image, by name; the classes are ``"label"`` and the texts
            ``"caption"`` by custom.
        name: what the data is called in messages and figures.
        units: how vectors were standardized, if they were.
        groups: a number per image, of which those with one number, such as tiles of one picture, are not split; images
            of a negative one are held out of every training.
    """

    images: Array
    columns: Mapping[str, Column] = field(default_factory=dict[str, Column])
    name: str = "data"
    units: Units | None = None
    groups: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        images = self.images
        if not hasattr(images, "shape") or not hasattr(getattr(images, "dtype", None), "name"):
            raise InputError(f"images are {shown(images)}; expected an array. Dataset.of takes what else holds images.")
        if images.dtype.name not in ("uint8", "float32"):
            raise InputError(f"{self.name}: images are {images.dtype}; give uint8 in 0 ... 255 or float32 in [-1, 1].")
        if images.ndim < 2 or 0 in images.shape[1:]:
            raise InputError(f"{self.name}: images have shape {images.shape}; expected (N, channels, *space).")
        if not isinstance(images, LAZY):  # arrays in memory are cheap to check, and rows were checked with their array
            check_range(np.asarray(images), self.name)
        for name, column in self.columns.items():
            if not name.isidentifier() or name == "image":
                raise InputError(f"{self.name}: a column can't be called {name!r}; take a word, and not 'image'.")
            column.check(f"{self.name}, column {name!r}", len(images))

    @classmethod
    def of(cls, data: Any, *, name: str = "data") -> Dataset:
        """A data set of what people have, called ``name``.

        ``data`` is a Dataset; an array or tensor of images ``(N, C, *space)``, uint8 or floats in [-1, 1]; a dict of
        arrays, of which ``image`` holds the images and the others are columns; or a map-style PyTorch data set (or a
        DataLoader, whose data set is taken) of tensors, of ``(image, label)`` or of dicts with ``image``, whose items
        are read when they are needed.
        """
        if isinstance(data, Dataset):
            return data
        if isinstance(data, DataLoader):
            return cls.of(data.dataset, name=name)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        if isinstance(data, np.ndarray | Tensor):
            data = {"image": data}
        if isinstance(data, Mapping):
            columns = {str(k): v if isinstance(v, LAZY) else as_array(v) for k, v in data.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            key = next((key for key in ("image", "images") if key in columns), None)
            if key is None:
                raise InputError(f"{name}: there is no 'image' among {', '.join(columns) or 'nothing'}.")
            images = columns.pop(key)
            _check_layout(images, name)
            return cls(images, _columns_of(columns, name), name)
        if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            expected = "give an array, a dict of arrays, or a PyTorch data set with __len__ and __getitem__"
            raise InputError(f"{name}: a {type(data).__name__} can't be read by index, as resuming needs; {expected}.")
        items = Items(data, name)
        if len(items) == 0:
            raise InputError(f"{name} is empty.")
        _check_layout(items.fetch(tuple(range(min(len(items), 8))))["image"], name)
        fields = {key: Field(items, key, values) for key, values in items.fetch((0,)).items()}
        columns = {key: Column(values) for key, values in fields.items() if key != "image"}
        if "label" in columns and len(getattr(data, "targets", ())) == len(data):
            # torchvision's data sets know their labels without decoding the images
            columns["label"] = Column(as_array(data.targets), tuple(map(str, getattr(data, "classes", ()))))
        return cls(fields["image"], columns, name)

    def __repr__(self) -> str:
        columns = f", columns {', '.join(self.columns)}" if self.columns else ""
        return f"Dataset({self.name}: {len(self)} images of {'x'.join(map(str, self.shape))}{columns})"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images; there is none of index {index}")
        at = np.array([index % len(self)])
        columns = {n: (c.texts(at) if c.is_text else c.rows(at))[0] for n, c in self.columns.items()}
        return {"image": self.batch(at)[0], **columns}

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, *space)`` of one image."""
        return tuple(int(side) for side in self.images.shape[1:])

    @property
    def bins(self) -> int | None:
        """The number of grey values: 256 for uint8, :func:`grey_values` for float32."""
        return 256 if self.images.dtype == np.uint8 else grey_values(np.asarray(self.images))

    def batch(self, indices: Indices) -> Float[Tensor, "batch channels *space"]:
        """The images of these indices as a new float32 tensor in [-1, 1]."""
        return as_tensor(self.images[_whole(indices)])

    def rows(self, indices: Indices) -> dict[str, Tensor]:
        """The columns of these images."""
        at = _whole(indices)
        return {name: column.rows(at) for name, column in self.columns.items()}

    def subset(self, indices: Indices) -> Dataset:
        """A dataset of these images, in this order; it shares their memory."""
        rows = _whole(indices)
        columns = {name: replace(column, values=Rows(column.values, rows)) for name, column in self.columns.items()}
        groups = None if self.groups is None else self.groups[rows]
        return Dataset(Rows(self.images, rows), columns, self.name, self.units, groups)

    def split(self, holdout: int | float, seed: int) -> tuple[Dataset, Dataset]:
        """``(train, heldout)``: disjoint, together the whole, a function of the seed alone.

        ``holdout`` images are held out: a count (int), a fraction (float, rounded to the nearest count), or 0 for none.
        They are the first of ``sfumato.random.permutation(seed, "split", 0, N)``.
        """
        check_arguments(Dataset.split, locals())
        if holdout == 0:
            return self, self.subset([])
        if isinstance(holdout, bool) or not (0.0 < holdout < 1.0 if isinstance(holdout, float) else holdout >= 1):
            raise InputError(f"holdout is {holdout}; expected a count of images, a fraction between 0 and 1, or 0.")
        size = len(self)
        count = round(holdout * size) if isinstance(holdout, float) else holdout
        if not 1 <= count < size:
            wrong = "rounds to none" if count < 1 else "leaves nothing to train on"
            advice = "hold out a count of them, such as --data.holdout 1, or none: --data.holdout 0"
            raise InputError(f"holdout={holdout} {wrong}: {self.name} has {size} images; {advice}.")
        if self.groups is not None:
            held = self._held_groups(self.groups, count, seed)
            return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))
        order = permutation(seed, "split", 0, size)
        return self.subset(order[count:]), self.subset(order[:count])

    def _held_groups(self, groups: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.bool_]:
        """Which images are held out, whole groups of about ``count`` images in all."""
        held = groups < 0
        known = np.unique(groups[~held])
        for place in () if held.any() else permutation(seed, "split", 0, len(known)):
            if held.sum() >= count:
                break
            held |= groups == known[place]
        if held.all():
            only = "image is" if len(known) == 1 else "images are"
            advice = "hold out none: --data.holdout 0, and judge with: sfumato evaluate RUN OTHER_PICTURES"
            raise InputError(f"{self.name}: {len(known)} {only} too few to hold one out; {advice}.")
        return held


def _whole(indices: Indices) -> npt.NDArray[np.int64]:
    try:
        return np.asarray(indices, dtype=np.int64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"indices are {shown(indices)}; expected whole numbers in a sequence or an array.") from None


def _columns_of(arrays: Mapping[str, Any], name: str) -> dict[str, Column]:
    """Columns of arrays; a label in words becomes class numbers."""
    columns: dict[str, Column] = {}
    for key, values in arrays.items():
        if not isinstance(values, LAZY) and values.dtype.kind == "S":
            try:
                values = np.char.decode(values, "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{name}: the column {key!r} is not UTF-8; give strings.") from None
        if key == "label" and not isinstance(values, LAZY) and values.dtype.kind in "UO":
            names, numbers = np.unique(values.astype(str), return_inverse=True)
            columns[key] = Column(numbers.astype(np.int64), tuple(map(str, names)))
        else:
            columns[key] = Column(values)
    return columns


def _check_layout(images: Array, name: str) -> None:
    """Check the axes and the range of images of unknown origin, which nobody has prepared for this package."""
    shape = images.shape
    if len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        raise InputError(f"{name}: images have shape {shape}, channels last; move them: images.transpose(0, 3, 1, 2).")
    if len(shape) == 3 and min(shape[1:]) > 4 and shape[2] <= 8 * shape[1]:
        raise InputError(f"{name}: images have shape {shape}, without channels; add them: images[:, None].")
    if images.dtype == np.float32 and not isinstance(images, LAZY) and images.size:
        check_range(np.asarray(images), name)
        low, high = float(np.asarray(images).min()), float(np.asarray(images).max())
        if low >= 0.0 and high > 0.0:
            raise InputError(f"{name}: float images have no value below 0; if 0 is black, give 2 * images - 1.")
        if low >= -ROUNDING * high and high > 0.0:
            text = f"{name}: float images go from {low:g} to {high:g}; if 0 is black, give 2 * images - 1."
            warnings.warn(text, SfumatoWarning, stacklevel=3)
