"""Nearest neighbours: are samples copies of training images, and do two sets cover each other?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError

_CHUNK = 4096  # vectors whose distances are computed in float64 at once


def nearest_distances(
    queries: Float[Tensor, "batch channels *space"], train: Float[Tensor, "train channels *space"]
) -> Float[Tensor, " batch"]:
    """The Euclidean distance of each query to its nearest training image, ``(batch,)`` in float64.

    Feature vectors serve as well. The distance to the neighbour is computed from the difference, so that a copy is at
    exactly 0.
    """
    from sklearn.metrics import pairwise_distances_argmin

    queries, train = queries.detach().flatten(1), train.detach().flatten(1)
    if len(queries) == 0 or len(train) == 0:
        raise InputError("nearest neighbours need at least one vector in each set, and one is empty.")
    if queries.shape[1] != train.shape[1]:
        raise InputError(f"the sets have {queries.shape[1]} and {train.shape[1]} features; images need one shape.")
    if not bool(torch.isfinite(queries).all()) or not bool(torch.isfinite(train).all()):
        raise InputError("nearest neighbours of NaN or infinite values are not defined; check both sets.")
    nearest = torch.from_numpy(pairwise_distances_argmin(queries.cpu().numpy(), train.cpu().numpy())).to(train.device)
    pairs = zip(queries.split(_CHUNK), nearest.split(_CHUNK), strict=True)
    return torch.cat([(chunk.double() - train[index].double()).square().sum(dim=1).sqrt() for chunk, index in pairs])


def nearest_neighbour_ratio(
    samples: Float[Tensor, "samples channels *space"],
    train: Float[Tensor, "train channels *space"],
    heldout: Float[Tensor, "heldout channels *space"],
) -> float:
    r"""How far samples lie from the training set, relative to unseen real images; all are images or feature vectors.

    .. math::
        \frac{\operatorname{median}_i \min_k \lVert s_i - x_k \rVert}
             {\operatorname{median}_j \min_k \lVert h_j - x_k \rVert}

    for samples :math:`s`, training images :math:`x` and held-out images :math:`h`. Near 1 the samples are as
    new as real images are; well below 1 they are copies; well above 1 they are unlike the data.
    """
    return neighbour_ratio(nearest_distances(samples, train), nearest_distances(heldout, train))


def neighbour_ratio(samples: Float[Tensor, " samples"], heldout: Float[Tensor, " heldout"]) -> float:
    """The ratio of the medians of two sets of `nearest_distances`."""
    reference = float(heldout.median())
    if reference == 0.0:
        raise InputError("most held-out images are copies of training images; remove duplicates before the split.")
    return float(samples.median()) / reference
