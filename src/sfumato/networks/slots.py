"""The inputs of a network for conditions: which it has, and what they must hold."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import InputError


@dataclass(frozen=True, slots=True)
class Slots:
    """The three inputs of a network for conditions.

    Attributes:
        vector: the width of the vector that is added to the time embedding; None without one.
        tokens: the number of features of a token that is attended to; None without tokens.
        channels: the number of channels that are concatenated to ``x``.
    """

    vector: int | None = None
    tokens: int | None = None
    channels: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments of ``network(x, time, ...)`` that fill them."""
        tokens = ("tokens", "mask") if self.tokens is not None else ()
        return (*(("vector",) if self.vector is not None else ()), *tokens, *(("channels",) if self.channels else ()))


def slots_of(network: nn.Module) -> Slots:
    """The slots of a network.

    A network says them by its attributes ``width``, ``tokens`` and ``concatenated``, and has only those that are
    arguments of its ``forward``.
    """

    def number(name: str) -> int | None:
        value: Any = getattr(network, name, None)
        return value if isinstance(value, int) else None

    taken = inspect.signature(network.forward).parameters
    return Slots(
        number("width") if "vector" in taken else None,
        number("tokens") if "tokens" in taken else None,
        (number("concatenated") or 0) if "channels" in taken else 0,
    )


def given() -> nn.Module:
    """A network that was given in Python and could not be named."""
    raise InputError("This run has a network that was given in Python; pass it again: sfumato.load(run, network=...).")


def check_tokens(tokens: Tensor | None, mask: Tensor | None, x: Tensor, width: int | None) -> None:
    """Check that there are tokens of ``width`` features for each sample of ``x``, and that a mask is of them."""
    if tokens is None:
        if mask is not None:
            raise InputError("A mask says which tokens are seen, but none were given.")
        return
    if width is None:
        raise InputError("This network was not made to attend to tokens; give it their width.")
    if tokens.ndim != 3 or tokens.shape[0] != x.shape[0] or tokens.shape[2] != width:
        raise InputError(f"The tokens have shape {tuple(tokens.shape)}; expected ({x.shape[0]}, any number, {width}).")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:2]):
        raise InputError(
            f"The mask is True for the tokens that are seen, of shape {tuple(tokens.shape[:2])}; got {mask.dtype} of "
            f"shape {tuple(mask.shape)}."
        )
