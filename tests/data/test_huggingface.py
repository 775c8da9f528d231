"""hf: with a stand-in for the ``datasets`` library, and with the library itself where it is installed."""

import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.data.hub_stand_in import ClassLabel, Feature, Image, Table, library
from tests.data.reading import load

from sfumato.data import Dataset
from sfumato.errors import InputError, SfumatoWarning


def png(array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def labels_of(dataset: Dataset) -> tuple[list[int], tuple[str, ...]]:
    column = dataset.columns["label"]
    return np.asarray(column.values).tolist(), column.names


ARRAYS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def table(**more: tuple[Any, list[Any]]) -> Table:
    return Table(**{"picture": (Image(), [png(array) for array in ARRAYS]), **more})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """What the stand-in answers, by (path, config, split)."""
    answers: dict[Any, Any] = {}

    def load_dataset(path: str, name: str | None = None, *, split: str) -> Table:
        if (path, name, split) not in answers:
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub\nmore lines")
        return answers[path, name, split]

    monkeypatch.setitem(sys.modules, "datasets", library(load_dataset))
    return answers


def test_images_and_labels(hub: dict[Any, Any]) -> None:
    hub["who/what", None, "train"] = table(kind=(ClassLabel(["cat", "dog"]), [1, 0, 0, 1]))
    dataset = load("hf:who/what")
    assert np.array_equal(dataset.images, ARRAYS.transpose(0, 3, 1, 2))
    assert labels_of(dataset) == ([1, 0, 0, 1], ("cat", "dog"))
    assert dataset.name == "hf:who/what"
    assert load("hf:who/what", size=4, channels="grey").shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("hf:mnist", ("mnist", None, "train")),
        ("hf:mnist:test", ("mnist", None, "test")),
        ("hf:a/b/c", ("a/b", "c", "train")),
        ("hf:a/b/c:train[:100]", ("a/b", "c", "train[:100]")),
    ],
)
def test_syntax(hub: dict[Any, Any], source: str, key: tuple[Any, ...]) -> None:
    hub[key] = table()
    dataset = load(source)
    assert len(dataset) == 4 and not dataset.columns


def test_plain_label_columns(hub: dict[Any, Any]) -> None:
    hub["a/b", None, "train"] = table(label=(Feature(), ["x", "y", "x", "x"]))
    dataset = load("hf:a/b", columns=("label",))
    assert labels_of(dataset) == ([0, 1, 0, 0], ("x", "y"))


def test_unreadable_rows_are_named_and_skipped(hub: dict[Any, Any]) -> None:
    broken = table(label=(ClassLabel(["a", "b"]), [0, 1, 0, 1]))
    broken.columns["picture"][1] = {"bytes": b"garbage", "path": None}
    broken.columns["picture"][2] = None
    hub["a/b", None, "train"] = broken
    with pytest.warns(SfumatoWarning, match=r"2 of the 4 images in hf:a/b .*row 1 \(not an image\), row 2 \(no image"):
        dataset = load("hf:a/b")
    assert np.asarray(dataset.columns["label"].values).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"other": (Image(), [None] * 4)},
            r"several columns of images; expected one\. Its columns are picture \(Image\)",
        ),
        ({"picture": (Feature(), [1])}, r"no column of images.*picture \(Feature\)"),
        ({"picture": (Image(), [])}, "has no rows"),
        ({}, "hf:a/b has no label column"),
        (
            {"fine": (ClassLabel(["a"]), [0] * 4), "coarse": (ClassLabel(["a"]), [0] * 4)},
            r"several label columns \(fine, coarse\)",
        ),
        ({"label": (Feature(), [0.5] * 4)}, "expected whole class numbers"),
    ],
)
def test_columns_refused(hub: dict[Any, Any], columns: dict[str, Any], message: str) -> None:
    hub["a/b", None, "train"] = table(**columns)
    with pytest.raises(InputError, match=message):
        load("hf:a/b", columns=("label",))


def test_unknown_and_malformed_names(hub: dict[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"hf:no/such cannot be loaded: Dataset 'no/such' doesn't exist on the Hub$"):
        load("hf:no/such")
    for source in ("hf:", "hf:a//b", "hf:a/b/c/d"):
        with pytest.raises(InputError, match="is not of the form"):
            load(source)
    with pytest.raises(InputError, match=r"--data\.layout is for"):
        load("hf:a/b", layout="NHW")


@pytest.mark.parametrize("found", [None, types.ModuleType("datasets")])
def test_not_installed(monkeypatch: pytest.MonkeyPatch, found: types.ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "datasets", found)
    with pytest.raises(InputError, match=r'pip install "sfumato\[hf\]"'):
        load("hf:mnist")


def test_the_library_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets", reason="the hf extra is not installed")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"picture": [Pillow.fromarray(array) for array in ARRAYS], "kind": [1, 0, 0, 1]}
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(tmp_path / "two")
    (tmp_path / "parquet").mkdir()
    saved.to_parquet(tmp_path / "parquet" / "train.parquet")
    for name in ("one", "two", "parquet"):
        dataset = load(f"hf:{tmp_path / name}", columns=("label",))
        assert np.array_equal(dataset.images, ARRAYS.transpose(0, 3, 1, 2))
        assert labels_of(dataset) == ([1, 0, 0, 1], ("cat", "dog"))
    assert len(load(f"hf:{tmp_path / 'two'}:test")) == 1
    assert len(load(f"hf:{tmp_path / 'parquet'}:train[:3]")) == 3
    with pytest.raises(InputError, match="has no split 'tset'; did you mean 'test'"):
        load(f"hf:{tmp_path / 'two'}:tset")
    with pytest.raises(InputError, match="cannot be loaded"):
        load("hf:nobody/nothing")
