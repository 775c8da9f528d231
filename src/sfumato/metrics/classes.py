"""Samples of classes: whether they are what was asked for, and how different those of one class are."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.data import Dataset
from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics.estimate import Estimate, share

_CHUNK = 1 << 22  # distances that are computed at once, in float64


def label_accuracy(predicted: Int[Tensor, " batch"], labels: Int[Tensor, " batch"]) -> Estimate:
    """The fraction of samples whose predicted class is the one asked for, with the error of a share."""
    for what, values in (("predicted", predicted), ("labels", labels)):
        _check(what, values)
    if len(predicted) != len(labels):
        raise InputError(f"there are {len(predicted)} predicted classes and {len(labels)} labels; give one for each.")
    return share(int((predicted == labels.to(predicted.device)).sum()), len(labels))


def diversity(features: Float[Tensor, "batch features"], labels: Int[Tensor, " batch"]) -> Estimate:
    r"""The mean distance of two samples of one class, averaged over the classes, in the unit of the features.

    .. math::
        \frac{1}{C} \sum_c \frac{1}{n_c (n_c - 1)} \sum_{i \ne j \in c} \lVert f_i - f_j \rVert

    It tells little by itself: divide it by that of real images. A ratio far below 1 shows few images per class,
    as guidance by a large scale makes them. Its error is by the jackknife over the samples of each class, which needs
    at least 3 of each. Classes of a single sample are left out, with a warning.
    """
    _check("labels", labels)
    if features.ndim != 2 or len(features) != len(labels):
        shape = tuple(features.shape)
        raise InputError(f"features must be vectors, one for each of the {len(labels)} labels; their shape is {shape}.")
    if not bool(torch.isfinite(features).all()):
        raise InputError("features hold NaN or infinite values; the images they come from are broken.")
    classes, places, counts = torch.unique(labels.to(features.device), return_inverse=True, return_counts=True)
    if bool((single := counts < 2).all()):
        raise InputError(f"diversity needs at least 2 samples of a class; {len(counts)} classes have one each.")
    if bool(single.any()):
        warnings.warn(
            f"{int(single.sum())} of {len(classes)} classes have a single sample, and no distance within; they are"
            " left out of the diversity. Draw more samples.",
            SfumatoWarning,
            stacklevel=2,
        )
    # Apple's GPUs have no float64
    vectors = features.detach().to("cpu" if features.device.type == "mps" else None).double()
    parts = [_mean_distance(vectors[places.to(vectors.device) == c]) for c in torch.nonzero(~single).flatten().tolist()]
    value = sum(distance for distance, _ in parts) / len(parts)
    if any(math.isnan(variance) for _, variance in parts):
        return Estimate(value, None, "no error with 2 samples of a class")
    error = math.sqrt(sum(variance for _, variance in parts)) / len(parts)
    return Estimate(value, error, "jackknife over the samples of each class")


def _mean_distance(vectors: Float[Tensor, "n features"]) -> tuple[float, float]:
    r"""The mean distance of two vectors and its jackknife variance, NaN for two vectors.

    Without vector :math:`i` the mean :math:`U` changes by :math:`2 (U - h_i) / (n - 2)`, where :math:`h_i` is the mean
    distance of the others from it.
    """
    count = len(vectors)
    vectors = vectors - vectors.mean(dim=0)  # copies are at 0 then, not at what rounding leaves
    rows = vectors.split(max(1, _CHUNK // count))
    from_each = torch.cat([torch.cdist(row, vectors).sum(dim=1) for row in rows]) / (count - 1)
    value = from_each.mean()
    if count == 2:
        return float(value), math.nan
    changes = 2.0 * (value - from_each) / (count - 2)
    return float(value), float(changes.square().sum() * (count - 1) / count)


def _check(what: str, labels: Tensor) -> None:
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point() or labels.dtype == torch.bool:
        shape = tuple(labels.shape)
        raise InputError(f"{what} must be integers, one for each sample, not {labels.dtype} of shape {shape}.")


def classes_of(data: Dataset, least: int = 2) -> tuple[str, ...]:
    """The names of the classes, of the first column that has ``least`` or more; none where no column has."""
    return next((column.names for column in data.columns.values() if len(column.names) >= least), ())


def labels_of(data: Dataset) -> Int[Tensor, " batch"]:
    """The classes as numbers, of the column of :func:`classes_of`."""
    columns = [column for column in data.columns.values() if column.names]
    # a single name, such as that of the only folder, tells nothing apart
    return max(columns, key=lambda column: len(column.names) > 1).rows(np.arange(len(data)))


def require_labels(labels: Int[Tensor, " batch"], names: tuple[str, ...]) -> None:
    """Check that labels are numbers of these classes, or -1 for none; any numbers where there are no names."""
    _check("labels", labels)
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or (names and high >= len(names)):
        wrong = high if names and high >= len(names) else low
        known = f"0 to {len(names) - 1} ({', '.join(names[:10])}{' ...' if len(names) > 10 else ''})"
        raise InputError(
            f"A label is {wrong}, and the real pictures have {'the classes ' + known if names else 'no such class'}; "
            "give the number of one, or -1 for none."
        )
