"""Bits and ranges: no bit is lost silently, and what a range is taken to be is said where the data put it in doubt."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.reading import load

from sfumato.data import Loader, decoding
from sfumato.data.arrays import normalized
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.images import read, read_mask

SUFFIXES = {"png": np.uint16, "tif": np.uint16, "TIF": np.int32, "pgm": np.uint16, "jp2": np.uint16}


def twelve_bits(count: int = 6) -> np.ndarray:
    """Every value of 12 bits somewhere, as a microscope or a scanner leaves them."""
    values = np.random.default_rng(0).permutation(count * 32 * 32) % 4096
    return values.reshape(count, 32, 32)


def folder_of(path: Path, images: np.ndarray, suffix: str) -> Path:
    path.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.astype(SUFFIXES[suffix])).save(path / f"{index}.{suffix}")
    return path


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_bits_of_a_folder_are_trained_on(
    tmp_path: Path, suffix: str, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not memory:
        monkeypatch.setattr(decoding, "IN_MEMORY", 0)
    images = twelve_bits()
    source, kept = folder_of(tmp_path / "data", images, suffix), tmp_path / "cache"
    with pytest.raises(InputError, match=r"6\.2 % of 0 \.\.\. 65535.* pass --data\.value-range 0 4095 if"):
        load(source, cache=kept)
    data = load(source, cache=kept, value_range=(0, 4095))
    exact = images[:, None] / 2047.5 - 1.0
    assert data.images.dtype == np.float32 and data.shape == (1, 32, 32)
    batch = Loader(data, 0).batch(0, 6)
    order = Loader(data, 0).indices(0, 6)
    assert np.abs(batch.x0.numpy() - exact[order]).max() < 1e-6
    assert len(np.unique(batch.x0.numpy())) == 4096
    train, heldout = data.split(2, 0)
    assert len(train) == 4 and heldout.batch([0, 1]).dtype == batch.x0.dtype
    assert data.bins is None
    # a person who says that they are meant so dark gets them, and the number
    with pytest.warns(SfumatoWarning, match=r"fill 6\.2 % of the range 0 \.\.\. 65535"):
        dark = load(source, cache=kept, value_range=(0, 65535))
    assert np.abs(np.asarray(dark.images) - (images[:, None] / 32767.5 - 1.0)).max() < 1e-6
    with pytest.raises(InputError, match=r"from 0 to 4095, outside the range 0 \.\.\. 1023"):
        load(source, cache=kept, value_range=(0, 1023))


def test_a_range_needs_no_second_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of(tmp_path / "data", twelve_bits(), "png")
    for path in source.iterdir():
        os.utime(path, (1_500_000_000, 1_500_000_000))
    with pytest.raises(InputError):
        load(source, cache=tmp_path / "cache")
    monkeypatch.setattr(decoding, "decode_image", None)
    assert len(load(source, cache=tmp_path / "cache", value_range=(0, 4095))) == 6


def test_full_range_and_resizing_agree_with_eight_bits(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(48)) * 255.0 / 110.0
    (tmp_path / "deep").mkdir()
    (tmp_path / "byte").mkdir()
    Image.fromarray((smooth * 257).astype(np.uint16)).save(tmp_path / "deep" / "a.png")
    Image.fromarray(smooth.round().astype(np.uint8)).save(tmp_path / "byte" / "a.png")
    deep, byte = load(tmp_path / "deep", size=16), load(tmp_path / "byte", size=16)
    assert byte.images.dtype == np.uint8
    assert (deep.batch([0]) - byte.batch([0])).abs().max() < 1.5 / 127.5
    assert load(tmp_path / "deep", size=16, channels="rgb").shape == (3, 16, 16)
    with pytest.raises(InputError, match="have no alpha"):
        load(tmp_path / "deep", channels="rgba")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "deep" / "b.png")
    with pytest.raises(InputError, match="mixed depths"):
        load(tmp_path / "deep", size=4)


def test_floats_and_more_than_sixteen_bits(tmp_path: Path) -> None:
    values = np.linspace(-0.9, 0.8, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(load(tmp_path).images, values[None, None])
    Image.fromarray(values + 1).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"pass the values of black and white, such as --data\.value-range 0 1\.8"):
        load(tmp_path)
    assert np.abs(load(tmp_path, value_range=(0, 2)).images - values).max() < 1e-6
    Image.fromarray((values * 1e6).astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(
        InputError, match=r"from -900000 to 800000; expected 0 \.\.\. 65535, or pass --data.value-range"
    ):
        load(tmp_path)
    assert np.abs(load(tmp_path, value_range=(-1e6, 1e6)).images - values).max() < 2e-6


def test_dark_bytes_of_a_folder(tmp_path: Path) -> None:
    levels = (np.arange(64) % 17).astype(np.uint8).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"from 0 to 16.* pass --data.value-range 0 16 if 16 is white"):
        load(tmp_path)
    assert np.array_equal(load(tmp_path, value_range=(0, 16)).images[0, 0], levels / np.float32(8) - 1)
    with pytest.warns(SfumatoWarning, match="fill 6.3 %"):
        assert load(tmp_path, value_range=(0, 255)).images.dtype == np.uint8


def test_one_file_by_the_same_rule(tmp_path: Path) -> None:
    image = twelve_bits(4).reshape(64, 64)
    for suffix, kind in SUFFIXES.items():
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(image.astype(kind)).save(path)
        with pytest.raises(InputError, match="pass --value-range 0 4095"):
            read(path, (1, 64, 64))
        exact = image / 2047.5 - 1.0
        assert np.abs(read(path, (1, 64, 64), value_range=(0, 4095))[0].numpy() - exact).max() < 1e-6
        assert read(path, (3, 16, 16), fit=True, value_range=(0, 4095)).shape == (3, 16, 16)


@pytest.mark.parametrize("white", [1, 255, 4095, 65535])
def test_masks_of_any_depth(tmp_path: Path, white: int) -> None:
    kept = np.random.default_rng(1).random((8, 8)) < 0.5
    values = (kept * white).astype(np.uint8 if white < 256 else np.uint16)
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", (1, 8, 8)), kept)


def test_the_alpha_of_a_mask_is_the_mask(tmp_path: Path) -> None:
    kept = np.zeros((8, 8), dtype=bool)
    kept[:, :5] = True
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with_hole = np.concatenate([colour, np.where(kept, 255, 0).astype(np.uint8)[..., None]], axis=2)
    Image.fromarray(with_hole).save(tmp_path / "hole.png")
    assert np.array_equal(read_mask(tmp_path / "hole.png", (3, 8, 8)), kept)
    Image.fromarray(with_hole).convert("LA").save(tmp_path / "grey.png")
    assert np.array_equal(read_mask(tmp_path / "grey.png", (3, 8, 8)), kept)
    # an alpha that is opaque everywhere says nothing: then it is the lightness
    painted = np.concatenate([np.repeat(np.where(kept, 250, 9)[..., None], 3, 2), np.full((8, 8, 1), 255)], axis=2)
    Image.fromarray(painted.astype(np.uint8)).save(tmp_path / "painted.png")
    assert np.array_equal(read_mask(tmp_path / "painted.png", (3, 8, 8)), kept)


def test_a_value_a_little_below_zero_does_not_decide() -> None:
    values = np.random.default_rng(0).random((4, 1, 8, 8)).astype(np.float32)
    values[0, 0, 0, 0] = -0.001
    with pytest.raises(InputError, match=r"from -0\.001 to 0\.99.* pass --data\.value-range 0 1 if 0 is the lowest"):
        normalized(values, None, "x")
    with pytest.warns(SfumatoWarning, match=r"from -0\.001 to .*, beyond the range 0 \.\.\. 1 by 0\.1 % of it"):
        mapped = normalized(values, (0, 1), "x")
    assert np.array_equal(mapped, (values * 2 - 1).clip(-1, 1))
    values[0, 0, 0, 0] = -0.3  # that is no rounding
    assert np.array_equal(normalized(values, None, "x"), values)
    with pytest.raises(InputError, match=r"outside the range 0 \.\.\. 1"):
        normalized(values, (0, 1), "x")


def test_a_range_that_the_data_do_not_fill() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    with pytest.warns(SfumatoWarning, match=r"from 0 to 1, which fill 0\.39 % of the range 0 \.\.\. 255.* 0 1"):
        mapped = normalized(values, (0, 255), "x")
    assert mapped.max() == pytest.approx(-1 + 2 / 255)
    with pytest.warns(SfumatoWarning, match=r"fill 6 % of the range -1 \.\.\. 1"):
        normalized(values * 0.12 - 0.06, None, "x")
