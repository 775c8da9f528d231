"""Pictures with all that belongs to them: colour space, opacity, depth and metadata, for what is written again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import ExifTags, Image, PngImagePlugin
from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import atomic_write, json_object
from sfumato.io.reading import in_srgb, quiet, read_header, reason, upright

Bytes = npt.NDArray[np.uint8]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The formats that pictures are written in, by suffix."""

_MOST = {"JPEG": 65535, "WEBP": 16383}  # pixels of a side that a format holds
_MOST_EXIF = 65533  # bytes that a JPEG holds of it
_STALE = (ExifTags.Base.Orientation, ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength)
_STALE_INNER = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)


@dataclass(frozen=True)
class Picture:
    """A picture in its own colour space.

    Attributes:
        values: ``(C, H, W)`` in [-1, 1]: 1 channel is grey, 2 grey and opacity, 3 RGB, 4 RGB and opacity.
        depth: bits per channel, 8 or 16.
        profile: the ICC profile of the colours, if the file has one.
        exif: the camera's metadata without what a change of size makes wrong, if the file has any.
    """

    values: Float[Tensor, "channels height width"]
    depth: int = 8
    profile: bytes | None = None
    exif: bytes | None = None

    @property
    def size(self) -> str:
        """Width and height, as people say them."""
        return f"{self.values.shape[2]}x{self.values.shape[1]}"


def read_picture(path: Path) -> Picture:
    """The picture of a file, upright; a warning says what of it is not kept.

    Colours stay in the space of the file, and its profile with them; those of print (CMYK) and others than grey and RGB
    become sRGB. Where a picture is wholly transparent, its colours are those of the nearest place that is not, since
    what nobody sees would bleed into what is seen.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the pictures in it, such as {path}/*.png.")
    try:
        with quiet():
            remark = read_header(path).remark
            with Image.open(path) as image:
                image.load()
                picture, said = _of(upright(image))
                exif = _exif(image)
    except Exception as error:  # decoders of damaged files raise errors of any kind
        raise InputError(f"Could not read {path}: {reason(error)}.") from None
    for words in (remark, said):
        # what a profile of more than 8 bits would have done to an image in sRGB does not matter where it is kept
        if words and "not applied" not in words:
            warnings.warn(f"{path} has {words}.", SfumatoWarning, stacklevel=2)
    return replace(picture, exif=exif)


def _of(image: Image.Image) -> tuple[Picture, str]:
    """A picture, and what of it could not be kept."""
    profile: bytes | None = image.info.get("icc_profile") or None
    if image.mode.startswith("I"):
        numbers = np.asarray(image).astype(np.float32)[None]
        if numbers.min() < 0 or numbers.max() > 65535:
            raise ValueError("more than 16 bits, and what is white is not known")
        return Picture(torch.from_numpy(numbers / 32767.5 - 1.0), 16, profile), ""
    if image.mode == "F":
        raise ValueError("floating-point numbers, and what is white is not known")
    alpha, grey, said = image.has_transparency_data, image.mode in ("1", "L", "LA", "La"), ""
    if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        said, profile = f"colours in {image.mode}, which become sRGB", None
        image = in_srgb(image)
    else:
        image = image.convert(("LA" if grey else "RGBA") if alpha else "L" if grey else "RGB")
    pixels = np.atleast_3d(np.asarray(image, dtype=np.uint8))
    if alpha:
        pixels = _without_invisible(pixels)
    values = torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32) / 127.5 - 1.0)
    return Picture(values, 8, profile), said


def _without_invisible(pixels: Bytes) -> Bytes:
    """The same with the colours of the nearest visible pixel where nothing is visible."""
    hidden = pixels[..., -1] == 0
    if not hidden.any() or hidden.all():
        return pixels
    from scipy import ndimage

    nearest: Any = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    filled = pixels[tuple(nearest)]
    filled[..., -1] = pixels[..., -1]
    return filled


def _exif(image: Image.Image) -> bytes | None:
    """What the camera said, without what is no longer so."""
    try:
        exif = image.getexif()
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        for tag in _STALE:
            exif.pop(tag, None)
        for tag in _STALE_INNER:
            inner.pop(tag, None)
        return exif.tobytes() if len(exif) or inner else None
    except Exception:  # damaged metadata beside sound pixels
        return None


def format_for(path: Path, most: int = 0) -> str:
    """The format of a file of that name, if pictures are written in it, with sides of at most so many pixels."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"Pictures are written as {', '.join(FORMATS)}, or into a folder; got the file {path}.")
    if most > _MOST.get(kind, most):
        raise InputError(f"A {kind} has sides of at most {_MOST[kind]} pixels, and this picture has {most}; take .png.")
    return kind


