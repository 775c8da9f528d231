"""The one reader of image files, against Pillow's own answers, by pixels."""

import io
import itertools
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from sfumato.data import load
from sfumato.errors import SfumatoWarning
from sfumato.io.images import read
from sfumato.io.reading import pixels_of, read_header, read_pixels, suffixes

MODES = ("1", "L", "LA", "P", "P transparent", "PA", "RGB", "RGB keyed", "RGBA", "CMYK", "I;16", "I", "F")
FORMATS = ("png", "jpg", "jfif", "webp", "tif", "gif", "bmp", "ppm", "pgm", "jp2", "tga", "pcx", "avif", "ico", "sgi")


def example(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """A picture without symmetry, of 24 x 16, and what is saved with it."""
    base, _, what = mode.partition(" ")
    rows, columns = np.mgrid[0:16, 0:24]
    colour = np.stack([rows * 16, columns * 10, (rows * 7 + columns * 5) % 256], axis=2).astype(np.uint8)
    picture = Image.fromarray(colour)
    if base in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[base]
        return Image.fromarray((rows * 4096 + columns * 160).astype(kind)), {}
    if base == "P":
        return picture.quantize(30), {"transparency": 3} if what else {}
    if base in ("RGBA", "LA", "PA"):
        picture.putalpha(Image.fromarray((columns * 10).astype(np.uint8)))
        return picture.convert(base), {}
    return picture.convert(base), {"transparency": (0, 0, 0)} if what else {}


def saved(mode: str, suffix: str, orientation: int, **more: object) -> io.BytesIO | None:
    """The bytes of the example, or None where Pillow does not write this mode in this format."""
    picture, options = example(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    try:
        picture.save(buffer, Image.registered_extensions()[f".{suffix}"], exif=exif, **options, **more)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    buffer.seek(0)
    return buffer


def expected(buffer: io.BytesIO) -> np.ndarray:
    """Pillow's own answer: loaded, transposed, converted."""
    with Image.open(buffer) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "F" or upright.mode.startswith("I"):
        return np.asarray(upright)[None]
    mode = "RGBA" if upright.has_transparency_data else "L" if upright.mode in ("1", "L") else "RGB"
    pixels = np.asarray(upright.convert(mode))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_mode_and_orientation(suffix: str) -> None:
    compared = 0
    for mode, orientation in itertools.product(MODES, range(1, 9)):
        buffer = saved(mode, suffix, orientation)
        if buffer is None:
            continue
        wanted = expected(io.BytesIO(buffer.getvalue()))
        found = read_pixels(io.BytesIO(buffer.getvalue()))
        header = read_header(io.BytesIO(buffer.getvalue()))
        assert np.array_equal(found, wanted), (mode, orientation)
        assert header.size == wanted.shape[1:], (mode, orientation)
        assert {"grey": 1, "rgb": 3, "rgba": 4}[header.channels] == len(wanted), (mode, orientation)
        assert header.depth == {"u": "8-bit", "i": "integer", "f": "float"}[found.dtype.kind], (mode, orientation)
        assert header.remark == ""
        compared += 1
    if suffix != "avif" or features.check("avif"):
        assert compared >= 8


def test_orientation_is_what_the_tag_means() -> None:
    """Not only Pillow's answer: where the corner of the stored picture comes to lie, by EXIF 2.3."""
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    for suffix, orientation in itertools.product(("png", "tif", "webp"), range(1, 9)):
        array = np.zeros((16, 24, 3), dtype=np.uint8)
        array[0, 0] = 255
        exif, buffer = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        options = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(array).save(buffer, Image.registered_extensions()[f".{suffix}"], exif=exif, **options)
        found = read_pixels(io.BytesIO(buffer.getvalue()))
        assert found.shape == ((3, 16, 24) if orientation < 5 else (3, 24, 16))
        assert (found[:, *corner[orientation]] == 255).all() and found.sum() == 3 * 255


def test_damaged_metadata_leaves_the_picture_as_it_is() -> None:
    buffer = io.BytesIO()
    example("RGB")[0].save(buffer, "PNG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff garbage")
    assert np.array_equal(read_pixels(io.BytesIO(buffer.getvalue())), pixels_of(example("RGB")[0]))


def profile(gamma: float) -> bytes:
    """An ICC profile of sRGB's primaries with another tone curve, after the specification ICC.1:2001-04."""

    def fixed(number: float) -> bytes:
        return struct.pack(">i", round(number * 65536))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    columns = {"rXYZ": (0.4361, 0.2225, 0.0139), "gXYZ": (0.3851, 0.7169, 0.0971), "bXYZ": (0.1431, 0.0606, 0.7141)}
    tags = {name: b"XYZ \0\0\0\0" + b"".join(map(fixed, value)) for name, value in columns.items()}
    tags["wtpt"] = b"XYZ \0\0\0\0" + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    tags |= dict.fromkeys(("rTRC", "gTRC", "bTRC"), curve)
    tags["cprt"] = b"text\0\0\0\0none\0\0\0\0"
    tags["desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name.encode() + struct.pack(">II", start + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + b"\0" * 12 + b"acsp"
    return head.ljust(68, b"\0") + b"".join(map(fixed, (0.9642, 1.0, 0.8249))) + b"\0" * 48 + table + data


def srgb(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, from linear light to numbers from 0 to 255."""
    return 255.0 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_colours_are_those_of_the_profile(mode: str, suffix: str) -> None:
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    buffer = saved(mode, suffix, 1, icc_profile=profile(1.0), **options)
    assert buffer is not None
    plain = pixels_of(example(mode)[0].convert("RGB" if suffix == "webp" and mode != "RGBA" else mode))
    found = read_pixels(buffer)
    exact = srgb(plain[:3] / 255.0)
    assert found.shape == plain.shape
    assert np.abs(found[:3] - exact).max() < 2.5  # the profile's numbers and the result are rounded
    assert np.array_equal(found[3:], plain[3:])  # alpha is no colour


def test_profiles_as_pillow_applies_them() -> None:
    to = ImageCms.createProfile("sRGB")
    for gamma in (1.0, 1.8, 3.0):
        buffer = saved("RGB", "png", 6, icc_profile=profile(gamma))
        assert buffer is not None
        of = ImageCms.ImageCmsProfile(io.BytesIO(profile(gamma)))
        wanted = ImageCms.profileToProfile(ImageOps.exif_transpose(example("RGB")[0]), of, to)
        turned = wanted.transpose(Image.Transpose.ROTATE_270)
        assert np.array_equal(read_pixels(buffer), np.asarray(turned).transpose(2, 0, 1))
    lab = ImageCms.profileToProfile(example("RGB")[0], to, ImageCms.createProfile("LAB"), outputMode="LAB")
    file = io.BytesIO()
    lab.save(file, "TIFF")
    there_and_back = read_pixels(io.BytesIO(file.getvalue())).astype(int)
    assert np.abs(there_and_back - pixels_of(example("RGB")[0])).mean() < 4.0


def test_pictures_in_srgb_are_exact_and_broken_profiles_are_said() -> None:
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode in ("RGB", "RGBA", "L"):
        buffer = saved(mode, "png", 1, icc_profile=same)
        assert buffer is not None and np.array_equal(read_pixels(buffer), pixels_of(example(mode)[0]))
    buffer = saved("RGB", "png", 1, icc_profile=b"this is no profile")
    assert buffer is not None
    assert "profile that cannot be read" in read_header(io.BytesIO(buffer.getvalue())).remark
    assert np.array_equal(read_pixels(buffer), pixels_of(example("RGB")[0]))


def png_of_sixteen_bits(array: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow does not write."""
    height, width, channels = array.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_what_pillow_leaves_out_is_said(channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (4, 5, channels))
    assert "16 bits, of which Pillow reads the upper 8" in read_header(io.BytesIO(png_of_sixteen_bits(deep))).remark
    pages = [example("RGB")[0], example("L")[0].convert("RGB")]
    for kind in ("TIFF", "GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        pages[0].save(
            buffer, kind, save_all=True, append_images=pages[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert "several pages, of which the first" in read_header(io.BytesIO(buffer.getvalue())).remark, kind
        if kind != "GIF":
            assert np.array_equal(read_pixels(io.BytesIO(buffer.getvalue()))[:3], pixels_of(pages[0]))


def test_every_suffix_that_pillow_reads(tmp_path: Path) -> None:
    assert {".png", ".jpg", ".jfif", ".jpe", ".pgm", ".ppm", ".tga", ".jp2", ".bmp", ".gif", ".webp"} <= suffixes()
    assert not {".pdf", ".h5", ".mpg", ".txt", ".npy", ""} & suffixes()


def troubled(kind: str) -> bytes:
    """A sound picture that Pillow warns of."""
    picture, buffer = example("RGB")[0], io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40
    whole = exif.tobytes()
    if kind == "palette":  # transparency of every entry, and a profile
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        opacity = bytes(range(0, 240, 8))
        picture.quantize(30).save(buffer, "PNG", transparency=opacity, icc_profile=profile)
    elif kind == "bomb":
        picture.resize((120, 80)).save(buffer, "PNG")
    elif kind == "note":  # a maker's note that is cut off, after an orientation that can be read
        entries = struct.pack("<HHHIIHHII", 2, 0x0112, 3, 1, 3, 0x927C, 7, 9999, 10**6)
        picture.save(buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + entries + bytes(4))
    else:
        lost = {"no entry": whole[:14], "half an entry": whole[:20], "no values": whole[:-20]}[kind]
        picture.save(buffer, "JPEG", exif=lost)
    return buffer.getvalue()


SILENT, TOLD = ("palette", "bomb", "note"), ("no entry", "half an entry", "no values")


@pytest.mark.parametrize("kind", SILENT + TOLD)
def test_a_warning_of_pillow_is_a_sentence_or_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees Pillow's own words; a side that may not be up is told with the name of the file."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)
    data = troubled(kind)
    with pytest.warns(Warning), Image.open(io.BytesIO(data)) as image:
        image.load()
        image.getexif()
        image.convert("RGB")
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.{'png' if kind in ('palette', 'bomb') else 'jpg'}").write_bytes(data)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for size in (None, 8):
            load(str(folder), size=size, cache=str(tmp_path / "cache"))
        before = warnings.showwarning
        read(next(folder.iterdir()), (3, 8, 8), fit=True)
        assert warnings.showwarning is before
    said = [str(warning.message) for warning in seen]
    assert all(issubclass(warning.category, SfumatoWarning) for warning in seen), said
    assert len(said) == (3 if kind in TOLD else 0), said
    assert all("damaged metadata" in words and ".jpg" in words for words in said)
    assert kind in SILENT or (said[0].startswith("9 of the 9 images in") and "which side is up" in said[-1])
