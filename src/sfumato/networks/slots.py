"""What the slots of the conditions must hold."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.errors import InputError


def check_vector(vector: Tensor | None, x: Tensor, width: int) -> None:
    """Check that there is a vector per sample of ``x``, of the width of what it is added to.

    Raises:
        InputError: if it is not.
    """
    if vector is not None and vector.shape != (x.shape[0], width):
        raise InputError(f"The vectors have shape {tuple(vector.shape)}; expected ({x.shape[0]}, {width}).")


def check_tokens(tokens: Tensor | None, mask: Tensor | None, x: Tensor, width: int | None) -> None:
    """Check that there are tokens for each sample of ``x``, of their width, and that a mask is of them.

    Args:
        tokens: the tokens, if any are given.
        mask: their mask, if it is given.
        x: the input.
        width: features of a token; None for a network that takes none.

    Raises:
        InputError: if they are not.
    """
    if tokens is None:
        if mask is not None:
            raise InputError("A mask says which tokens are seen, but none were given.")
        return
    if width is None:
        raise InputError("This network was not made to attend to tokens; give it their width.")
    if tokens.ndim != 3 or tokens.shape[0] != x.shape[0] or tokens.shape[2] != width:
        raise InputError(f"The tokens have shape {tuple(tokens.shape)}; expected ({x.shape[0]}, any number, {width}).")
    if mask is not None and mask.dtype != torch.bool:
        raise InputError(f"The mask is True for the tokens that are seen, and False for others; got {mask.dtype}.")
    if mask is not None and mask.shape != tokens.shape[:2]:
        raise InputError(f"The mask has shape {tuple(mask.shape)}; the tokens have {tuple(tokens.shape[:2])}.")


def check_channels(channels: Tensor, x: Tensor, wanted: int) -> None:
    """Check that the channels of a condition are as many as the network takes, of the size of its input ``x``.

    Raises:
        InputError: if they are not.
    """
    if channels.shape != (x.shape[0], wanted, *x.shape[2:]):
        raise InputError(
            f"This network takes {wanted} channels of condition at the size of its input, "
            f"{'x'.join(map(str, x.shape[2:]))}, for each of {x.shape[0]} samples; got shape {tuple(channels.shape)}."
        )
