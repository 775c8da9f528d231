"""Change of resolution with a fixed filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError

Smoothing = Sequence[float]
"""The taps of a symmetric filter, scaled to the sum 1: (1, 1) is the box, (1, 3, 3, 1) that of StyleGAN2."""


class Resample(nn.Module):
    r"""Halves or doubles every side with a separable filter, without aliasing if that is long enough (Zhang 2019).

    With taps :math:`f` of length :math:`2 p + 2` and sum 1, in each axis,

    .. math::
        \text{down: } y_i = \sum_j f_j x_{2 i + j - p}, \qquad \text{up: } y_{2 i + j - p} \mathrel{+}= 2 f_j x_i,

    with zeros outside. The box (1, 1) is the mean of two and the repetition of each.

    Args:
        dims: spatial axes.
        direction: ``"down"`` or ``"up"``.
        taps: the filter.

    Raises:
        InputError: if the taps are not an even number, or their sum is not positive.
    """

    weight: Float[Tensor, "1 1 *taps"]

    def __init__(self, dims: Literal[1, 2], direction: Literal["down", "up"], taps: Smoothing = (1.0, 1.0)) -> None:
        super().__init__()
        if len(taps) % 2 or len(taps) == 0 or sum(taps) <= 0.0:
            raise InputError(f"A resampling filter has an even number of taps with a positive sum; got {tuple(taps)}.")
        self.dims, self.down, self.pad = dims, direction == "down", len(taps) // 2 - 1
        self.box = len(taps) == 2 and taps[0] == taps[1]
        line = torch.tensor(list(taps), dtype=torch.float64)
        line = line / line.sum() * (1.0 if self.down else 2.0)
        weight = line if dims == 1 else line[:, None] * line
        # part of the architecture, not of the weights
        self.register_buffer("weight", weight.float()[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *other"]:
        if self.box and self.down:
            return functional.avg_pool2d(x, 2) if self.dims == 2 else functional.avg_pool1d(x, 2)
        if self.box:
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        return self.filter(x, self.pad)

    def filter(self, x: Float[Tensor, "batch channels *space"], pad: int) -> Float[Tensor, "batch channels *other"]:
        """The filter with ``pad`` zeros on each side in place of those that keep the size."""
        channels = x.shape[1]
        weight = self.weight.to(x.dtype).expand(channels, *self.weight.shape[1:])
        if self.down:
            convolve = functional.conv2d if self.dims == 2 else functional.conv1d
            return convolve(x, weight, stride=2, padding=pad, groups=channels)
        spread = functional.conv_transpose2d if self.dims == 2 else functional.conv_transpose1d
        return spread(x, weight, stride=2, padding=pad, groups=channels)


def to_patches(x: Float[Tensor, "batch channels *space"], patch: int) -> Float[Tensor, "batch _ *patches"]:
    """Signals or images with the values of each patch of side ``patch`` as the channels of one position."""
    if patch == 1:
        return x
    if x.ndim == 4:
        return functional.pixel_unshuffle(x, patch)
    return x.unflatten(2, (-1, patch)).transpose(2, 3).flatten(1, 2)


def from_patches(x: Float[Tensor, "batch _ *patches"], patch: int) -> Float[Tensor, "batch channels *space"]:
    """The inverse of :func:`to_patches`."""
    if patch == 1:
        return x
    if x.ndim == 4:
        return functional.pixel_shuffle(x, patch)
    return x.unflatten(1, (-1, patch)).transpose(2, 3).flatten(2, 3)
