"""The one reader of image files: upright, in sRGB, as deep as the file."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import threading
import warnings
from collections.abc import Generator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

Array = npt.NDArray[Any]

_UNREADABLE = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow identifies and cannot decode by itself
_SAME = 2  # the most by which a profile that is sRGB differs from sRGB: rounding
_LAB = b"LAB"
_DAMAGE = re.compile("EXIF|Skipping tag|Tag offset|Truncated")  # in Pillow's warnings of metadata that it cannot read
_heard = threading.local()


class Header(NamedTuple):
    """What an image file says of itself."""

    channels: str  # grey, rgb or rgba
    size: tuple[int, int]  # (height, width)
    depth: str  # 8-bit, integer (16 or 32 bits of grey) or float
    remark: str  # what of the file is not read, if anything


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Show none of Pillow's own warnings, of any thread: what they mean for the image is in :class:`Header`.

    Enter it in one thread around all that read, since Python has one state of warnings for all threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\.")
        show = warnings.showwarning

        def hear(message: Warning | str, category: type[Warning], filename: str, *more: Any) -> None:
            if Path(filename).parent.name != "PIL":
                show(message, category, filename, *more)
            elif _DAMAGE.search(str(message)):
                _heard.damage = True

        warnings.showwarning = hear
        yield


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of the image files that the installed Pillow decodes."""
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _UNREADABLE)


def read_header(source: Path | BytesIO, upright: bool = True) -> Header:
    """What a file says of itself, where possible without decoding its pixels; the size is the stored or upright one.

    A PNG has to be decoded to know which side is up.
    """
    _heard.damage = False
    with Image.open(source) as image:
        remark = _remark(image)
        orientation = _orientation(image) if upright or _heard.damage else 1
        if _heard.damage and not orientation:
            lost = "damaged metadata, which may have said which side is up"
            remark = f"{remark} and {lost}" if remark else lost
        orientation = orientation or 1
        if image.format == "TIFF" and orientation != 1:
            image.load()  # Pillow turns a TIFF while it decodes it
            orientation = 1
        height, width = image.height, image.width
        depth = "float" if image.mode == "F" else "integer" if image.mode.startswith("I") else "8-bit"
        kind = "grey" if depth != "8-bit" else {"L": "grey", "RGB": "rgb", "RGBA": "rgba"}[_mode(image)]
        return Header(kind, (width, height) if orientation > 4 else (height, width), depth, remark)


def read_pixels(source: Path | BytesIO, least: tuple[int, int] | None = None) -> Array:
    """The pixels of a file, upright: uint8 in sRGB, or for more bits than 8 the numbers of the file as they are.

    They are uint8 ``(1, 3 or 4, H, W)``, or int32 or float32 ``(1, H, W)``. Of several pages it is the first. A JPEG
    that is much larger than the ``least`` (height, width) wanted is decoded at a half, a quarter or an eighth of it.
    """
    with Image.open(source) as image:
        if least is not None and image.format == "JPEG":
            height, width = least if (_orientation(image) or 1) <= 4 else least[::-1]
            # twice the final size leaves the filter enough to average
            scale = 2.0 * max(height / image.height, width / image.width)
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image.load()
        return pixels_of(upright(image))


def pixels_of(image: Image.Image) -> Array:
    """The pixels of an image of Pillow, as those of :func:`read_pixels`."""
    if image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(image).astype(np.float32 if image.mode == "F" else np.int32)[None]
    pixels = np.asarray(in_srgb(image), dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def reason(error: Exception) -> str:
    """Why an image file could not be decoded, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def _mode(image: Image.Image) -> str:
    """What an image of 8 bits per channel becomes."""
    return "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"


def _orientation(image: Image.Image) -> int | None:
    """1 to 8, or None where the file does not say."""
    try:
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata beside sound pixels: show them as they are stored
        _heard.damage = True
        return None
    return orientation if orientation in range(1, 9) else None


def upright(image: Image.Image) -> Image.Image:
    """A decoded image, turned by Pillow's own transposition, but with no metadata that it could fail on."""
    orientation = _orientation(image) or 1
    if orientation == 1:
        return image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    plain = image.copy()
    kept = {key: image.info[key] for key in ("transparency", "icc_profile") if key in image.info}
    plain.info = {**kept, "exif": exif.tobytes()}
    return ImageOps.exif_transpose(plain)


def in_srgb(image: Image.Image) -> Image.Image:
    """An image of 8 bits per channel in sRGB, as L, RGB or RGBA."""
    mode, profile = _mode(image), image.info.get("icc_profile")
    if image.mode == "LAB":
        profile = profile or _LAB
    if not profile:
        return image.convert(mode)
    alpha = image.convert("RGBA").getchannel("A") if mode == "RGBA" else None
    colour = image
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGBA") if image.mode == "P" and mode == "RGBA" else image
        colour = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    try:
        space, transform = _transform(profile, colour.mode)
        if transform is not None:
            colour = ImageCms.applyTransform(colour.convert(space), transform) or colour
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        if colour.mode == "LAB":
            raise
    colour = colour.convert("L" if mode == "L" else "RGB")
    if alpha is not None:
        colour.putalpha(alpha)
    return colour


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode to apply it to and the transform from a profile to sRGB; None where it would change nothing."""
    if profile == _LAB:
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    else:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
    description: Any = source.profile
    if mode == "L" and description.xcolor_space.strip() == "RGB":
        mode = "RGB"  # grey pixels with the profile of a screen
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode in ("L", "RGB"):
        steps = np.linspace(0, 255, 18).round().astype(np.uint8)
        every = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, len(steps), 3)
        probe = Image.fromarray(every if mode == "RGB" else every[..., 0].copy())
        changed = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
        if np.abs(changed - np.asarray(probe.convert("RGB"))).max() <= _SAME:
            return mode, None
    return mode, transform


def _remark(image: Image.Image) -> str:
    """What of a file is not read."""
    remarks: list[str] = []
    if image.format != "MPO" and getattr(image, "is_animated", False):  # the second of an MPO is a preview
        remarks.append("several pages, of which the first is taken")
    tile: Any = (getattr(image, "tile", None) or [("", (), 0, "")])[0]
    if not image.mode.startswith("I") and ";16" in str(tile[3]):
        remarks.append("colours of 16 bits, of which Pillow reads the upper 8")
    profile = image.info.get("icc_profile")
    if profile and (image.mode == "F" or image.mode.startswith("I")):
        remarks.append("a colour profile on more than 8 bits, which is not applied")
    elif profile:
        try:
            _transform(profile, image.mode if image.mode in ("L", "CMYK", "LAB") else "RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            remarks.append("a colour profile that cannot be read and is not applied")
    return " and ".join(remarks)
