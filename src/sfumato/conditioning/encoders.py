"""Encoders: each turns a named condition into one slot of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError, nearest


@runtime_checkable
class Encoder(Protocol):
    """What brings a condition into the slot of that name."""

    slot: str

    def null(self, batch: int, device: torch.device) -> Tensor: ...
    def __call__(self, condition: Tensor) -> Tensor: ...


class LabelEncoder(nn.Module):
    """A learned vector per class, and one for no class: slot ``vector``, or, as one token, slot ``tokens``.

    A label of -1 is the null condition.
    """

    def __init__(self, classes: int, width: int, slot: Literal["vector", "tokens"] = "vector") -> None:
        super().__init__()
        self.classes, self.slot = classes, slot
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.5)

    def null(self, batch: int, device: torch.device) -> Int[Tensor, "batch"]:
        return torch.full((batch,), -1, dtype=torch.long, device=device)

    def forward(self, labels: Int[Tensor, "batch"]) -> Float[Tensor, "batch *one width"]:
        """The vectors of the labels.

        Raises:
            InputError: for a label that is no class, on the processor; a GPU would have to be waited for.
        """
        try:
            found = self.table(labels + 1)
        except IndexError:
            raise InputError(unknown_label(self.classes)) from None
        return found[:, None] if self.slot == "tokens" else found


def unknown_label(classes: int) -> str:
    """What is wrong with a label that is no class."""
    return f"A label is none of the {classes} classes; give numbers from 0 to {classes - 1}, or -1 for none."


class Resized(nn.Module):
    """Pictures brought to the size of the input by bilinear interpolation: slot ``channels``.

    The null condition is a picture of zeros.

    Args:
        channels: channels of the pictures.
        size: sides of the input.
    """

    slot = "channels"

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.channels, self.size = channels, size

    def null(self, batch: int, device: torch.device) -> Float[Tensor, "batch channels height width"]:
        return torch.zeros(batch, self.channels, *self.size, device=device)

    def forward(self, pictures: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels height width"]:
        return functional.interpolate(pictures, self.size, mode="bilinear")


class Conditioned(nn.Module):
    """A network whose named conditions are encoded into its slots.

    A missing condition is the null condition of its encoder. Conditions by the name of a slot need no encoder: tokens
    with their mask, and channels, are the network's as they are, behind those of the encoders of their slot.

    Args:
        network: called as ``network(x, time, **slots)``.
        encoders: an encoder per condition. Two of one slot are added as vectors, and follow each other as tokens and
            as channels.
        slots: the slots that are given to the network as they are.
    """

    def __init__(self, network: nn.Module, encoders: Mapping[str, nn.Module], slots: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.encoders = nn.ModuleDict(dict(encoders))
        self.slots = tuple(slots)

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        keys: Int[Tensor, "batch"] | None = None,
        **cond: Tensor,
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output of the network, with the ``keys`` of its dropout if it has any.

        Raises:
            InputError: for a condition that no encoder knows.
        """
        slots: dict[str, Tensor] = {} if keys is None else {"keys": keys}
        for name in cond:
            require_known(name, self.conditions)
        if "mask" in cond and "tokens" not in cond:
            raise InputError("A mask says which tokens are seen, but none were given.")
        for name, module in self.encoders.items():
            assert isinstance(module, Encoder)
            encoder: Encoder = module
            given = cond[name] if name in cond else encoder.null(x.shape[0], x.device)
            slots[encoder.slot] = _joined(encoder.slot, slots.get(encoder.slot), encoder(given))
        before = slots["tokens"].shape[1] if "tokens" in slots else 0
        for name in self.slots:
            if name in cond:
                given = functional.pad(cond[name], (before, 0), value=True) if name == "mask" else cond[name]
                slots[name] = _joined(name, slots.get(name), given)
        return self.network(x, time, **slots)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions it takes."""
        return (*self.encoders, *self.slots)


def require_known(name: str, conditions: Iterable[str]) -> None:
    """Check that a condition is one of those.

    Raises:
        InputError: if it is not.
    """
    if name not in conditions:
        raise InputError(f"The model knows no condition {name!r}{nearest(name, conditions)}")


def check_conditions(given: Mapping[str, Tensor], network: nn.Module, count: int) -> None:
    """Check that a network takes conditions by these names, and that each has a row per image.

    Raises:
        InputError: if not.
    """
    known: tuple[str, ...] = getattr(network, "conditions", ())
    for name, rows in given.items():
        require_known(name, known)
        if name == "label":
            raise InputError("Labels are an argument of their own, not one of the other conditions.")
        shape = tuple(getattr(rows, "shape", ()))
        if shape[:1] != (count,) or not torch.is_tensor(rows):
            raise InputError(
                f"The condition {name!r} is a {type(rows).__name__} of shape {shape}; expected a tensor with a row for "
                f"each of {count} images."
            )


def _joined(slot: str, before: Tensor | None, given: Tensor) -> Tensor:
    """What a slot holds when something is given beside what it held."""
    if before is None:
        return given
    if given.ndim != before.ndim or (given.shape[0], *given.shape[2:]) != (before.shape[0], *before.shape[2:]):
        raise InputError(
            f"The {slot} have shape {tuple(given.shape)}; beside those of the encoders, of shape "
            f"{tuple(before.shape)}, they may be of another number only."
        )
    return before + given if slot == "vector" else torch.cat([before, given.to(before.dtype)], dim=1)


def drop(labels: Int[Tensor, "batch"], dropped: Bool[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """Labels with those of the ``dropped`` samples made null, for classifier-free guidance (Ho and Salimans 2022)."""
    return labels.masked_fill(dropped, -1)
