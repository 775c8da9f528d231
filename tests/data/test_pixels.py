"""Resizing and channels, the same for files and arrays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import Dataset, load
from sfumato.data.options import Options
from sfumato.data.pixels import fit, prepare, to_channels
from sfumato.errors import InputError


def bytes_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(9, 6), (6, 9), (6, 7), (6, 6)])
def test_cut_without_scaling_is_exact(height: int, width: int) -> None:
    array = bytes_of(height, width)
    top, left = (height - 6) // 2, (width - 6) // 2
    assert np.array_equal(np.asarray(fit(Image.fromarray(array), (6, 6), "center")), array[top : top + 6, left:][:, :6])


def test_center_covers_and_none_stretches() -> None:
    picture = Image.fromarray(np.repeat(np.arange(0, 240, 20, dtype=np.uint8)[None], 6, axis=0))  # 6 x 12 ramp
    center = np.asarray(fit(picture, (3, 3), "center")).astype(int)
    stretched = np.asarray(fit(picture, (3, 3), "none")).astype(int)
    assert center.shape == stretched.shape == (3, 3)
    assert np.abs(center[0] - [70, 110, 150]).max() <= 1  # halves of the middle six columns 60 ... 160
    assert stretched[0, 0] < 45 and stretched[0, 2] > 175


def test_scaling_averages() -> None:
    """A checkerboard shrunk eight times is grey: an unfiltered resize would pick black or white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(np.asarray(fit(Image.fromarray(board), (8, 8), "center")).astype(int) - 127).max() <= 3


@pytest.mark.parametrize("shape", [(17, 31), (17, 31, 3), (17, 31, 4)])
@pytest.mark.parametrize("size", [8, (5, 12), (40, 40)])
def test_files_and_arrays_agree(tmp_path: Path, shape: tuple[int, ...], size: int) -> None:
    array = bytes_of(*shape)
    (tmp_path / "folder").mkdir()
    Image.fromarray(array).save(tmp_path / "folder" / "a.png")
    np.save(tmp_path / "a.npy", array[None])
    assert np.array_equal(load(tmp_path / "folder", size=size).images, load(tmp_path / "a.npy", size=size).images)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_floats_are_scaled_as_bytes_are(channels: int) -> None:
    images = bytes_of(3, channels, 16, 16)
    images[:, 3:] = 255
    floats = (images / 127.5 - 1).astype(np.float32)
    options = Options(size=(6, 7), workers=2)
    small = prepare(Dataset(images, None, (), "bytes"), options).batch([0, 1, 2])
    assert (small - prepare(Dataset(floats, None, (), "floats"), options).batch([0, 1, 2])).abs().max() < 2.5 / 127.5


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_invisible_colours_do_not_bleed(dtype: type) -> None:
    image = np.zeros((1, 4, 8, 8), dtype=np.uint8)
    image[0, 0, :, :4], image[0, 1, :, 4:] = 255, 255
    image[0, 3, :, :4] = 255  # red and opaque on the left, green and invisible on the right
    stored = image if dtype is np.uint8 else (image / 127.5 - 1).astype(np.float32)
    small = prepare(Dataset(stored, None, (), "alpha"), Options(size=(2, 2))).batch([0])[0]
    assert (small[0, :, 0] > 0.98).all()
    assert (small[1, :, 0] < -0.98).all()


def test_unchanged_data_is_not_copied() -> None:
    dataset = Dataset(bytes_of(2, 3, 8, 8), None, (), "x")
    assert prepare(dataset, Options(size=(8, 8), channels="rgb")) is dataset


@pytest.mark.parametrize(
    ("pixel", "wanted", "expected"),
    [
        ([10], "rgb", [10, 10, 10]),
        ([10], "rgba", [10, 10, 10, 255]),
        ([255, 0, 0], "grey", [76]),
        ([0, 255, 0], "grey", [150]),
        ([0, 0, 255], "grey", [29]),
        ([1, 2, 3], "rgba", [1, 2, 3, 255]),
        ([1, 2, 3, 255], "rgb", [1, 2, 3]),
        ([1, 2, 3, 0], "rgb", [255, 255, 255]),
        ([0, 100, 200, 51], "rgb", [204, 224, 244]),
        ([9, 9, 9, 0], "grey", [255]),
    ],
)
def test_channels(pixel: list[int], wanted: str, expected: list[int]) -> None:
    image = np.array(pixel, dtype=np.uint8)[:, None, None]
    assert to_channels(image, wanted).ravel().tolist() == expected
    floats = to_channels((image / 127.5 - 1).astype(np.float32), wanted)
    assert floats.dtype == np.float32
    assert np.abs((floats.ravel() + 1) * 127.5 - expected).max() < 0.51


def test_refusals() -> None:
    with pytest.raises(InputError, match="without height and width"):
        prepare(Dataset(bytes_of(2, 1, 100), None, (), "signals"), Options(size=(8, 8)))
    with pytest.raises(InputError, match="needs images of 1, 3 or 4 channels; these have 2"):
        prepare(Dataset(bytes_of(2, 2, 8, 8), None, (), "two"), Options(channels="rgb"))
