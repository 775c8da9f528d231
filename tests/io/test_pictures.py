"""Pictures are read and written with all that belongs to them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from tests.facts import read_facts

from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.pictures import Picture, read_picture, write_picture

FACTS = {"seed": 3, "index": 7, "model": "runs/größe", "guidance": 1.5}


def pixels(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def back(picture: Picture) -> Any:
    """Numbers of the file: bytes, or 16 bits."""
    top = 255 if picture.depth == 8 else 65535
    return np.moveaxis(((picture.values + 1) * top / 2).round().numpy().astype(int), 0, -1)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_read_is_written(tmp_path: Path, channels: int, suffix: str) -> None:
    array = pixels(5, 6, channels)
    if channels in (2, 4):
        array[..., -1] = array[..., -1].clip(1)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    picture = read_picture(save(tmp_path / "in.png", image))
    assert picture.values.shape == (channels, 5, 6) and picture.size == "6x5"
    assert (back(picture) == array).all()
    write_picture(picture, tmp_path / f"out{suffix}", FACTS)
    again = read_picture(tmp_path / f"out{suffix}")
    if suffix == ".png":
        assert again.values.shape == picture.values.shape and (back(again) == array).all()
    else:
        assert again.values.shape[0] == (3 if channels in (1, 3) else 4)
    assert read_facts(tmp_path / f"out{suffix}") == FACTS and not list(tmp_path.glob(".*"))


def test_jpeg_lays_opacity_over_white_and_says_so(tmp_path: Path) -> None:
    values = torch.full((4, 16, 16), -1.0)
    with pytest.warns(SfumatoWarning, match="over white"):
        write_picture(Picture(values), tmp_path / "out.jpg", FACTS)
    assert np.asarray(Image.open(tmp_path / "out.jpg")).min() >= 254
    assert read_facts(tmp_path / "out.jpg") == FACTS
    write_picture(Picture(torch.zeros(1, 4, 4)), tmp_path / "grey.JPEG")
    assert Image.open(tmp_path / "grey.JPEG").mode == "L" and read_facts(tmp_path / "grey.JPEG") is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_and_their_tag_is_gone(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = orientation, "Camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 200
    image = Image.fromarray(pixels(4, 6, 3))
    path = save(tmp_path / "in.png", image, exif=exif)
    picture = read_picture(path)
    turned: Any = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }  # fmt: skip
    assert (back(picture) == turned[orientation](np.asarray(image))).all()
    for suffix in (".png", ".jpg", ".webp"):
        write_picture(picture, tmp_path / f"out{suffix}", FACTS)
        tags = Image.open(tmp_path / f"out{suffix}").getexif()
        inner = tags.get_ifd(ExifTags.IFD.Exif)
        assert tags[ExifTags.Base.Make] == "Camera" and inner[ExifTags.Base.ISOSpeedRatings] == 200
        assert ExifTags.Base.Orientation not in tags and ExifTags.Base.ExifImageWidth not in inner


def test_the_profile_is_kept_and_the_values_are_in_it(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    changed = profile[:-1] + bytes([profile[-1] ^ 1])
    array = pixels(4, 4, 3)
    picture = read_picture(save(tmp_path / "in.png", Image.fromarray(array), icc_profile=changed))
    assert (back(picture) == array).all() and picture.profile == changed
    for suffix in (".png", ".jpg", ".webp"):
        write_picture(picture, tmp_path / f"out{suffix}")
        assert Image.open(tmp_path / f"out{suffix}").info["icc_profile"] == changed


def test_palettes_print_colours_and_transparency(tmp_path: Path) -> None:
    array = pixels(8, 8, 3)
    palette = Image.fromarray(array).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert (back(read_picture(save(tmp_path / "p.png", palette))) == expected).all()
    palette.info["transparency"] = 0
    assert read_picture(save(tmp_path / "t.gif", palette, transparency=0)).values.shape[0] == 4
    with pytest.warns(SfumatoWarning, match="CMYK, which become sRGB"):
        printed = read_picture(save(tmp_path / "c.jpg", Image.fromarray(array).convert("CMYK"), quality=100))
    assert printed.values.shape[0] == 3 and np.abs(back(printed) - array).mean() < 12
    assert read_picture(save(tmp_path / "b.png", Image.fromarray(array[..., 0] > 128))).values.unique().tolist() == [
        -1,
        1,
    ]


def test_invisible_colours_are_those_of_the_nearest_visible_place(tmp_path: Path) -> None:
    array = np.zeros((3, 6, 4), dtype=np.uint8)
    array[:, 0] = (200, 100, 50, 255)
    array[:, 5] = (10, 20, 30, 1)
    found = back(read_picture(save(tmp_path / "in.png", Image.fromarray(array))))
    assert found[1, 2].tolist() == [200, 100, 50, 0] and found[1, 3].tolist() == [10, 20, 30, 0]


def test_sixteen_bits(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (5, 6), dtype=np.uint16)
    picture = read_picture(save(tmp_path / "in.png", Image.fromarray(deep)))
    assert picture.depth == 16 and (back(picture)[..., 0] == deep).all()
    write_picture(picture, tmp_path / "out.png")
    assert (np.asarray(Image.open(tmp_path / "out.png")) == deep).all()
    with pytest.warns(SfumatoWarning, match="8 bits of the 16"):
        write_picture(picture, tmp_path / "out.jpg")
    # of colours Pillow reads 8 bits
    path = tmp_path / "colour.png"
    path.write_bytes(png16(np.random.default_rng(0).integers(0, 65536, (4, 4, 3), dtype=np.uint16)))
    with pytest.warns(SfumatoWarning, match="16 bits, of which Pillow reads the upper 8"):
        assert read_picture(path).depth == 8


def png16(array: Any) -> bytes:
    """A PNG of 16 bits per colour, without filters."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_what_cannot_be_read_or_written_is_said_in_words(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(pixels(40, 40, 3)).save(buffer, "PNG")
    wrong = {
        "none.png": (None, "No such file"),
        "text.png": (b"hello", "not an image"),
        "cut.png": (buffer.getvalue()[:800], "Could not read"),
        "empty.png": (b"", "not an image"),
    }
    for name, (content, words) in wrong.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_picture(tmp_path / name)
    with pytest.raises(InputError, match="what is white is not known"):
        read_picture(save(tmp_path / "f.tiff", Image.fromarray(np.ones((2, 2), dtype=np.float32))))
    with pytest.raises(InputError, match=r"written as \.png, \.jpg"):
        write_picture(Picture(torch.zeros(3, 2, 2)), tmp_path / "x.bmp")
    with pytest.raises(InputError, match="at most 16383"):
        write_picture(Picture(torch.zeros(3, 1, 16384)), tmp_path / "x.webp")
    assert json.dumps(read_facts(save(tmp_path / "plain.png", Image.new("RGB", (2, 2))))) == "null"


def test_metadata_too_long_for_a_jpeg_are_left_out_and_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70000
    picture = read_picture(save(tmp_path / "in.png", Image.fromarray(pixels(5, 6, 3)), exif=exif))
    write_picture(picture, tmp_path / "out.webp", FACTS)
    assert ExifTags.Base.ImageDescription in Image.open(tmp_path / "out.webp").getexif()
    with pytest.warns(SfumatoWarning, match="too long for a JPEG"):
        write_picture(picture, tmp_path / "out.jpg", FACTS)
    assert read_facts(tmp_path / "out.jpg") == FACTS


def test_a_profile_of_grey_does_not_go_with_the_colours_of_webp(tmp_path: Path) -> None:
    header = bytes(16) + b"GRAY" + bytes(108)
    grey = Picture(torch.zeros(1, 4, 4), profile=header)
    write_picture(grey, tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == header
    with pytest.warns(SfumatoWarning, match="one of grey"):
        write_picture(grey, tmp_path / "out.webp")
    assert "icc_profile" not in Image.open(tmp_path / "out.webp").info


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; name the pictures in it"):
        read_picture(tmp_path)
