"""Dataset: what it holds, how it splits, what it refuses."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from sfumato.data import Column, Dataset, Loader
from sfumato.data.dataset import grey_values
from sfumato.errors import InputError
from sfumato.random import permutation


def numbered(count: int) -> Dataset:
    """Image ``i`` has the value ``i`` in every pixel, and the label ``i % 3``."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 1, 2, 3)).copy()
    return Dataset(images, {"label": Column(np.arange(count) % 3, ("a", "b", "c"))}, "numbered")


def test_uint8_becomes_minus_one_to_one() -> None:
    dataset = Dataset(np.array([[[0, 51, 255]]], dtype=np.uint8), name="bytes")
    batch = dataset.batch([0])
    assert batch.dtype == torch.float32
    assert batch.flatten().tolist() == [-1.0, pytest.approx(51 / 127.5 - 1), 1.0]


def test_float_is_kept_and_copied() -> None:
    images = np.array([[[-1.0, 0.25, 1.0]]], dtype=np.float32)
    dataset = Dataset(images, name="floats")
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
        assert np.asarray(part.columns["label"].values).tolist() == [value % 3 for value in part.images[:, 0, 0, 0]]
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
        Dataset(images, name="bad")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, dtype=np.int64), "a row for each of 2 images"),
        (np.zeros(2), "a whole number per image"),
        (np.array(["a", "b"]), "texts have no names of classes"),
        (np.array([0, 2]), "classes span 0 ... 2 but there are 2 names"),
        (np.array([-1, 0]), "classes span -1"),
    ],
)
def test_labels_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset(np.zeros((2, 1, 4), dtype=np.uint8), {"label": Column(labels, ("a", "b"))}, "bad")


def described(count: int = 6) -> Dataset:
    """Every kind of column."""
    generator = np.random.default_rng(0)
    columns = {
        "label": Column(np.arange(count, dtype=np.int32) % 3, ("a", "b", "c")),
        "size": Column(generator.normal(size=count)),
        "words": Column(generator.normal(size=(count, 4, 5)).astype(np.float32)),
        "seen": Column(generator.random((count, 4)) < 0.5),
        "small": Column(generator.integers(0, 256, (count, 1, 2, 2), dtype=np.uint8)),
    }
    return Dataset(generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8), columns, "described")


def test_it_is_a_map_style_data_set_of_pytorch() -> None:
    dataset = described()
    item = dataset[4]
    assert item["image"].shape == (1, 4, 4) and item["image"].dtype == torch.float32
    assert [item[name].dtype for name in dataset.columns] == [
        torch.int64,
        torch.float32,
        torch.float32,
        torch.bool,
        torch.uint8,
    ]
    assert int(item["label"]) == 1 and torch.equal(dataset[-2]["words"], item["words"])
    with pytest.raises(IndexError):
        dataset[6]
    batches = list(DataLoader(dataset, batch_size=4))
    assert torch.equal(torch.cat([b["image"] for b in batches]), dataset.batch(range(6)))
    assert torch.cat([b["label"] for b in batches]).tolist() == [0, 1, 2, 0, 1, 2]


def test_columns_follow_their_images() -> None:
    dataset = described()
    part = dataset.subset([5, 2, 2]).subset([2, 0])
    assert all(torch.equal(part[0][name], dataset[2][name]) for name in dataset[0])
    assert all(torch.equal(part[1][name], dataset[5][name]) for name in dataset[0])


class Pairs(TorchDataset[Any]):
    """Counts how often an item is read."""

    def __init__(self, kind: str) -> None:
        self.kind, self.read = kind, list[int]()

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        image = torch.full((1, 2, 3), index / 3.0 - 1.0)
        if self.kind == "tensor":
            return image
        return (image, index % 2) if self.kind == "pair" else {"image": image, "label": index % 2, "size": 0.5 * index}


@pytest.mark.parametrize("kind", ["tensor", "pair", "dict"])
def test_data_sets_of_pytorch_are_read_when_they_are_needed(kind: str) -> None:
    items = Pairs(kind)
    dataset = Dataset.of(DataLoader(items, batch_size=3), name="items")
    assert (len(dataset), dataset.shape, dataset.name) == (7, (1, 2, 3), "items")
    assert list(dataset.columns) == {"tensor": [], "pair": ["label"], "dict": ["label", "size"]}[kind]
    items.read.clear()
    part = dataset.subset([6, 3, 1])
    assert items.read == []
    batch = Loader(part, 0).batch(0, 3)
    assert sorted(items.read) == [1, 3, 6], "each item once, whatever the number of columns"
    order = [int(v) for v in ((batch.x0[:, 0, 0, 0] + 1.0) * 3.0).round()]
    assert sorted(order) == [1, 3, 6]
    if kind != "tensor":
        assert batch.cond["label"].tolist() == [index % 2 for index in order]


def test_any_cut_of_a_wrapped_data_set_is_the_same_stream() -> None:
    whole = Loader(Dataset.of(Pairs("dict")), 1, flip=True).batch(5, 20)
    loader = Loader(Dataset.of(Pairs("dict")), 1, flip=True)
    parts = [loader.batch(5, 3), loader.batch(8, 17)]
    assert torch.equal(whole.x0, torch.cat([part.x0 for part in parts]))
    for name, values in whole.cond.items():
        assert torch.equal(values, torch.cat([part.cond[name] for part in parts]))


