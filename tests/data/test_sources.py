"""Data by name or path, and what is said when there is none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tests.data.reading import load

from sfumato.data import Dataset
from sfumato.data.sources import SOURCES
from sfumato.errors import InputError, SfumatoWarning


def test_digits() -> None:
    dataset = load("digits")
    bunch = load_digits()
    assert len(dataset) == 1797 and dataset.shape == (1, 8, 8) and dataset.images.dtype == np.float32
    assert np.array_equal((dataset.images[:, 0] + 1) * 8, bunch.images)
    assert np.array_equal(dataset.columns["label"].values, bunch.target)
    assert dataset.columns["label"].names == tuple("0123456789")
    assert dataset.batch([0]).min() == -1


def test_digits_at_another_size() -> None:
    dataset = load("digits", size=16, channels="rgb", columns=("label",))
    assert dataset.shape == (3, 16, 16)
    assert dataset.images.min() >= -1 and dataset.images.max() <= 1
    assert np.array_equal(dataset.images[:, 0], dataset.images[:, 2])


def test_a_name_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = Dataset(np.zeros((2, 1, 4, 4), dtype=np.uint8), name="blank")
    monkeypatch.setitem(SOURCES, "blank", lambda: blank)
    assert load("blank").images is blank.images and load("blank").name == "blank"
    with pytest.raises(InputError, match="no column 'label'"):
        load("blank", columns=("label",))


def test_home_and_path_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 8, 8), 200, dtype=np.uint8))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("~/x.npy")) == len(load(tmp_path / "x.npy")) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digts", "'digts' is neither a known name nor a file or folder; did you mean 'digits'?"),
        ("paintings", "expected digits, mnist, photos, shapes, a folder of images, a .npy or .npz file, or hf:NAME"),
        ("", "expected digits"),
        ("nowhere/at/all", "expected digits"),
        ("flowers.nzp", "did you mean 'flowers.npz'?"),
        ("flower", "did you mean 'flowers'?"),
        ("flowers.npz:x", "holds no array"),
        ("one.png", "is a single image; pass the folder"),
        ("table.csv", "a kind that is not read"),
    ],
)
def test_sources_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flowers").mkdir()
    np.savez("flowers.npz", images=np.zeros((1, 8, 8), dtype=np.uint8))
    Path("one.png").touch()
    Path("table.csv").touch()
    with pytest.raises(InputError) as caught:
        load(source)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers=0; expected at least 1"),
        ({"workers": -2}, "workers=-2"),
        ({"size": 0}, "size=0; expected a positive number"),
        ({"size": (8, -1)}, r"size=\(8, -1\)"),
        ({"channels": "gray"}, "channels='gray' is unknown; did you mean 'grey'"),
        ({"crop": "centre"}, "crop='centre' is unknown; did you mean 'center'"),
        ({"value_range": (0, 1)}, "--data.value-range is for files; digits states its own"),
        ({"layout": "NHW"}, "--data.layout is for"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("digits", **options)


def test_an_empty_sub_folder_is_said_to_be_no_class(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / name / "x.png")
    with pytest.warns(SfumatoWarning, match="no class 'c'"):
        data = load(str(tmp_path), columns=("label",), cache=str(tmp_path / "cache"))
    assert data.columns["label"].names == ("a", "b")
