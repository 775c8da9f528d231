"""The class of an image."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato import random
from sfumato.conditioning.base import Condition, Data, Filled, take
from sfumato.errors import InputError, nearest, shown

TOKEN_FEATURES = 64  # of the token of a label, where no other condition decides them


@dataclass(frozen=True)
class Label(Condition):
    """The class of an image: a learned vector per class, added to the time embedding or attended to as a token.

    Attributes:
        drop: the fraction of samples that are trained without label, from 0 to below 1.
        column: the column of the data that holds the classes.
        slot: whether a label is a vector added to the time embedding, or a token that is attended to.
        draw: which classes are sampled when none is named: as often as in the training data, or each in turn.
        names: the names of the classes, taken from the data.
        frequencies: the fraction of each class in the training data, together 1.
    """

    column: str = "label"
    slot: Literal["vector", "tokens"] = "vector"
    draw: Literal["frequency", "uniform"] = "frequency"
    names: tuple[str, ...] = ()
    frequencies: tuple[float, ...] = ()

    @property
    def summary(self) -> str:
        return f"{len(self.names)} classes"

    @property
    def meaning(self) -> tuple[str, ...]:
        return self.names

    def describe(self, data: Data) -> Label:
        """With the names and the frequencies of the classes."""
        column = take(data.columns, self.column, data.name)
        values = np.asarray(column.values)
        if values.dtype.kind not in "iu" or values.ndim != 1 or not len(values) or values.min() < 0:
            raise InputError(f"{data.name}: the column {self.column!r} holds no classes, whole numbers from 0 on.")
        names = tuple(column.names) or self.names or tuple(map(str, range(int(values.max()) + 1)))
        if values.max() >= len(names):
            raise InputError(f"{data.name}: class {values.max()} of {self.column!r} has no name among {len(names)}.")
        counts = np.bincount(values, minlength=len(names)).tolist()
        return replace(self, names=names, frequencies=tuple(count / len(values) for count in counts))

    def given(self, value: Any, count: int, *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """The class by name or number, or several that take turns; -1 is none, where drop is above 0.

        Of ``n`` classes sample ``i`` of a seed has the class ``i`` modulo ``n``; as many classes as samples are one for
        each. Where the names of the classes are numbers, a number is such a name. A tensor holds the numbers of the
        classes in the data, one for all samples or one for each.
        """
        if not self.names:
            raise InputError("This model was trained without labels, so it can't be asked for a class.")
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = [self._number(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
            if len(value) > count:
                raise InputError(f"{len(value)} classes are given for {count} images; name at most one for each.")
            if 0 < len(value) < count:
                value = [value[i % len(value)] for i in range(first, first + count)]
        else:
            value = self._number(value)
        try:
            labels = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise InputError(f"A label is {shown(value)}; expected names or numbers of classes.") from None
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(f"Labels must be whole numbers; got {labels.dtype}.")
        labels = (labels.expand(count) if labels.ndim == 0 else labels).long()
        if tuple(labels.shape) != (count,) or bool(((labels < -1) | (labels >= len(self.names))).any()):
            none = " (or -1 for none)" if self.drop > 0.0 else ""
            raise InputError(f"Labels must be {count} numbers from 0 to {len(self.names) - 1}{none}.")
        return {"value": labels}

    def _number(self, label: Any) -> Any:
        """The number of a class from its name, or from a number: where the names are numbers it is one of them."""
        if label is None:
            return -1
        if isinstance(label, str):
            if label in self.names:
                return self.names.index(label)
            if not re.fullmatch("-?[0-9]{1,18}", label):
                raise InputError(f"There is no class {label[:40]!r}{nearest(label, self.names)}")
            label = int(label)
        is_number = isinstance(label, int | np.integer) and type(label) is not bool and label != -1
        if is_number and all(name.isdecimal() for name in self.names):
            known = [int(name) for name in self.names]
            if label not in known:
                low, high = min(known), max(known)
                every = f"{low} to {high}" if len(known) == high - low + 1 else ", ".join(self.names)
                raise InputError(f"There is no class {label}; the classes are {every}, and -1 is none.")
            return known.index(int(label))
        return label

    def missing(self, count: int) -> dict[str, Tensor]:
        return {"value": torch.full((count,), -1, dtype=torch.long)}

    def default(self, seed: int, first: int, count: int) -> dict[str, Tensor] | None:
        """Classes of samples ``first ... first + count - 1`` of a seed, the same however the samples are batched."""
        if not self.names:
            return None
        if self.draw == "uniform" or not self.frequencies:
            return {"value": torch.arange(first, first + count) % len(self.names)}
        # evenly spread quantiles, shifted by the seed: class frequencies hold in any run of samples
        shift = float(random.uniform(seed, "label", 0, 1))
        golden = (math.sqrt(5.0) - 1.0) / 2.0
        quantile = (shift + golden * torch.arange(first, first + count, dtype=torch.float64)) % 1.0
        edges = torch.tensor(self.frequencies, dtype=torch.float64).cumsum(0)
        return {"value": torch.searchsorted(edges, quantile, right=True).clamp(max=len(self.names) - 1)}

    def slots(self, shape: Sequence[int]) -> Filled:
        return Filled(vector=True) if self.slot == "vector" else Filled(tokens=TOKEN_FEATURES)

    def build_encoder(self, shape: Sequence[int], width: int, tokens: int) -> LabelEncoder:
        return LabelEncoder(len(self.names), tokens if self.slot == "tokens" else width, self.slot)


class LabelEncoder(nn.Module):
    """A learned vector per class, and one for no class: slot ``vector``, or, as one token, slot ``tokens``."""

    def __init__(self, classes: int, width: int, slot: Literal["vector", "tokens"] = "vector") -> None:
        super().__init__()
        self.classes, self.slot = classes, slot
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.5)

    def forward(self, value: Int[Tensor, "batch"]) -> dict[str, Float[Tensor, "batch *one width"]]:
        """The vectors of the labels; a GPU does not wait to see whether each is a class."""
        try:
            vectors = self.table(value + 1)
        except IndexError:
            numbers = f"numbers from 0 to {self.classes - 1}, or -1 for none"
            raise InputError(f"A label is none of the {self.classes} classes; give {numbers}.") from None
        return {self.slot: vectors[:, None] if self.slot == "tokens" else vectors}
