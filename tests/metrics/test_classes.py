"""Accuracy of labels and diversity within classes, against SciPy, a jackknife by hand and repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import binomtest
from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics import classes


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (97, 100), (50, 50), (1, 1)])
def test_accuracy_and_the_interval_of_wilson(right: int, count: int) -> None:
    labels = torch.arange(count) % 7
    predicted = torch.where(torch.arange(count) < right, labels, labels + 1)
    found = classes.label_accuracy(predicted, labels)
    one_sigma = 0.6826894921370859
    interval = binomtest(right, count).proportion_ci(one_sigma, method="wilson")
    assert found.value == right / count
    assert found.error == pytest.approx((interval.high - interval.low) / 2.0, rel=1e-9)
    assert "Wilson" in found.method


def groups(sizes: list[int], features: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.repeat_interleave(torch.arange(len(sizes)) * 3 - 1, torch.tensor(sizes))
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(labels), features, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(labels), generator=generator)
    scale = 1.0 + labels[:, None].abs()
    return (100.0 * labels[:, None] + scale * vectors)[order], labels[order]


def test_diversity_against_scipy_and_a_jackknife_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = groups([5, 40, 3])
    by_class = [vectors[labels == label].numpy() for label in labels.unique()]
    variances = []
    for rows in by_class:
        left_out = np.array([pdist(np.delete(rows, i, axis=0)).mean() for i in range(len(rows))])
        variances.append((len(rows) - 1) / len(rows) * ((left_out - left_out.mean()) ** 2).sum())
    found = classes.diversity(vectors, labels)
    assert found.value == pytest.approx(np.mean([pdist(rows).mean() for rows in by_class]), rel=1e-9)
    assert found.error == pytest.approx(np.sqrt(sum(variances)) / 3, rel=1e-7)
    monkeypatch.setattr(classes, "_CHUNK", 90)  # a few rows at a time
    again = classes.diversity(vectors, labels)
    assert again[:2] == pytest.approx(found[:2], rel=1e-9)


def test_the_error_is_that_of_repeated_sampling() -> None:
    found = [classes.diversity(*groups([30, 20, 25], seed=seed)) for seed in range(200)]
    spread = float(np.std([estimate.value for estimate in found]))
    assert float(np.mean([estimate.error for estimate in found])) == pytest.approx(spread, rel=0.15)


def test_copies_have_no_diversity() -> None:
    vectors = torch.tensor([[0.1, 1e4, -3.3], [7.7, 0.3, 0.0]]).repeat_interleave(40, dim=0)
    found = classes.diversity(vectors, torch.arange(2).repeat_interleave(40))
    assert found.value == pytest.approx(0.0, abs=1e-9) and found.error == pytest.approx(0.0, abs=1e-9)


def test_few_samples_of_a_class() -> None:
    vectors, labels = groups([4, 2])
    pair = classes.diversity(vectors, labels)
    assert pair.error is None and "2 samples" in pair.method and pair.value > 0.0
    with_single, single = groups([4, 1, 4])
    with pytest.warns(SfumatoWarning, match="1 of 3 classes have a single sample"):
        found = classes.diversity(with_single, single)
    kept = single != 2
    assert found == classes.diversity(with_single[kept], single[kept])
    with pytest.raises(InputError, match="at least 2 samples of a class"):
        classes.diversity(vectors[:3], torch.arange(3))


@pytest.mark.usefixtures("unchecked")
def test_bad_labels() -> None:
    vectors, labels = groups([4, 4])
    with pytest.raises(InputError, match="labels must be integers"):
        classes.diversity(vectors, labels.float())
    with pytest.raises(InputError, match="one for each of the 5 labels"):
        classes.diversity(vectors, labels[:5])
    with pytest.raises(InputError, match="NaN"):
        classes.diversity(vectors * torch.nan, labels)
    with pytest.raises(InputError, match="8 predicted classes and 5 labels"):
        classes.label_accuracy(labels, labels[:5])
    with pytest.raises(InputError, match="predicted must be integers"):
        classes.label_accuracy(torch.rand(8, 3), labels)
    with pytest.raises(InputError, match="must be integers, one for each sample"):
        classes.label_accuracy(labels[:0], labels[:0])
