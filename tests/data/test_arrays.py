"""NumPy files: axes, ranges, labels, and everything that is wrong with them."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.reading import load

from sfumato.data.arrays import channels_first, labels_of, normalized, read_arrays
from sfumato.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def npy(folder: Path, array: np.ndarray) -> Path:
    path = folder / "data.npy"
    np.save(path, array)
    return path


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def bytes_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((5, 8, 8), None, (1, 8, 8)),
        ((5, 8, 64), None, (1, 8, 64)),
        ((5, 9, 8, 3), None, (3, 9, 8)),
        ((5, 3, 9, 8), None, (3, 9, 8)),
        ((5, 8, 8, 1), None, (1, 8, 8)),
        ((5, 4, 8, 8), None, (4, 8, 8)),
        ((5, 1, 100), None, (1, 100)),
        ((5, 2, 17), None, (2, 17)),
        ((5, 12, 1000), "NCL", (12, 1000)),
        ((5, 12, 1000), "NHW", (1, 12, 1000)),
        ((5, 3, 8, 3), "NCHW", (3, 8, 3)),
        ((5, 3, 8, 3), "NHWC", (3, 3, 8)),
        ((5, 2, 8, 8), "NCHW", (2, 8, 8)),
        ((5, 7), "NC", (7,)),
    ],
)
def test_layouts(tmp_path: Path, shape: tuple[int, ...], layout: str | None, expected: tuple[int, ...]) -> None:
    array = bytes_of(*shape)
    dataset = load(npy(tmp_path, array), layout=layout)
    assert dataset.shape == expected
    last = layout == "NHWC" or (layout is None and len(shape) == 4 and shape[1] > 4)
    reference = np.moveaxis(array, -1, 1) if last else array.reshape(5, *expected)
    assert np.array_equal(dataset.images, reference)
    assert dataset.images.flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((5, 3, 8, 3), None, "the second and the last axis could both be 1, 3 or 4 channels"),
        ((5, 8, 8, 8), None, "neither the second nor the last axis is"),
        ((5, 12, 1000), None, "grey images or signals"),
        ((5, 3, 3), None, "grey images or signals"),
        ((5, 100, 1), None, "grey images or signals"),
        ((5, 784), None, "reshape flattened images"),
        ((5,), None, "expected \\(N, H, W\\)"),
        ((5, 3, 4, 8, 8), None, "expected \\(N, H, W\\)"),
        ((), None, "there is nothing in it"),
        ((0, 8, 8), None, "there is nothing in it"),
        ((5, 8, 8), "NCHW", "names 4 axes"),
        ((5, 8, 8), "NWH", "layout='NWH' is unknown; did you mean 'NHW'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_layouts_refused(tmp_path: Path, shape: tuple[int, ...], layout: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(npy(tmp_path, np.full(shape, 200, dtype=np.uint8)), layout=layout)


def test_uint8_is_kept() -> None:
    array = bytes_of(5, 1, 8, 8)
    assert normalized(array, None, "x") is array
    assert normalized(array, (0, 255), "x") is array


def test_integers_become_bytes() -> None:
    result = normalized(np.array([0, 100, 255], dtype=np.int64), None, "x")
    assert result.dtype == np.uint8
    assert result.tolist() == [0, 100, 255]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint16, np.uint8, ">f4"])
def test_stated_range_is_linear(dtype: str) -> None:
    result = normalized(np.array([0, 4, 8, 16], dtype=dtype), (0, 16), "x")
    assert result.dtype == np.float32 and result.dtype.isnative
    assert result.tolist() == [-1.0, -0.5, 0.0, 1.0]


def test_unit_range_is_exact() -> None:
    values = np.random.default_rng(0).random(1000, dtype=np.float32)
    assert np.array_equal(normalized(values, (0, 1), "x"), values * 2 - 1)


def test_signed_floats_are_taken_as_they_are() -> None:
    values = np.array([-1.0, -0.3, 0.9], dtype=np.float64)
    assert np.array_equal(normalized(values, None, "x"), values.astype(np.float32))
    assert np.array_equal(normalized(values, (-1, 1), "x"), values.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "value_range", "message"),
    [
        ([0.0, 0.5, 1.0], None, r"floats from 0 to 1, .* pass --data.value-range 0 1 if 0 is the lowest"),
        ([0.0, 200.5], None, r"pass the lowest and the highest value, such as --data.value-range 0 255"),
        ([0.0, 16.0], None, r"such as --data.value-range 0 16"),
        ([-3.0, 2.0], None, r"floats from -3 to 2, outside \[-1, 1\]"),
        ([0.0, np.nan, np.nan, np.inf], (0, 1), "2 NaN and 1 infinite values, in 3 of its 4 rows"),
        ([0.0, 0.5, 1.5, 2.0], (0, 1), r"values from 0 to 2, outside the range 0 \.\.\. 1"),
        (np.array([0, 256]), None, r"values from 0 to 256; expected 0 \.\.\. 255"),
        (np.array([-1, 5]), None, "values from -1 to 5"),
        (
            np.array([0, 1], dtype=np.uint8),
            None,
            r"from 0 to 1, 0\.39 % of 0 \.\.\. 255: .* pass --data.value-range 0 1 if 1 is white",
        ),
        (np.array([0, 16]), None, r"pass --data.value-range 0 16"),
        (np.array([0, 16]), (0, 8), r"from 0 to 16, outside the range 0 \.\.\. 8"),
        (np.array([True, False]), None, "dtype bool"),
        (np.array([1j]), None, "dtype complex128"),
        (np.array(["a"]), None, "dtype <U1"),
        (np.array(["2020-01-01"], dtype="M8[D]"), None, "dtype datetime64"),
    ],
)
def test_values_refused(values: np.ndarray, value_range: tuple[float, float] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalized(np.asarray(values), value_range, "x")


def test_dark_bytes_pass_when_stated(tmp_path: Path) -> None:
    dark = np.full((2, 8, 8), 3, dtype=np.uint8)
    assert load(npy(tmp_path, dark), value_range=(0, 255)).images.dtype == np.uint8


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, float("inf")), (float("nan"), 1)])
def test_bad_value_range(tmp_path: Path, value_range: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="expected LOWEST HIGHEST"):
        load(npy(tmp_path, bytes_of(2, 8, 8)), value_range=value_range)


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("rgb", "y")])
def test_keys(tmp_path: Path, images: str, labels: str) -> None:
    path = npz(tmp_path, **{images: bytes_of(4, 8, 8, 3), labels: np.array([0, 2, 1, 2], dtype=np.uint8)})
    dataset = load(path)
    assert np.asarray(dataset.columns["label"].values).tolist() == [0, 2, 1, 2]
    assert dataset.columns["label"].names == ("0", "1", "2")
    assert dataset.name == "data"


def test_named_key_takes_its_twin(tmp_path: Path) -> None:
    path = npz(
        tmp_path,
        x_train=bytes_of(4, 8, 8),
        y_train=np.zeros(4, dtype=int),
        x_test=bytes_of(2, 8, 8),
        y_test=np.array([1, 3]),
    )
    dataset = load(f"{path}:x_test", columns=("label",))
    assert len(dataset) == 2
    assert np.asarray(dataset.columns["label"].values).tolist() == [1, 3]
    with pytest.raises(InputError, match="holds no array 'x_tests'; did you mean 'x_test'"):
        load(f"{path}:x_tests")


def test_class_names(tmp_path: Path) -> None:
    path = npz(tmp_path, x=bytes_of(2, 8, 8), y=np.array([[1], [0]]), classes=np.array(["cat", "dog", "emu"]))
    dataset = load(path)
    assert dataset.columns["label"].names == ("cat", "dog", "emu")
    assert np.asarray(dataset.columns["label"].values).tolist() == [1, 0]


def test_string_labels() -> None:
    column = labels_of(np.array(["dog", "cat", "dog"]), 3, None, "y")
    labels, classes = column.values, column.names
    assert (labels.tolist(), classes) == ([1, 0, 1], ("cat", "dog"))
    column = labels_of(np.array(["10", "9", "1"]), 3, None, "y")
    assert (column.values.tolist(), column.names) == ([2, 1, 0], ("1", "9", "10"))
    assert labels_of(np.array([b"b", b"a"]), 2, None, "y").names == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, dtype=int), "expected one label for each of the 2 images"),
        (np.zeros((2, 4), dtype=int), "expected one label for each"),
        (np.array([0.5, 1.0]), "dtype float64; expected whole class numbers"),
        (np.array([-1, 0]), "spans -1 ... 0; number the classes"),
        (np.array([0, 10**9]), "number the classes"),
    ],
)
def test_labels_refused_only_when_asked_for(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    path = npz(tmp_path, x=bytes_of(2, 8, 8), y=labels)
    assert not load(path).columns
    with pytest.raises(InputError, match=message):
        load(path, columns=("label",))


def test_missing_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no labels: no array 'labels'.* beside 'x'"):
        load(npz(tmp_path, x=bytes_of(2, 8, 8)), columns=("label",))
    with pytest.raises(InputError, match="single array without columns"):
        load(npy(tmp_path, bytes_of(2, 8, 8)), columns=("label",))


def test_further_columns(tmp_path: Path) -> None:
    tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
    path = npz(
        tmp_path, images=bytes_of(2, 8, 8), caption_tokens=tokens, short=tokens[:1], words=np.array([b"a", b"b"])
    )
    images, columns, *_ = read_arrays(path, None, ("caption_tokens",), None, None)
    assert images.shape == (2, 1, 8, 8) and list(columns) == ["caption_tokens"]
    assert np.array_equal(columns["caption_tokens"].values, tokens)
    assert torch.equal(load(path, columns=("caption_tokens",))[1]["caption_tokens"], torch.tensor([3, 4, 5]))
    assert read_arrays(path, None, (), None, None)[1] == {}
    with pytest.raises(InputError, match=r"no column 'caption_token'.* did you mean 'caption_tokens'"):
        load(path, columns=("caption_token",))
    for name in ("short", "words"):
        with pytest.raises(InputError, match=rf"'{name}': .* a row for each of 2 images"):
            load(path, columns=(name,))


def test_too_few_class_names(tmp_path: Path) -> None:
    path = npz(tmp_path, x=bytes_of(2, 8, 8), y=np.array([0, 2]), classes=np.array(["a", "b"]))
    with pytest.raises(InputError, match="go up to 2, but class names have shape"):
        load(path, columns=("label",))


def test_unclear_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds one, two: .* name one as data\.npz:KEY"):
        load(npz(tmp_path, one=bytes_of(2, 8, 8), two=bytes_of(2, 8, 8)))
    with pytest.raises(InputError, match="holds nothing"):
        load(npz(tmp_path))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    ragged = np.empty(2, dtype=object)
    ragged[:] = [bytes_of(2, 2), bytes_of(3, 3)]
    with pytest.raises(InputError, match="holds Python objects as a pickle"):
        load(npy(tmp_path, ragged))
    with pytest.raises(InputError, match=r"data\.npz\['x'\] holds Python objects"):
        load(npz(tmp_path, x=ragged))
    (tmp_path / "data.npy").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InputError, match="is a pickle"):
        load(tmp_path / "data.npy")


def test_damaged_files(tmp_path: Path) -> None:
    whole = npy(tmp_path, bytes_of(9, 8, 8)).read_bytes()
    for content, message in (
        (b"", "is not a NumPy file"),
        (b"hello world", "is not a NumPy file"),
        (whole[:-100], "damaged or cut short"),
        (whole[:20], "damaged or cut short"),
    ):
        (tmp_path / "data.npy").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load(tmp_path / "data.npy")
    whole = npz(tmp_path, x=bytes_of(9, 8, 8)).read_bytes()
    (tmp_path / "data.npz").write_bytes(whole[:-50])
    with pytest.raises(InputError, match="damaged or cut short"):
        load(tmp_path / "data.npz")
    spoiled = bytearray(whole)
    spoiled[300] ^= 255
    (tmp_path / "data.npz").write_bytes(spoiled)
    with pytest.raises(InputError, match="damaged or cut short"):
        load(tmp_path / "data.npz")


def test_foreign_member_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", b"no header here")
    with pytest.raises(InputError, match=r"data\.npz\['x'\]"):
        load(tmp_path / "data.npz")


def test_npz_saved_in_memory_and_compressed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=bytes_of(3, 8, 8))
    (tmp_path / "data.NPZ").write_bytes(buffer.getvalue())
    assert np.array_equal(load(tmp_path / "data.NPZ").images[:, 0], bytes_of(3, 8, 8))


def test_channels_first_names_the_culprit() -> None:
    with pytest.raises(InputError, match="file has shape"):
        channels_first(np.zeros((2, 2)), None, "file")


@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is not beside this checkout")
def test_mnist_and_emoji() -> None:
    mnist = load(SHARED / "mnist" / "mnist.npz", columns=("label",))
    assert len(mnist) == 60000 and mnist.shape == (1, 28, 28) and mnist.images.dtype == np.uint8
    assert mnist.columns["label"].names == tuple("0123456789")
    assert mnist.columns["label"].values[:5].tolist() == [5, 0, 4, 1, 9]
    batch = mnist.batch([0, 1])
    assert (batch.min(), batch.max(), batch.dtype) == (-1.0, 1.0, torch.float32)
    assert len(load(f"{SHARED / 'mnist' / 'mnist.npz'}:x_test", size=32)) == 10000
    emoji = load(SHARED / "emoji" / "emoji64.npz", size=16, channels="rgb")
    assert emoji.shape == (3, 16, 16)