def write_picture(picture: Picture, path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write a picture as .png, .jpg or .webp, whole or not at all; a warning says what the format does not hold.

    ``facts`` go into the metadata as JSON: a text called ``sfumato`` in a PNG, the comment of the user in others.
    """
    kind = format_for(path, max(picture.values.shape[1:]))
    values, lost = picture.values.detach().float().cpu().clamp(-1.0, 1.0), list[str]()
    channels = values.shape[0]
    deep = picture.depth == 16 and kind == "PNG" and channels == 1
    if picture.depth == 16 and not deep:
        lost.append("8 bits of the 16 per channel")
    if kind == "JPEG" and channels in (2, 4):
        opacity = 0.5 + 0.5 * values[-1:]
        values = values[:-1] * opacity + 1.0 - opacity
        lost.append("the opacity: it is laid over white")
    profile = picture.profile
    if kind == "WEBP" and channels < 3 and profile is not None and profile[16:20] == b"GRAY":
        profile = None
        lost.append("the colour profile, which is one of grey")
    exif = picture.exif if kind == "PNG" else _with_comment(picture.exif, facts)
    if kind == "JPEG" and exif is not None and len(exif) > _MOST_EXIF:
        exif = _with_comment(None, facts)
        lost.append("the camera's metadata, which are too long for a JPEG")
    if lost:
        warnings.warn(f"{path} loses {' and '.join(lost)}.", SfumatoWarning, stacklevel=2)
    image = _to_pillow(values, deep)
    if kind == "WEBP" and channels < 3:
        image = image.convert("RGBA" if channels == 2 else "RGB")
    options: dict[str, Any] = {"icc_profile": profile}
    if kind == "PNG":
        options |= {"pnginfo": png_facts(facts)}
    else:
        options |= {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"quality": 95}
    options |= {"exif": exif} if exif else {}
    atomic_write(path, lambda temporary: image.save(temporary, format=kind, **options))


def _to_pillow(values: Float[Tensor, "channels height width"], deep: bool) -> Image.Image:
    if deep:
        return Image.fromarray(values[0].add(1.0).mul(32767.5).round().numpy().astype(np.uint16))
    pixels = values.add(1.0).mul(127.5).round().to(torch.uint8).movedim(0, -1).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels))


def png_facts(facts: Mapping[str, Any] | None) -> PngImagePlugin.PngInfo | None:
    """How a picture was made, as texts of a PNG: ``Software``, and ``sfumato`` in JSON."""
    if facts is None:
        return None
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", _software())
    info.add_text("sfumato", _json(facts))
    return info


def read_facts(path: Path) -> dict[str, Any]:
    """How a PNG of sfumato was made, as :func:`png_facts` wrote it."""
    try:
        with quiet(), Image.open(path) as image:
            image.load()
            texts: Any = getattr(image, "text", {})  # of a PNG
            facts = json_object(str(texts.get("sfumato", "")))
    except Exception as error:  # decoders of damaged files raise errors of any kind
        raise InputError(f"Could not read {path}: {reason(error)}.") from None
    if facts is None:
        raise InputError(
            f"{path} does not say how it was made: only a .png that sfumato wrote does, until another program saves it."
        )
    return facts


def _json(facts: Mapping[str, Any]) -> str:
    """Facts as JSON; settings and what else is none as it holds them."""
    return json.dumps(
        facts, default=lambda value: value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)
    )


def _with_comment(exif: bytes | None, facts: Mapping[str, Any] | None) -> bytes | None:
    if facts is None:
        return exif
    tags = Image.Exif()
    if exif is not None:
        tags.load(exif)
    tags[ExifTags.Base.Software] = _software()
    # 8 bytes name the code of the characters
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + _json(facts).encode("ascii")
    return tags.tobytes()


def _software() -> str:
    from sfumato import __version__

    return f"sfumato {__version__}"