def test_arrays_and_tensors() -> None:
    images = np.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    for given in (images, torch.from_numpy(images), torch.from_numpy(images).bfloat16().float()):
        assert Dataset.of(given).batch([0, 1]).dtype == torch.float32
    assert np.array_equal(np.asarray(Dataset.of(images).images), images.astype(np.float32))
    mixed = Dataset.of({"images": images, "label": [1, 0], "size": torch.tensor([0.5, 1.0])})
    assert mixed[0]["label"] == 1 and float(mixed[1]["size"]) == 1.0
    assert Dataset.of(mixed) is mixed


def test_pictures_of_pillow_and_labels_of_torchvision() -> None:
    from PIL import Image

    class Pictures(Pairs):
        targets: ClassVar = [0, 1, 1, 0, 0, 0, 0]
        classes: ClassVar = ["cat", "dog"]

        def __getitem__(self, index: int) -> Any:
            self.read.append(index)
            return Image.fromarray(np.full((8, 9, 3), 30 * index, np.uint8)), self.targets[index]

    items = Pictures("pair")
    dataset = Dataset.of(items)
    assert dataset.shape == (3, 8, 9) and dataset.images.dtype == np.uint8
    assert dataset.columns["label"].names == ("cat", "dog")
    items.read.clear()
    assert np.asarray(dataset.columns["label"].values).tolist() == Pictures.targets and items.read == []


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Endless(), "can't be read by index"),
        (3, "can't be read by index"),
        ({"label": np.zeros(3)}, "no 'image' among label"),
        (np.zeros((2, 32, 32, 3), np.uint8), "channels last"),
        (np.zeros((2, 28, 28), np.uint8), "without channels"),
        (np.linspace(0, 1, 128).reshape(2, 1, 8, 8), "no value below 0"),
        (np.linspace(0, 255, 128).reshape(2, 1, 8, 8), r"span \[0, 255\]"),
        ([torch.zeros(1, 2, 2), torch.zeros(1, 3, 3)], "one shape"),
        ([(torch.zeros(1, 2, 2), 1, 2)], "expected a tensor"),
        ([{"picture": torch.zeros(1, 2, 2)}], "name the image 'image'"),
        ([], "empty"),
    ],
    ids=[
        "endless",
        "number",
        "no image",
        "last",
        "no channels",
        "half range",
        "bytes",
        "shapes",
        "triple",
        "picture",
        "empty",
    ],
)
def test_what_is_no_data_set_is_refused_in_words(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Dataset.of(data)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": Column(np.zeros(2))}, "can't be called 'image'"),
        ({"two words": Column(np.zeros(2))}, "can't be called"),
        ({"size": Column(np.zeros(3))}, "a row for each of 2 images"),
        ({"size": Column(np.array(["a"]))}, "a text for each of 2 images"),
        ({"size": Column(np.array([b"a", b"b"]))}, "expected numbers"),
    ],
)
def test_odd_columns_are_refused(columns: dict[str, Column], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Dataset(np.zeros((2, 1, 4), dtype=np.uint8), columns)


def test_pictures_in_columns_are_mirrored_with_the_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 4, 4), dtype=np.uint8)
    dataset = Dataset(images, {"low": Column(images[..., ::2, ::2])})
    batch = Loader(dataset, 0, flip=True).batch(0, 200)
    plain = Loader(dataset, 0).batch(0, 200)
    turned = (batch.x0 != plain.x0).flatten(1).any(1)
    assert 60 < int(turned.sum()) < 140
    assert torch.equal(batch.cond["low"][turned], plain.cond["low"][turned].flip(-1))
    assert torch.equal(batch.cond["low"][~turned], plain.cond["low"][~turned])
    with pytest.raises(InputError, match="other images too, 'low'"):
        Loader(dataset, 0, crop=2)


@pytest.mark.parametrize(
    ("images", "bins"),
    [
        (torch.arange(256).reshape(4, 1, 8, 8).float() / 127.5 - 1, 256),
        (torch.arange(17).repeat(4)[:64].reshape(1, 1, 8, 8) / 8 - 1, 17),
        (torch.tensor([[-1.0, 1.0]]), 2),
        # grey values that are multiples of 3 and 5, but lie on no coarser grid
        (torch.tensor([[0.0, 3.0, 8.0, 13.0]]) / 127.5 - 1, 256),
        (torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1, None),
        (torch.full((2, 1, 3, 3), 200 / 127.5 - 1), None),
    ],
)
def test_grey_values(images: torch.Tensor, bins: int | None) -> None:
    assert grey_values(images.numpy()) == bins


def test_words_are_classes_or_texts() -> None:
    images = np.zeros((3, 1, 4, 4), np.uint8)
    data = Dataset.of({"image": images, "label": ["dog", "cat", "dog"], "text": ["a", "b", "c"]})
    assert data.columns["label"].names == ("cat", "dog") and not data.columns["label"].is_text
    assert data.columns["text"].is_text and data.columns["text"].texts(range(3)) == ["a", "b", "c"]
    assert np.asarray(data.columns["label"].values).tolist() == [1, 0, 1]
    assert repr(data) == "Dataset(data: 3 images of 1x4x4, columns label, text)"
