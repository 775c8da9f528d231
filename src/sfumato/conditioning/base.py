"""What conditions share: where training gets them, how a person gives them, and what stands for a missing one.

**The null convention.** A sample without a condition has null rows in its tensors: NaN in floats, -1 in whole numbers,
False in masks. So dropping a condition in training and guiding away from it need no knowledge of its kind, and its
encoder puts a learned stand-in (:class:`Null`) where a row is null.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from sfumato.errors import InputError, SfumatoWarning, nearest
from sfumato.io.images import read_any_size
from sfumato.random import Draws, sent


@runtime_checkable
class Data(Protocol):
    """A data set, as conditions see it: its columns have ``values`` and ``names``."""

    @property
    def columns(self) -> Mapping[str, Any]: ...
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Filled(NamedTuple):
    """Which inputs of a network conditions fill: whether ``vector``, features of ``tokens``, number of ``channels``."""

    vector: bool = False
    tokens: int | None = None
    channels: int = 0


@dataclass(frozen=True)
class Condition(ABC):
    """One condition: its options, and the facts of the data that :meth:`describe` fills in.

    A condition called ``low`` has one tensor per part: ``low`` for the part ``"value"``, ``low_level`` for ``"level"``.

    Attributes:
        drop: the fraction of samples that are trained without the condition, from 0 to below 1.
        column: the column of the data that holds it; None for what is derived from the images.
    """

    drop: float = 0.1
    column: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop < 1.0:
            raise InputError(f"The fraction of samples that drop a condition lies in [0, 1); got {self.drop}.")

    @property
    def parts(self) -> tuple[str, ...]:
        """Its tensors; the first is ``"value"``."""
        return ("value",)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data that it needs."""
        return () if self.column is None else (self.column,)

    @property
    def optional(self) -> bool:
        """Whether the model knows samples without it."""
        return self.drop > 0.0

    @property
    def meaning(self) -> tuple[str, ...]:
        """What two models must share for the tensors of one to mean the same to the other, such as names of classes."""
        return ()

    @property
    def summary(self) -> str:
        """What a person reads of it in one line."""
        return type(self).__name__.lower()

    def describe(self, data: Data) -> Condition:
        """A copy that knows what it must of the data, in fields that JSON can hold."""
        for column in self.columns:
            take(data.columns, column, data.name)
        return self

    def prepare(self, data: Data) -> None:  # noqa: B027 - most conditions have nothing to prepare
        """What can be done once for all images of a data set before a training, such as to encode their captions."""

    def training(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """The parts for samples of a training: from columns of the data, or from the clean images ``x0``."""
        return {"value": take(columns, self.columns[0])}

    def evaluation(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """The parts for images as they are, such as those whose likelihood is measured: like those of a training."""
        return self.training(x0, columns, draws)

    def alter(self, x0: Tensor, draws: Draws) -> Tensor:
        """What a training makes of the clean images before it derives anything from them; by default nothing."""
        return x0

    def example(self, x0: Tensor, columns: Mapping[str, Tensor], *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """The parts of samples ``first ...`` of a seed that are to be like these of the data, as they are sampled."""
        return self.evaluation(x0, columns, Draws(seed, first, len(x0), len(x0)))

    @abstractmethod
    def given(self, value: Any, count: int, *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """The parts for ``count`` samples from what a person gives: one value for all, or one per sample.

        A text is what is typed on a command line, whose help is the first sentence of this docstring.
        """

    @abstractmethod
    def missing(self, count: int) -> dict[str, Tensor]:
        """Null parts for ``count`` samples."""

    def null_rows(self, parts: Mapping[str, Tensor]) -> Bool[Tensor, "batch"]:
        """Which samples have no condition, as after :func:`~sfumato.conditioning.base.null_of`."""
        return without_null(parts["value"])[1]

    def default(self, seed: int, first: int, count: int) -> dict[str, Tensor] | None:
        """The parts of samples ``first ... first + count - 1`` of a seed when nobody gives any; None is the null."""
        return None

    @abstractmethod
    def slots(self, shape: Sequence[int]) -> Filled:
        """Which inputs of the network it fills, for samples of ``shape = (C, *space)``."""

    @abstractmethod
    def build_encoder(self, shape: Sequence[int], width: int, tokens: int) -> nn.Module:
        """The module that turns the parts, given by name, into a dict of slots.

        Samples have ``shape = (C, *space)``, the slot ``vector`` has ``width`` features, a token ``tokens``. An encoder
        whose attribute ``takes_x`` is true is given the input of the network first, for its size.
        """


def take(columns: Mapping[str, Any], name: str, where: str = "The batch") -> Any:
    """The column of that name."""
    if name not in columns:
        raise InputError(f"{where} has no column {name!r}{nearest(name, columns)}")
    return columns[name]


def keys_of(name: str, condition: Condition) -> dict[str, str]:
    """The names of the tensors of a condition, and the part that each is."""
    return {name if part == "value" else f"{name}_{part}": part for part in condition.parts}


def keyed(name: str, condition: Condition, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts by the names of their tensors."""
    return {key: parts[part] for key, part in keys_of(name, condition).items()}


def null_of(tensor: Tensor, rows: Bool[Tensor, "batch"] | None = None) -> Tensor:
    """The tensor with these rows (all without) made null: NaN, -1 or False by its type."""
    value = False if tensor.dtype == torch.bool else math.nan if tensor.is_floating_point() else -1
    if rows is None:
        return torch.full_like(tensor, value)
    return tensor.masked_fill(sent(rows, tensor.device).reshape(-1, *[1] * (tensor.ndim - 1)), value)


def without_null(tensor: Shaped[Tensor, "batch *shape"]) -> tuple[Tensor, Bool[Tensor, "batch"]]:
    """The tensor with zeros in its null rows, lest NaN enter gradients; and which rows those are."""
    flat = tensor[:, None].flatten(1)
    null = (flat.isnan() if tensor.is_floating_point() else flat == null_of(flat)).all(1)
    return tensor.masked_fill(null.reshape(-1, *[1] * (tensor.ndim - 1)), 0), null


class Null(nn.Module):
    """The learned stand-in for null rows, zeros at the start; zeros for good where nothing is ever dropped."""

    value: Tensor

    def __init__(self, shape: Sequence[int], drop: float) -> None:
        super().__init__()
        if drop > 0.0:
            self.value = nn.Parameter(torch.zeros(*shape))
        else:
            self.register_buffer("value", torch.zeros(*shape), persistent=False)

    def forward(self, encoded: Float[Tensor, "batch *shape"], null: Bool[Tensor, "batch"]) -> Tensor:
        """What is encoded, and the stand-in where ``null``; in all cases it takes part in the gradient."""
        return torch.where(null.reshape(-1, *[1] * (encoded.ndim - 1)), self.value.to(encoded.dtype), encoded)


def altered(conditions: Mapping[str, Condition], x0: Tensor, draws: Draws) -> Tensor:
    """The clean images as the conditions alter them in a training, one after the other."""
    for name, condition in conditions.items():
        x0 = condition.alter(x0, draws.within(name))
    return x0


def training_tensors(
    conditions: Mapping[str, Condition],
    x0: Tensor,
    columns: Mapping[str, Tensor],
    draws: Draws,
    *,
    evaluation: bool = False,
) -> dict[str, Tensor]:
    """The tensors of all conditions for samples of a training; each condition is dropped at its own rate.

    Args:
        conditions: the conditions by name.
        x0: the clean images, as :func:`altered` with the same draws; as they are in an ``evaluation``.
        columns: the columns of the data.
        draws: the random numbers.
        evaluation: whether the loss is only measured.
    """
    tensors: dict[str, Tensor] = {}
    for name, condition in conditions.items():
        make = condition.evaluation if evaluation else condition.training
        parts = make(x0, columns, draws.within(name))
        if condition.drop > 0.0:
            rows = draws.uniform("drop" if name == "label" else f"drop/{name}") < condition.drop
            parts = {part: null_of(tensor, rows) for part, tensor in parts.items()}
        tensors |= keyed(name, condition, parts)
    return tensors


def given_tensors(
    conditions: Mapping[str, Condition],
    values: Mapping[str, Any],
    count: int,
    *,
    seed: int = 0,
    first: int = 0,
    raw: Sequence[str] = (),
) -> dict[str, Tensor]:
    """The tensors of samples ``first ... first + count - 1`` of a seed, from what a person gives by name.

    A value is one for all samples or one per sample; a dict holds the parts of the condition with a row per sample, as
    :meth:`Condition.example` gives them; None is the null, which an optional condition has.
    Conditions not given have their default. The inputs of the network named in ``raw`` are passed on as they are,
    tensors with a row per sample.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in values.items():
        require_known(name, (*conditions, *raw))
        if name in conditions:
            condition = conditions[name]
            if value is None:
                parts = null_parts(name, condition, count)
            elif isinstance(value, Mapping):
                parts = _checked(name, condition, value, count)
            else:
                parts = condition.given(value, count, seed=seed, first=first)
            if not condition.optional and bool(condition.null_rows(parts).any()):
                raise InputError(_no_null(name, "a value for every sample"))
            tensors |= keyed(name, condition, parts)
            continue
        shape = tuple(getattr(value, "shape", ()))
        if not torch.is_tensor(value) or shape[:1] != (count,):
            held = f"The condition {name!r} is a {type(value).__name__} of shape {shape}"
            raise InputError(f"{held}; expected a tensor with a row for each of {count} samples.")
        tensors[name] = value
    for name, condition in conditions.items():
        if name in values:
            continue
        parts = condition.default(seed, first, count)
        if parts is not None:
            tensors |= keyed(name, condition, parts)
        elif not condition.optional:
            warnings.warn(_no_null(name, "it"), SfumatoWarning, stacklevel=3)
    return tensors


def _checked(name: str, condition: Condition, parts: Mapping[Any, Any], count: int) -> dict[str, Tensor]:
    """Parts that are given as they are."""
    if set(parts) != set(condition.parts) or any(not torch.is_tensor(p) or len(p) != count for p in parts.values()):
        wanted = " and ".join(condition.parts)
        raise InputError(f"The parts of the condition {name!r} are {wanted}, tensors with a row for each of {count}.")
    return dict(parts)


def null_parts(name: str, condition: Condition, count: int) -> dict[str, Tensor]:
    """The null parts for ``count`` samples, of a condition that is optional."""
    if not condition.optional:
        raise InputError(_no_null(name, "a value"))
    return condition.missing(count)


def _no_null(name: str, wanted: str) -> str:
    return (
        f"The condition {name!r} was never dropped in training (conditions.{name}.drop is 0), so that the model knows "
        f"no images without it: give {wanted}, or train with --conditions.{name}.drop 0.1."
    )


Nulling = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From the tensors of all conditions to those away from which classifier-free guidance goes."""


def nulling(conditions: Mapping[str, Condition], names: Iterable[str] | None = None) -> Nulling:
    """What makes the conditions null that are guided.

    Those of ``names`` are guided, by default all that were dropped in training. Other tensors stay as they are.
    """
    chosen = [name for name, c in conditions.items() if c.drop > 0.0] if names is None else list(names)
    for name in chosen:
        require_known(name, conditions)
    if not chosen or any(conditions[name].drop == 0.0 for name in chosen):
        never = f"{', '.join(chosen or conditions)} never was, so that its null is unknown"
        raise InputError(f"Guidance needs a condition that was dropped in training (drop above 0); {never}.")
    keys = {key for name in chosen for key in keys_of(name, conditions[name])}
    return lambda cond: {key: null_of(tensor) if key in keys else tensor for key, tensor in cond.items()}


def require_known(name: str, conditions: Iterable[str]) -> None:
    """Check that a condition is one of those."""
    if name not in conditions:
        raise InputError(f"The model knows no condition {name!r}{nearest(name, conditions)}")


def numbers_of(value: Any, what: str) -> Tensor:
    """A tensor of what a person gives: of numbers as they are, or from the name of an .npy file or typed numbers."""
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith(".npy")):
        return read_any_size(Path(value))
    if isinstance(value, str):
        value = value.replace(",", " ").split()
        try:
            value = [float(number) for number in value]
        except ValueError:
            raise InputError(f"{what} is numbers, or the name of an .npy file of them; got {value[0]!r}.") from None
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what} can't be made of a {type(value).__name__}; give numbers or a tensor.") from None


def rows_of(value: Any, count: int, shape: Sequence[int | None], what: str) -> Float[Tensor, "count *shape"]:
    """A float32 tensor of shape ``(count, *shape)`` from one value for all samples or a row per sample."""
    tensor = numbers_of(value, what).float()
    tensor = tensor.expand(count, *tensor.shape) if tensor.ndim == len(shape) else tensor
    fits = tensor.ndim == len(shape) + 1 and len(tensor) == count
    if not fits or any(b is not None and a != b for a, b in zip(tensor.shape[1:], shape, strict=True)):
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        expected = f"expected ({wanted}) for all samples, or ({count}, {wanted}), one for each"
        raise InputError(f"{what} has shape {tuple(numbers_of(value, what).shape)}; {expected}.")
    return tensor
