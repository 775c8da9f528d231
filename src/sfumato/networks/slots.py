"""What the slots of the conditions must hold."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sfumato.errors import InputError


def check_vector(vector: Tensor | None, batch: int, width: int) -> None:
    """Check that a vector per sample is of the width of what it is added to.

    Raises:
        InputError: if it is not.
    """
    if vector is not None and vector.shape != (batch, width):
        raise InputError(f"The vectors have shape {tuple(vector.shape)}; expected ({batch}, {width}).")


def check_tokens(tokens: Tensor, mask: Tensor | None, batch: int, width: int) -> None:
    """Check that tokens are of their width, and that a mask is of them.

    Raises:
        InputError: if they are not.
    """
    if tokens.ndim != 3 or tokens.shape[0] != batch or tokens.shape[2] != width:
        raise InputError(f"The tokens have shape {tuple(tokens.shape)}; expected ({batch}, any number, {width}).")
    if mask is not None and mask.shape != tokens.shape[:2]:
        raise InputError(f"The mask has shape {tuple(mask.shape)}; the tokens have {tuple(tokens.shape[:2])}.")


def check_channels(channels: Tensor, batch: int, wanted: int, sides: Sequence[int]) -> None:
    """Check that the channels of a condition are as many as the network takes, of the size of its input.

    Raises:
        InputError: if they are not.
    """
    if channels.shape != (batch, wanted, *sides):
        raise InputError(
            f"This network takes {wanted} channels of condition at the size of its input, "
            f"{'x'.join(map(str, sides))}, for each of {batch} samples; got shape {tuple(channels.shape)}."
        )
