"""Image files: sizes and channels, the same for files and arrays; animations, images and masks for editing."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.reading import load

from sfumato.data.decoding import Target, prepare
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.images import (
    decode_image,
    fit,
    grid,
    read,
    read_mask,
    save_animation,
    side_by_side,
    to_channels,
)
from sfumato.io.reading import read_header

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


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
    target = Target(size=(6, 7), workers=2)
    small = prepare(images, target, "bytes") / 127.5 - 1.0
    assert np.abs(small - prepare(floats, target, "floats")).max() < 2.5 / 127.5


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_invisible_colours_do_not_bleed(dtype: type) -> None:
    image = np.zeros((1, 4, 8, 8), dtype=np.uint8)
    image[0, 0, :, :4], image[0, 1, :, 4:] = 255, 255
    image[0, 3, :, :4] = 255  # red and opaque on the left, green and invisible on the right
    stored = image if dtype is np.uint8 else (image / 127.5 - 1).astype(np.float32)
    small = prepare(stored, Target(size=(2, 2)), "alpha")[0]
    small = small / 127.5 - 1.0 if dtype is np.uint8 else small
    assert (small[0, :, 0] > 0.98).all()
    assert (small[1, :, 0] < -0.98).all()


def test_unchanged_data_is_not_copied() -> None:
    images = bytes_of(2, 3, 8, 8)
    assert prepare(images, Target(size=(8, 8), channels="rgb"), "x") is images


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
        prepare(bytes_of(2, 1, 100), Target(size=(8, 8)), "signals")
    with pytest.raises(InputError, match="needs images of 1, 3 or 4 channels; these have 2"):
        prepare(bytes_of(2, 2, 8, 8), Target(channels="rgb"), "two")


def test_one_file(tmp_path: Path) -> None:
    array = bytes_of(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    assert read_header(tmp_path / "a.png") == ("rgb", (6, 4), "8-bit", "")
    assert np.array_equal(decode_image(tmp_path / "a.png").pixels, array.transpose(1, 0, 2)[:, ::-1].transpose(2, 0, 1))
    assert decode_image(tmp_path / "a.png", (3, 3), "grey").pixels.shape == (1, 3, 3)


def test_animations(tmp_path: Path) -> None:
    batch = IMAGES
    sheets = [side_by_side([grid(batch * f), grid(-batch)]) for f in (0.1, 0.5, 1.0)]
    for name, kind in (("x.gif", "GIF"), ("x.webp", "WEBP"), ("Y.GIF", "GIF")):
        save_animation(sheets, tmp_path / name)
        with Image.open(tmp_path / name) as animation:
            assert animation.format == kind and animation.n_frames == 3 and animation.size == sheets[0].size  # type: ignore[attr-defined]
            animation.seek(2)
            animation.load()
            error = np.asarray(animation.convert("L"), dtype=float) - np.asarray(sheets[2], dtype=float)
            assert np.abs(error).mean() < 8.0 and animation.info["duration"] == 2000
    with pytest.raises(InputError, match=r"\.gif or \.webp"):
        save_animation(sheets, tmp_path / "x.mp4")
    with pytest.raises(InputError, match="at least one image"):
        save_animation([], tmp_path / "y.gif")


def test_reading_images(tmp_path: Path) -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = True
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, 2)).resize((20, 16)).save(tmp_path / "colour.png")
    np.save(tmp_path / "x.npy", IMAGES[0].numpy())
    found = read(tmp_path / "grey.png", (1, 8, 8))
    assert torch.allclose(found[0], torch.from_numpy(grey / 127.5 - 1.0).float(), atol=1e-6)
    assert torch.equal(read(tmp_path / "x.npy", (1, 8, 8)), IMAGES[0])
    assert read(tmp_path / "colour.png", (1, 8, 8), fit=True).shape == (1, 8, 8)
    assert read(tmp_path / "grey.png", (3, 6, 4), fit=True).shape == (3, 6, 4)
    assert torch.equal(read_mask(tmp_path / "grey.png", (1, 8, 8)), torch.from_numpy(grey >= 128))
    np.save(tmp_path / "mask.npy", mask.numpy())
    assert torch.equal(read_mask(tmp_path / "mask.npy", (1, 8, 8)), mask)
    for wrong in (0.3, 255.0, float("nan")):
        np.save(tmp_path / "wrong.npy", np.where(mask.numpy(), wrong, 0.0))
        with pytest.raises(InputError, match="has other values"):
            read_mask(tmp_path / "wrong.npy", (1, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path, shape, words in (
            ("colour.png", (1, 8, 8), "3x16x20, .* 1x8x8; --fit"),
            ("grey.png", (3, 8, 8), "1x8x8, .* 3x8x8"),
            ("x.npy", (1, 9, 9), "1x8x8, .* 1x9x9."),
            ("grey.png", (2, 32), "give one as .npy"),
            ("none.png", (1, 8, 8), "Could not read"),
            ("none.npy", (1, 8, 8), "Could not read"),
        ):
            with pytest.raises(InputError, match=words):
                read(tmp_path / path, shape)
    with pytest.raises(InputError, match="16x20"):
        read_mask(tmp_path / "colour.png", (1, 8, 8))


def test_an_array_without_a_value_below_0_is_taken_as_it_is_and_said(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    np.save(tmp_path / "x.npy", values)
    with pytest.warns(SfumatoWarning, match="--value-range 0 1"):
        assert np.array_equal(read(tmp_path / "x.npy", (1, 8, 8)).numpy(), values)
    assert np.allclose(read(tmp_path / "x.npy", (1, 8, 8), value_range=(0, 1)).numpy(), values * 2 - 1, atol=1e-6)
