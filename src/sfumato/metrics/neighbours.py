"""Distances to the nearest training image, which show whether samples are copies."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError

_QUERIES, _KEYS = 512, 8192


def nearest_distances(
    queries: Float[Tensor, "batch channels *space"], train: Float[Tensor, "train channels *space"]
) -> Float[Tensor, " batch"]:
    """The Euclidean distance of each query to its nearest training vector, ``(batch,)`` in float64.

    The neighbour is found with matrix products over chunks, in memory that does not grow with either set; its
    distance is then computed from the difference, so that a copy is at exactly 0.

    Args:
        queries: Images ``(batch, channels, *space)`` or feature vectors ``(batch, features)``.
        train: The same of the training set, ``(train, channels, *space)``.

    Raises:
        InputError: A set is empty, the shapes differ, or a value is not finite.
    """
    queries, train = queries.detach().flatten(1), train.detach().flatten(1)
    if len(queries) == 0 or len(train) == 0:
        raise InputError("nearest neighbours need at least one vector in each set, and one is empty.")
    if queries.shape[1] != train.shape[1]:
        raise InputError(f"the sets have {queries.shape[1]} and {train.shape[1]} features; images must have one shape.")
    if not bool(torch.isfinite(queries).all()) or not bool(torch.isfinite(train).all()):
        raise InputError("nearest neighbours of NaN or infinite values are not defined; check both sets.")
    centre = train.double().mean(dim=0).to(train.dtype)  # smaller numbers leave more digits to the products
    distances: list[Tensor] = []
    for chunk in queries.split(_QUERIES):
        best = torch.full((len(chunk),), torch.inf, dtype=train.dtype, device=train.device)
        index = torch.zeros(len(chunk), dtype=torch.long, device=train.device)
        left = (chunk - centre).to(train.dtype)
        for start in range(0, len(train), _KEYS):
            right = train[start : start + _KEYS] - centre
            near, where = (right.square().sum(dim=1) - 2.0 * left @ right.T).min(dim=1)
            index = torch.where(near < best, where + start, index)
            best = torch.minimum(near, best)
        distances.append((chunk.double() - train[index].double()).square().sum(dim=1).sqrt())
    return torch.cat(distances)


def nearest_neighbour_ratio(
    samples: Float[Tensor, "samples channels *space"],
    train: Float[Tensor, "train channels *space"],
    heldout: Float[Tensor, "heldout channels *space"],
) -> float:
    r"""How far samples lie from the training set, in units of how far fresh real images do.

    .. math::
        \frac{\operatorname{median}_i \min_k \lVert s_i - x_k \rVert}
             {\operatorname{median}_j \min_k \lVert h_j - x_k \rVert}

    for samples :math:`s`, training images :math:`x` and held-out images :math:`h`. Near 1 the samples are as
    new as real images are; well below 1 they are copies; well above 1 they are unlike the data.

    Args:
        samples: Images ``(samples, channels, *space)`` or feature vectors ``(samples, features)``.
        train: The same of the training set.
        heldout: The same of real images that were not trained on.

    Raises:
        InputError: A set is empty or not finite, the shapes differ, or most held-out images are copies.
    """
    return neighbour_ratio(nearest_distances(samples, train), nearest_distances(heldout, train))


def neighbour_ratio(samples: Float[Tensor, " samples"], heldout: Float[Tensor, " heldout"]) -> float:
    """The ratio of the medians of two sets of `nearest_distances`.

    Raises:
        InputError: The median of the held-out distances is 0.
    """
    reference = float(heldout.median())
    if reference == 0.0:
        raise InputError(
            "most held-out images are copies of training images, so no ratio can show memorization;"
            " remove duplicates before the split."
        )
    return float(samples.median()) / reference
