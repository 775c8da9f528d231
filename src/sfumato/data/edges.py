"""Where edges of images are, and which way they run."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CHANNELS = 5
"""Of these, besides those of the image."""
_SCALE = 4.0  # means over a cell are small: an edge crosses few of its pixels


def edges(images: Float[Tensor, "batch channels height width"], factor: int) -> Float[Tensor, "batch 5 h w"]:
    r"""The mean strength of edges in each cell of ``factor`` x ``factor`` pixels, and their directions.

    With the gradient :math:`(g_x, g_y)` of a channel (central differences), summed over channels,

    .. math::
        m = \sqrt{\sum g_x^2 + g_y^2}, \qquad (\cos 2\theta, \sin 2\theta) \propto \sum (g_x^2 - g_y^2, 2 g_x g_y)

    (the structure tensor; Bigun and Granlund 1987); the channels are the means of :math:`m`,
    :math:`m \cos 2\theta`, :math:`m \sin 2\theta`, :math:`m \cos 4\theta` and :math:`m \sin 4\theta`, times 4 and
    each clipped to [-1, 1]. They tell forms apart wherever in a cell these are: a square has edges in two directions, a
    circle in all, and a ring has an inner edge too.
    """
    right = functional.pad(images[..., 2:] - images[..., :-2], (1, 1)) / 2.0
    down = functional.pad(images[..., 2:, :] - images[..., :-2, :], (0, 0, 1, 1)) / 2.0
    strength = (right.square() + down.square()).sum(1).sqrt()
    axis = torch.stack([(right.square() - down.square()).sum(1), (2.0 * right * down).sum(1)], 1)
    cos, sin = functional.normalize(axis, dim=1, eps=1e-9).unbind(1)
    ways = torch.stack([torch.ones_like(cos), cos, sin, cos.square() - sin.square(), 2.0 * cos * sin], 1)
    return (_SCALE * functional.avg_pool2d(strength[:, None] * ways, factor)).clamp(-1.0, 1.0)
