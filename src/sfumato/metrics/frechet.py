"""The Frechet distance between two sets of feature vectors, each summed up by its mean and covariance."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning


@dataclass(frozen=True)
class Gaussian:
    r"""The mean and covariance of a set of feature vectors, in float64.

    The covariance :math:`S` is kept as a root :math:`R` with :math:`S = R^\top R`, which holds all digits of
    a covariance that is nearly or exactly singular and needs no more rows than there are samples.
    """

    mean: Float[Tensor, " features"]
    """The mean, ``(d,)``."""
    root: Float[Tensor, "rank features"]
    """The root of the unbiased covariance, ``(min(n, d), d)``."""
    samples: int
    """The number of samples it was fitted to."""

    @staticmethod
    def fit(features: Float[Tensor, "batch features"]) -> Gaussian:
        """The mean and the unbiased covariance of ``features`` ``(n, d)``.

        Raises:
            InputError: There are fewer than two rows, a value is not finite, or ``features`` is not a matrix.
        """
        if features.ndim != 2:
            raise InputError(f"features must have shape (samples, width), not {tuple(features.shape)}.")
        if len(features) < 2:
            raise InputError(
                f"a covariance needs at least 2 samples, and there are {len(features)}; give more samples."
            )
        features = features.detach().double()
        if not bool(torch.isfinite(features).all()):
            raise InputError("features hold NaN or infinite values; the images they come from are broken.")
        mean = features.mean(dim=0)
        centred = (features - mean) / math.sqrt(len(features) - 1)
        root = torch.linalg.qr(centred, mode="r").R
        return Gaussian(mean, root, len(features))

    @property
    def biased(self) -> bool:
        """Whether there are no more samples than features, so that the covariance is singular.

        Distances are then exact for the sample moments but lie well above those of the distributions. Compare
        them only with distances between sets of the same sizes.
        """
        return self.samples <= self.root.shape[1]

    def distance(self, other: Gaussian) -> float:
        r"""The squared 2-Wasserstein distance of two Gaussians (Dowson and Landau, 1982; Frechet, 1957).

        .. math::
            \lVert \mu_a - \mu_b \rVert^2 + \operatorname{Tr}\left( S_a + S_b - 2 (S_a S_b)^{1/2} \right)

        With :math:`S = R^\top R` the eigenvalues of :math:`S_a S_b` are the squared singular values of
        :math:`R_a R_b^\top`, so :math:`\operatorname{Tr} (S_a S_b)^{1/2}` is the sum of those singular
        values: no root of a matrix is taken, and singular covariances are as good as any.

        Raises:
            InputError: The two have different numbers of features.
        """
        if len(self.mean) != len(other.mean):
            raise InputError(
                f"the sets have {len(self.mean)} and {len(other.mean)} features;"
                " both must come from the same extractor and image shape."
            )
        means = (self.mean - other.mean).square().sum()
        traces = self.root.square().sum() + other.root.square().sum()
        overlap = torch.linalg.svdvals(self.root @ other.root.T).sum()
        return max(0.0, float(means + traces - 2.0 * overlap))


def frechet_distance(a: Float[Tensor, "batch_a features"], b: Float[Tensor, "batch_b features"]) -> float:
    r"""The Frechet distance of two sets of feature vectors (Heusel et al., 2017, in any features).

    .. math::
        \lVert \mu_a - \mu_b \rVert^2 + \operatorname{Tr}\left( S_a + S_b - 2 (S_a S_b)^{1/2} \right)

    with the sample means and unbiased sample covariances, in float64. It is biased upward, roughly
    as the number of features over that of samples: compare it with a floor between two sets of real images of
    the same sizes.

    Args:
        a: Feature vectors ``(n, d)``.
        b: Feature vectors ``(m, d)``.

    Raises:
        InputError: A set has fewer than two samples, the widths differ, or a value is not finite.

    Warns:
        SfumatoWarning: A set has no more samples than features.
    """
    first, second = Gaussian.fit(a), Gaussian.fit(b)
    distance = first.distance(second)
    if first.biased or second.biased:
        warnings.warn(
            f"a Frechet distance of {first.samples} and {second.samples} samples in {len(first.mean)}"
            " features is dominated by the bias of few samples; give more samples than features.",
            SfumatoWarning,
            stacklevel=2,
        )
    return distance
