"""Dataset: what it holds, how it splits, what it refuses."""

import numpy as np
import pytest
import torch

from sfumato.data import Dataset
from sfumato.errors import InputError
from sfumato.random import permutation


def numbered(count: int) -> Dataset:
    """Image ``i`` has the value ``i`` in every pixel, and the label ``i % 3``."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 1, 2, 3)).copy()
    return Dataset(images, np.arange(count) % 3, ("a", "b", "c"), "numbered")


def test_uint8_becomes_minus_one_to_one() -> None:
    dataset = Dataset(np.array([[[0, 51, 255]]], dtype=np.uint8), None, (), "bytes")
    batch = dataset.batch([0])
    assert batch.dtype == torch.float32
    assert batch.flatten().tolist() == [-1.0, pytest.approx(51 / 127.5 - 1), 1.0]


def test_float_is_kept_and_copied() -> None:
    images = np.array([[[-1.0, 0.25, 1.0]]], dtype=np.float32)
    dataset = Dataset(images, None, (), "floats")
    batch = dataset.batch([0, 0])
    assert batch.tolist() == [[[-1.0, 0.25, 1.0]]] * 2
    batch.zero_()
    assert images[0, 0, 0] == -1.0


def test_shape_and_length() -> None:
    assert numbered(5).shape == (1, 2, 3)
    assert len(numbered(5)) == 5
    assert numbered(5).batch([]).shape == (0, 1, 2, 3)


@pytest.mark.parametrize(("holdout", "count"), [(3, 3), (0.25, 5), (0.01 + 0.04, 1), (19, 19), (0, 0), (0.0, 0)])
def test_split_is_a_partition(holdout: float, count: int) -> None:
    dataset = numbered(20)
    train, heldout = dataset.split(holdout, seed=7)
    assert (len(train), len(heldout)) == (20 - count, count)
    both = np.concatenate([heldout.images[:, 0, 0, 0], train.images[:, 0, 0, 0]])
    assert sorted(both) == list(range(20))
    if count:
        assert both.tolist() == permutation(7, "split", 0, 20).tolist()
    for part in (train, heldout):
        assert part.labels is not None
        assert part.labels.tolist() == [value % 3 for value in part.images[:, 0, 0, 0]]
        assert part.shape == dataset.shape


def test_split_depends_on_the_seed_alone() -> None:
    first, again, other = (numbered(50).split(10, seed)[1].images for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (20, "leaves nothing to train on: numbered has 20 images"),
        (0.99, "leaves nothing to train on"),
        (0.01, "rounds to none"),
        (-1, "expected a count"),
        (1.5, "expected a count"),
        (-0.5, "expected a count"),
        (True, "expected a count"),
        (float("nan"), "expected a count"),
    ],
)
def test_split_refuses(holdout: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        numbered(20).split(holdout, seed=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 1, 4, 4)), "images are float64"),
        (np.zeros(4, dtype=np.uint8), "expected \\(N, channels"),
        (np.zeros((2, 0, 4), dtype=np.uint8), "expected \\(N, channels"),
        (np.full((2, 1, 4), 255, dtype=np.float32), "float images span \\[255, 255\\]"),
        (np.full((2, 1, 4), np.nan, dtype=np.float32), "float images span \\[nan, nan\\]"),
    ],
)
def test_images_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset(images, None, (), "bad")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, dtype=np.int64), "expected int64 of shape \\(2,\\)"),
        (np.zeros(2, dtype=np.int32), "labels are int32"),
        (np.array([0, 2]), "labels span 0 ... 2 but there are 2 class names"),
        (np.array([-1, 0]), "labels span -1"),
    ],
)
def test_labels_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset(np.zeros((2, 1, 4), dtype=np.uint8), labels, ("a", "b"), "bad")
