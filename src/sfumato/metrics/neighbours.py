"""Nearest neighbours: are samples copies of training images, and do two sets of vectors cover each other?"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError
from sfumato.metrics import blocks
from sfumato.metrics.blocks import Pairs, Radii
from sfumato.metrics.estimate import Estimate

_CHUNK = 4096  # vectors whose distances are computed in float64 at once


def nearest_distances(
    queries: Float[Tensor, "batch channels *space"],
    train: Float[Tensor, "train channels *space"],
) -> Float[Tensor, " batch"]:
    """The Euclidean distance of each query to its nearest training image, ``(batch,)`` in float64.

    Feature vectors serve as well. The distance to the neighbour is computed from the difference, so that a copy is at
    exactly 0.

    Args:
        queries: the images or vectors.
        train: those that are searched.
    """
    from sklearn.metrics import pairwise_distances_argmin

    queries, train = queries.detach().flatten(1), train.detach().flatten(1)
    if len(queries) == 0 or len(train) == 0:
        raise InputError("nearest neighbours need at least one vector in each set, and one is empty.")
    if queries.shape[1] != train.shape[1]:
        raise InputError(f"the sets have {queries.shape[1]} and {train.shape[1]} features; images need one shape.")
    if not all(bool(torch.isfinite(end)) for x in (queries, train) for end in torch.aminmax(x)):
        raise InputError("nearest neighbours of NaN or infinite values are not defined; check both sets.")
    found = pairwise_distances_argmin(_numpy(queries), _numpy(train))
    if train.device.type == "mps":
        queries, train = queries.cpu(), train.cpu()
    nearest = torch.from_numpy(found).to(train.device)
    pairs = zip(queries.split(_CHUNK), nearest.split(_CHUNK), strict=True)
    return torch.cat([(chunk.double() - train[index].double()).square().sum(dim=1).sqrt() for chunk, index in pairs])


def _numpy(vectors: Tensor) -> npt.NDArray[np.floating]:
    return (vectors if vectors.dtype == torch.float64 else vectors.float()).cpu().numpy()


def neighbour_ratio(samples: Float[Tensor, " samples"], heldout: Float[Tensor, " heldout"]) -> Estimate:
    r"""How far samples lie from the training set, relative to unseen real images, from the `nearest_distances` of both.

    .. math::
        \frac{\operatorname{median}_i \min_k \lVert s_i - x_k \rVert}
             {\operatorname{median}_j \min_k \lVert h_j - x_k \rVert}

    for samples :math:`s`, training images :math:`x` and held-out images :math:`h`. Near 1 the samples are as
    new as real images are; well below 1 they are copies; well above 1 they are unlike the data.

    The error is that of Maritz and Jarrett (1978) for medians: what a bootstrap gives with endlessly many draws.
    """
    from scipy.stats.mstats import mjci

    median, reference = float(samples.median()), float(heldout.median())
    if reference == 0.0:
        raise InputError("most held-out images are copies of training images; remove duplicates before the split.")
    with np.errstate(invalid="ignore"):  # the root of a negative number of rounding, where all distances are equal
        errors = [float(np.nan_to_num(mjci(each.cpu().numpy(), prob=[0.5])[0])) for each in (samples, heldout)]
    ratio = median / reference
    return Estimate(ratio, math.hypot(errors[0], ratio * errors[1]) / reference, "bootstrap of the medians")


def copied_share(
    samples: Float[Tensor, " samples"], heldout: Float[Tensor, " heldout"], rank: float = 0.01
) -> Estimate:
    """The share of samples whose `nearest_distances` are at most the quantile ``rank`` of those of held-out images.

    Samples as new as real images have a share of ``rank``, and a model that repeats its training images up to 1.
    The error is the binomial one, with that of the quantile: few held-out images do not know it well.
    """
    share = _share(samples.double() <= heldout.double().quantile(rank), "")
    error = math.hypot(share.error or 0.0, math.sqrt(rank * (1.0 - rank) / len(heldout)))
    return Estimate(share.value, error, "binomial, and that of the percentile")


def _share(hits: Tensor, of: str) -> Estimate:
    """The error is that of (hits + 1) of (n + 2), so that it is never 0."""
    count, n = int(hits.sum()), len(hits)
    likely = (count + 1) / (n + 2)
    return Estimate(count / n, math.sqrt(likely * (1.0 - likely) / n), f"binomial{of}")


class PRDC(NamedTuple):
    """The result of `prdc`."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def prdc(generated: Float[Tensor, "n d"], real: Float[Tensor, "m d"], k_pr: int = 3, k_dc: int = 5) -> PRDC:
    """Improved precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020) at once.

    The ball of a vector reaches to its k-th nearest other of the same set.

    - precision: the share of generated vectors that lie in the ball (k = ``k_pr``) of any real one;
    - recall: the share of real vectors that lie in the ball (k = ``k_pr``) of any generated one;
    - density: how many balls of real vectors (k = ``k_dc``) a generated one lies in, on average, over k;
    - coverage: the share of real vectors whose ball (k = ``k_dc``) holds a generated one.

    As in the published codes, the edge of a ball belongs to it for the first two (<=) and not for the others (<). Where
    float32 cannot decide, float64 does. The sets are compared in blocks, in memory for both once more in float32.

    The errors are those of the vectors that are asked about, with the balls as given: binomial, and for the density
    that of a mean. All four depend on the numbers of vectors; compare only at equal ones.
    """
    hits = _hits(generated, real, k_pr, k_dc)
    balls = hits.balls.double() / k_dc
    error = float(balls.std()) / math.sqrt(len(balls))
    return PRDC(
        _share(hits.precise, " over the generated"),
        _share(hits.recalled, " over the real"),
        Estimate(float(balls.mean()), error, "standard error of the mean over the generated"),
        _share(hits.covered, " over the real"),
    )


