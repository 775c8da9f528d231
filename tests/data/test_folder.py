"""Folders of images: every kind of file, and every kind of trouble."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.reading import load

from sfumato.errors import InputError, SfumatoWarning

SHARED = Path(__file__).parents[3] / "shared" / "data"


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return array


def test_rgb_exact_and_sorted(tmp_path: Path) -> None:
    arrays = {name: save(tmp_path / name, pixels(i, 6, 5, 3)) for i, name in enumerate(["b.png", "a.bmp", "c/a.PNG"])}
    dataset = load(str(tmp_path))
    assert dataset.images.dtype == np.uint8
    assert dataset.shape == (3, 6, 5)
    for image, name in zip(dataset.images, ["a.bmp", "b.png", "c/a.PNG"], strict=True):
        assert np.array_equal(image, arrays[name].transpose(2, 0, 1))
    assert not dataset.columns
    assert dataset.name == tmp_path.name


@pytest.mark.parametrize(("shape", "channels"), [((4, 4), 1), ((4, 4, 3), 3), ((4, 4, 4), 4)])
def test_channels_are_kept(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    array = save(tmp_path / "a.png", pixels(0, *shape))
    images = load(tmp_path).images
    assert images.shape == (1, channels, 4, 4)
    assert np.array_equal(images[0], array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"])
def test_every_format(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"a.{suffix}", np.full((8, 8, 3), (200, 30, 90), dtype=np.uint8))
    images = load(tmp_path, channels="rgb").images
    assert images.shape == (1, 3, 8, 8)
    assert np.abs(images[0, :, 4, 4].astype(int) - (200, 30, 90)).max() <= 4


def test_sixteen_bit_grey(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.array([[0, 257, 128 * 257], [65535, 128, 129]], dtype=np.uint16))
    save(tmp_path / "b.tif", np.array([[0, 257, 128 * 257], [65535, 128, 129]], dtype=np.int32))
    images = load(tmp_path).images
    assert images.dtype == np.float32
    exact = np.array([[0, 257, 128 * 257], [65535, 128, 129]]) / 32767.5 - 1.0
    assert np.abs(images - exact).max() < 1e-7


def test_palette_bilevel_and_grey_alpha(tmp_path: Path) -> None:
    Image.new("1", (2, 2), 1).save(tmp_path / "a.png")
    assert load(tmp_path).images.tolist() == [[[[255, 255], [255, 255]]]]
    Image.new("LA", (2, 2), (10, 20)).save(tmp_path / "a.png")
    assert load(tmp_path).images[0, :, 0, 0].tolist() == [10, 10, 10, 20]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([200, 8, 7, 1, 2, 3])
    palette.save(tmp_path / "a.png")
    assert load(tmp_path).images[0, :, 0, 0].tolist() == [200, 8, 7]
    palette.save(tmp_path / "a.png", transparency=0)
    assert load(tmp_path).images[0, :, 0, 0].tolist() == [200, 8, 7, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    array = pixels(0, 4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", array, exif=exif)
    upright = {  # what the tag means, by the definition of EXIF 2.3: where row 0 and column 0 are
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: array.transpose(1, 0, 2)[:, ::-1],
        7: array.transpose(1, 0, 2)[::-1, ::-1],
        8: array.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert np.array_equal(load(tmp_path).images[0], upright.transpose(2, 0, 1))


def test_labels_are_first_level_folders(tmp_path: Path) -> None:
    for name in ("dog/x/1.png", "cat/2.png", "dog/0.png", "cat/.hidden.png"):
        save(tmp_path / name, pixels(0, 4, 4))
    dataset = load(tmp_path, columns=("label",))
    assert dataset.columns["label"].names == ("cat", "dog")
    assert np.asarray(dataset.columns["label"].values).tolist() == [0, 1, 1]


def test_labels_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(0, 4, 4))
    with pytest.raises(InputError, match=r"1 of 1 images lie in no sub-folder"):
        load(tmp_path, columns=("label",))
    save(tmp_path / "cat" / "a.png", pixels(0, 4, 4))
    with pytest.raises(InputError, match=r"1 of 2 images lie in no sub-folder, such as a\.png"):
        load(tmp_path, columns=("label",))


def test_folder_has_no_other_columns(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.png", pixels(0, 4, 4))
    with pytest.raises(InputError, match=r"no column 'size'.* only label, its sub-folders, and caption"):
        load(tmp_path, columns=("label", "size"))


def test_hidden_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(0, 4, 4))
    for name in (".DS_Store", "._a.png", "notes.txt", ".cache/b.png", "__MACOSX/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not an image")
    with pytest.warns(SfumatoWarning, match=r"skipped .*, 1 \.txt \(such as notes\.txt\)"):
        assert len(load(tmp_path)) == 1


def test_numbered_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in range(11):
        save(tmp_path / str(number) / "a.png", np.full((4, 4), 20 * number, dtype=np.uint8))
    data = load(tmp_path, columns=("label",))
    assert data.columns["label"].names == tuple(map(str, range(11)))
    brightness = np.asarray(data.images)[:, 0, 0, 0] // 20
    assert np.array_equal(np.asarray(data.columns["label"].values), brightness)


def test_whatever_pillow_reads_is_read(tmp_path: Path) -> None:
    """20 pictures in 4 classes, in the formats of phones, scanners and scientists; one of a format that is not read."""
    formats = {
        "cat": ("jfif", "jpe", "jpg"),
        "dog": ("pgm", "ppm", "tga"),
        "emu": ("png", "apng"),
        "fox": ("jp2", "bmp"),
    }
    for name, suffixes in formats.items():
        for index in range(5):
            suffix = suffixes[index % len(suffixes)]
            array = np.full((8, 8) if suffix == "pgm" else (8, 8, 3), 120, dtype=np.uint8)
            save(tmp_path / name / f"{index}.{suffix}", array)
    data = load(tmp_path, columns=("label",), channels="rgb")
    assert len(data) == 20 and data.columns["label"].names == tuple(formats)
    assert np.bincount(np.asarray(data.columns["label"].values)).tolist() == [5, 5, 5, 5]
    assert np.abs(np.asarray(data.images).astype(int) - 120).max() <= 2
    (tmp_path / "emu" / "5.heic").write_bytes(b"....ftypheic")
    (tmp_path / "about.txt").write_text("Twenty pictures.")
    with pytest.warns(SfumatoWarning, match=r"skipped .* 1 \.txt \(such as about\.txt\), 1 \.heic .*emu/5\.heic"):
        assert len(load(tmp_path, columns=("label",), channels="rgb")) == 20


def test_a_class_that_loses_all_its_pictures_is_an_error(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save(tmp_path / name / "a.png", pixels(0, 16, 16))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "all.txt").write_text("Not a class.")
    with pytest.warns(SfumatoWarning, match=r"notes/all\.txt"):
        assert load(tmp_path, columns=("label",)).columns["label"].names == ("cat", "dog")
    (tmp_path / "notes" / "all.txt").unlink()
    (tmp_path / "emu").mkdir()
    for suffix in ("heic", "npy"):
        (tmp_path / "emu" / f"a.{suffix}").write_bytes(b"unread")
        with pytest.raises(InputError, match=rf"the class 'emu' .*\.{suffix} \(such as emu/a\.{suffix}\)"):
            load(tmp_path, columns=("label",))
        (tmp_path / "emu" / f"a.{suffix}").unlink()
    (tmp_path / "dog" / "a.png").write_bytes((tmp_path / "dog" / "a.png").read_bytes()[:100])
    with (
        pytest.warns(SfumatoWarning, match=r"1 of the 2|no class 'emu'"),
        pytest.raises(InputError, match="the class 'dog' would"),
    ):
        load(tmp_path, columns=("label",))


def test_what_is_not_read_of_a_file_is_said_at_every_start(tmp_path: Path) -> None:
    pages = [Image.fromarray(pixels(index, 6, 5)) for index in range(3)]
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        pages[0].save(tmp_path / "data" / f"{name}.tif", save_all=True, append_images=pages[1:])
    save(tmp_path / "data" / "c.tif", pixels(9, 6, 5))
    for path in (tmp_path / "data").iterdir():
        os.utime(path, (1_500_000_000, 1_500_000_000))
    for _ in range(2):
        words = r"2 of the 3 images .* have several pages, of which the first is taken: a\.tif, b\.tif"
        with pytest.warns(SfumatoWarning, match=words):
            images = load(tmp_path / "data", cache=tmp_path / "cache").images
        assert np.array_equal(images[0, 0], pixels(0, 6, 5))


def test_link_to_a_class_folder_is_followed_and_a_circle_is_not(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png", pixels(0, 4, 4))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "data")
    assert load(tmp_path / "data", columns=("label",)).columns["label"].names == ("cat",)


@pytest.mark.parametrize("workers", [1, 2, 100])
def test_damaged_files_are_named_and_skipped(tmp_path: Path, workers: int) -> None:
    good = [save(tmp_path / name, pixels(i, 16, 16, 3)) for i, name in enumerate(["1/a.png", "2/d.png"])]
    (tmp_path / "1" / "b.png").write_bytes(b"")
    (tmp_path / "2" / "c.png").write_bytes((tmp_path / "2" / "d.png").read_bytes()[:300])  # header whole, pixels cut
    with pytest.warns(SfumatoWarning, match=r"2 of the 4 images .* 1/b\.png \(not an image\), 2/c\.png \(.*trunc"):
        dataset = load(tmp_path, columns=("label",), workers=workers)
    assert np.asarray(dataset.columns["label"].values).tolist() == [0, 1]
    assert np.array_equal(dataset.images, np.stack(good).transpose(0, 3, 1, 2))


def test_many_damaged_files_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "z.png", pixels(0, 4, 4))
    for index in range(9):
        (tmp_path / f"{index}.jpg").write_bytes(b"\xff\xd8garbage")
    with pytest.warns(SfumatoWarning, match=r"9 of the 10 .*0\.jpg .*1\.jpg .*2\.jpg .* and 6 more"):
        assert len(load(tmp_path)) == 1


def test_all_damaged_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"None of the 2 images .* can be read: a\.png \(not an image\), b\.jpg"):
        load(tmp_path)
    (tmp_path / "b.jpg").unlink()
    save(tmp_path / "a.png", pixels(0, 16, 16, 3))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    with pytest.raises(InputError, match="None of the 1 images"):
        load(tmp_path)


def test_floating_point_pictures_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"floats from 0 to 0: pass the values .* such as --data\.value-range 0 1"):
        load(tmp_path)


def test_empty_folder_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"hold no images that Pillow reads.* it holds 1 \.txt \(such as notes\.txt\)"):
        load(tmp_path)


def test_mixed_channels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((4, 4), 7, dtype=np.uint8))
    save(tmp_path / "b.png", np.full((4, 4, 3), 7, dtype=np.uint8))
    save(tmp_path / "c.png", np.full((4, 4, 3), 7, dtype=np.uint8))
    with pytest.raises(InputError, match=r"mixed channels \(1 grey, 2 rgb\); pass --data.channels grey"):
        load(tmp_path)
    for channels, count in (("grey", 1), ("rgb", 3), ("rgba", 4)):
        images = load(tmp_path, channels=channels).images
        assert images.shape == (3, count, 4, 4)
        assert (images[:, :3] == 7).all()
        assert (images[:, 3:] == 255).all()


def test_mixed_sizes(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(0, 4, 6))
    save(tmp_path / "b.png", pixels(1, 8, 8))
    save(tmp_path / "c.png", pixels(2, 8, 8))
    with pytest.raises(
        InputError,
        match=r"2 different sizes.*8x8 \(2, such as b\.png\), 4x6 \(1, such as a\.png\); pass --data.size 64",
    ):
        load(tmp_path)
    assert load(tmp_path, size=4).shape == (1, 4, 4)
    assert load(tmp_path, size=(6, 3)).shape == (1, 6, 3)


def test_large_jpeg_is_reduced_while_decoding_with_the_same_result(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)[None].repeat(512, axis=0)
    save(tmp_path / "jpeg" / "a.jpg", ramp, quality=98)
    save(tmp_path / "png" / "a.png", ramp)
    jpeg, png = (load(tmp_path / kind, size=16).images.astype(int) for kind in ("jpeg", "png"))
    assert np.abs(jpeg - png).max() <= 3


def test_options_of_arrays_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(0, 4, 4))
    with pytest.raises(InputError, match=r"--data.layout is for \.npy and \.npz arrays"):
        load(tmp_path, layout="NHW")


@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is not beside this checkout")
def test_set5() -> None:
    folder = SHARED / "sr" / "Set5" / "x2"
    with pytest.raises(InputError, match="different sizes"):
        load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load(folder, size=(48, 64))
    assert len(dataset) == 10 and dataset.shape == (3, 48, 64)
    high, low = dataset.images[0].astype(int), dataset.images[1].astype(int)  # one picture at two resolutions
    assert np.abs(high - low).mean() < 4
