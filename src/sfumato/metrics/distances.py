"""Distances between sets of images or feature vectors: Frechet's, and that to the nearest training image."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning

_CHUNK = 4096  # vectors whose distances are computed in float64 at once


@dataclass(frozen=True)
class Moments:
    r"""The mean and covariance of a set of ``samples`` feature vectors, in float64.

    The unbiased covariance :math:`S` is kept as a root :math:`R` with :math:`S = R^\top R`, which holds all digits of
    a covariance that is nearly or exactly singular and needs no more rows than there are samples.
    """

    mean: Float[Tensor, " features"]
    root: Float[Tensor, "rank features"]
    samples: int

    @staticmethod
    def fit(features: Float[Tensor, "batch features"]) -> Moments:
        """The moments of ``features`` ``(n, d)``."""
        if len(features) < 2:
            raise InputError(f"a covariance needs at least 2 samples, and there are {len(features)}.")
        features = features.detach().double()
        if not bool(torch.isfinite(features).all()):
            raise InputError("features hold NaN or infinite values; the images they come from are broken.")
        mean = features.mean(dim=0)
        centred = (features - mean) / math.sqrt(len(features) - 1)
        return Moments(mean, torch.linalg.qr(centred, mode="r").R, len(features))

    @property
    def biased(self) -> bool:
        """Whether there are no more samples than features, so that the covariance is singular.

        Distances then lie well above those of the distributions: compare them only between sets of the same sizes.
        """
        return self.samples <= self.root.shape[1]

    def distance(self, other: Moments) -> float:
        r"""The squared 2-Wasserstein distance of two Gaussians (Dowson and Landau, 1982; Frechet, 1957).

        .. math::
            \lVert \mu_a - \mu_b \rVert^2 + \operatorname{Tr}\left( S_a + S_b - 2 (S_a S_b)^{1/2} \right)

        With :math:`S = R^\top R`, :math:`\operatorname{Tr} (S_a S_b)^{1/2}` is the sum of the singular values of
        :math:`R_a R_b^\top`: no root of a matrix is taken, and singular covariances are as good as any.
        """
        if len(self.mean) != len(other.mean):
            raise InputError(f"the sets have {len(self.mean)} and {len(other.mean)} features; images need one shape.")
        means = (self.mean - other.mean).square().sum()
        traces = self.root.square().sum() + other.root.square().sum()
        overlap = torch.linalg.svdvals(self.root @ other.root.T).sum()
        return max(0.0, float(means + traces - 2.0 * overlap))


def frechet_distance(a: Float[Tensor, "batch_a features"], b: Float[Tensor, "batch_b features"]) -> float:
    """The Frechet distance (Heusel et al., 2017, in any features) of feature vectors ``(n, d)`` and ``(m, d)``.

    It is biased upward, roughly as the number of features over that of samples: compare it with a real-vs-real
    reference, the distance of two sets of real images of the same sizes. With no more samples than features it warns.
    """
    first, second = Moments.fit(a), Moments.fit(b)
    if first.biased or second.biased:
        warnings.warn(
            f"a Frechet distance of {first.samples} and {second.samples} samples in {len(first.mean)}"
            " features is dominated by the bias of few samples; give more samples than features.",
            SfumatoWarning,
            stacklevel=2,
        )
    return first.distance(second)


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