class _Hits(NamedTuple):
    precise: Tensor  # per generated vector: in the ball of a real one?
    recalled: Tensor  # per real vector: in the ball of a generated one?
    balls: Tensor  # per generated vector: the number of real ones in whose balls it is
    covered: Tensor  # per real vector: is a generated one in its ball?


def _hits(generated: Tensor, real: Tensor, k_pr: int, k_dc: int) -> _Hits:
    if generated.shape[1:] != real.shape[1:] or generated.ndim != 2:
        raise InputError(
            f"two matrices (n, d) and (m, d) are needed, not {tuple(generated.shape)} and {tuple(real.shape)}."
        )
    ranks = k_pr, k_dc
    if min(ranks) < 1 or min(len(generated), len(real)) <= max(ranks):
        raise InputError(
            f"{max(ranks)} nearest others need more vectors than that in each set, and k at least 1; there are"
            f" {len(generated)} generated and {len(real)} real ones."
        )
    a, b = blocks.prepared(generated, real)
    of_real, of_generated = Radii(b, ranks), Radii(a, (k_pr,))

    def edges(pairs: Pairs, bound: str) -> tuple[Tensor, Tensor, Tensor]:
        """Of the balls of both vectors: of the real one for precision and for density, of the generated one."""
        near, far = getattr(of_real, bound)
        other: Tensor = getattr(of_generated, bound)[0]
        return near[pairs.first], far[pairs.first], other[pairs.second]

    balls = torch.zeros(len(a), dtype=torch.long, device=a.squares.device)
    precise, (recalled, covered) = balls.bool(), torch.zeros(2, len(b), dtype=torch.bool, device=balls.device)
    for pairs in blocks.pairs_within(b, a, of_real.most.amax(dim=0), of_generated.most[0]):
        doubtful = torch.zeros_like(pairs.first, dtype=torch.bool)
        for least, most in zip(edges(pairs, "least"), edges(pairs, "most"), strict=True):
            doubtful |= (pairs.least <= most * blocks.ABOVE) & (pairs.most >= least * blocks.BELOW)
        squares = (pairs.least + pairs.most) / 2.0
        if bool(doubtful.any()):
            open_pairs = pairs.where(doubtful)
            squares[doubtful] = blocks.exact_squares(b, a, open_pairs)
            of_real.settle(open_pairs.first)
            of_generated.settle(open_pairs.second)
        near, far, other = edges(pairs, "least")
        precise[pairs.second[squares <= near * blocks.ABOVE]] = True
        recalled[pairs.first[squares <= other * blocks.ABOVE]] = True
        within = squares < far * blocks.BELOW
        covered[pairs.first[within]] = True
        balls += pairs.second[within].bincount(minlength=len(a))
    return _Hits(precise, recalled, balls, covered)
