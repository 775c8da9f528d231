"""The loader is a pure function of the seed and the sample index."""

import numpy as np
import pytest
import torch

from sfumato.data import Batch, Dataset, Loader
from sfumato.errors import InputError
from sfumato.random import permutation, uniform


def dataset(count: int = 23, side: int = 6) -> Dataset:
    """Every pixel of every image is different, so that nothing can be mistaken for anything else."""
    images = np.linspace(-1, 1, count * side * side, dtype=np.float32).reshape(count, 1, side, side)
    return Dataset.of({"image": images, "label": np.arange(count)}, name="distinct")


def joined(loader: Loader, sizes: list[int], start: int = 0) -> Batch:
    batches: list[Batch] = []
    position = start
    for size in sizes:
        batches.append(loader.batch(position, size))
        assert batches[-1].start == position
        position += size
    labels = torch.cat([batch.cond["label"] for batch in batches])
    return Batch(torch.cat([batch.x0 for batch in batches]), {"label": labels}, start)


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"crop": 4}, {"flip": True, "crop": (3, 5)}])
@pytest.mark.parametrize("start", [0, 17, 1000])
def test_any_batch_size_cuts_the_same_stream(options: dict, start: int) -> None:
    loader = Loader(dataset(), 3, **options)
    whole = loader.batch(start, 64)  # 64 samples of 23 images: across two or three borders of epochs
    for sizes in ([16] * 4, [1] * 64, [5, 50, 9]):
        parts = joined(Loader(dataset(), 3, **options), sizes, start)
        assert torch.equal(whole.x0, parts.x0)
        assert torch.equal(whole.cond["label"], parts.cond["label"])


def test_sample_n_is_item_of_its_epoch() -> None:
    data = dataset()
    labels = Loader(data, 5).batch(0, 3 * 23).cond["label"]
    orders = [permutation(5, "order", epoch, 23) for epoch in range(3)]
    assert labels.tolist() == np.concatenate(orders).tolist()
    assert labels[:23].tolist() != labels[23:46].tolist()


def test_order_of_calls_does_not_matter() -> None:
    loader = Loader(dataset(), 0, flip=True)
    late = loader.batch(500, 8).x0
    for epoch in range(6):
        loader.batch(23 * epoch, 8)
    assert torch.equal(loader.batch(500, 8).x0, late)


def test_seeds_differ() -> None:
    assert not torch.equal(Loader(dataset(), 0).batch(0, 23).x0, Loader(dataset(), 1).batch(0, 23).x0)


def test_labels_follow_their_images() -> None:
    data = dataset()
    batch = Loader(data, 2).batch(10, 40)
    assert batch.cond["label"].dtype == torch.int64
    assert torch.equal(batch.x0, data.batch(batch.cond["label"].numpy()))


def test_no_labels() -> None:
    data = dataset()
    assert Loader(Dataset(data.images, name="bare"), 0).batch(0, 4).cond == {}


def test_flip_mirrors_exactly_the_chosen_half() -> None:
    data = dataset()
    plain, flipped = Loader(data, 9).batch(0, 500), Loader(data, 9, flip=True).batch(0, 500)
    mirrored = uniform(9, "flip", 0, 500) < 0.5
    assert 200 < int(mirrored.sum()) < 300
    for index in range(500):
        expected = plain.x0[index].flip(-1) if mirrored[index] else plain.x0[index]
        assert torch.equal(flipped.x0[index], expected)


def test_crop_is_a_window_and_reaches_every_corner() -> None:
    data = dataset(count=1, side=6)
    loader = Loader(data, 0, crop=(4, 5))
    assert loader.shape == (1, 4, 5)
    windows = {
        tuple(data.images[0, 0, top : top + 4, left : left + 5].ravel().tolist()): (top, left)
        for top in range(3)
        for left in range(2)
    }
    seen = {windows[tuple(image.flatten().tolist())] for image in loader.batch(0, 100).x0}
    assert len(seen) == 6


def test_uint8_crop_is_converted() -> None:
    data = Dataset(np.full((2, 3, 4, 4), 255, dtype=np.uint8), name="white")
    assert torch.equal(Loader(data, 0, crop=2).batch(0, 2).x0, torch.ones(2, 3, 2, 2))


def test_tiny_dataset_and_large_batch() -> None:
    labels = Loader(dataset(count=2), 0).batch(1, 101).cond["label"]
    assert torch.bincount(labels).sum() == 101
    assert torch.bincount(labels[1:]).tolist() == [50, 50]


def test_signals() -> None:
    data = Dataset(np.zeros((4, 2, 10), dtype=np.float32), name="signals")
    assert Loader(data, 0).batch(0, 6).x0.shape == (6, 2, 10)
    with pytest.raises(InputError, match="flip is for images"):
        Loader(data, 0, flip=True)
    with pytest.raises(InputError, match="crop is for images"):
        Loader(data, 0, crop=2)


@pytest.mark.parametrize(("crop", "message"), [(7, "larger than the images"), ((6, 7), "larger"), (0, "positive")])
def test_crop_refused(crop: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loader(dataset(), 0, crop=crop)


def test_empty_dataset_refused() -> None:
    with pytest.raises(InputError, match="distinct is empty"):
        Loader(dataset().subset([]), 0)


@pytest.mark.parametrize(("start", "count"), [(-1, 4), (0, 0), (0, -3)])
def test_range_refused(start: int, count: int) -> None:
    with pytest.raises(InputError, match="expected start >= 0 and count >= 1"):
        Loader(dataset(), 0).batch(start, count)
