"""Pictures between the page and the library: previews, results with their metadata, and uploads."""

from __future__ import annotations

import base64
import io
import math
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sfumato.analysis import plots
from sfumato.errors import InputError
from sfumato.io import images as image_files
from sfumato.sampling.sample import Frame

LEAST = 256
"""The least height of a picture on the page, to which small ones are enlarged by repetition of their pixels."""
MOST_BYTES = 20 * 2**20
"""Of an uploaded file."""
MOST_PIXELS = 16 * 10**6
"""Of an uploaded picture."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Of uploads: those that Pillow decodes by itself."""
_SHOWN = 16  # pictures of a preview
_KEPT = 500  # folders of results
_DPI = 110


def preview(frame: Frame) -> Image.Image | None:
    """The estimate of the final pictures; None of what is no picture, such as an embedding."""
    x = frame.x if frame.x0 is None else frame.x0
    return sheet(x[:_SHOWN]) if x.ndim == 4 and x.shape[1] in (1, 3) else None


def sheet(images: Float[Tensor, "batch channels *space"], columns: int | None = None) -> Image.Image:
    """Images of any shape in one picture, as a grid; numbers as curves or points."""
    images = images.detach().float().cpu().clamp(-1.0, 1.0) if images.ndim == 4 else images.detach().float().cpu()
    columns = columns or math.ceil(math.sqrt(len(images)))
    return image_files.grid(images, columns, max(LEAST // columns, 48) if images.ndim == 4 else LEAST)


def flat(image: Float[Tensor, "channels *space"], side: int) -> Image.Image:
    """One image without a border, enlarged by whole factors to about a side."""
    pixels = image_files.to_pillow(image_files.to_uint8(image[None].float().cpu())[0]).convert("RGB")
    factor = max(1, side // max(pixels.size))
    return pixels.resize((pixels.width * factor, pixels.height * factor), Image.Resampling.NEAREST)


def own_folder(folder: Path) -> Path:
    """A new folder whose name cannot be guessed; the oldest of its neighbours go when there are many."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in there[: max(0, len(there) - _KEPT)]:
        shutil.rmtree(old, ignore_errors=True)
    found = folder / secrets.token_hex(8)
    found.mkdir()
    return found


def written(
    images: Float[Tensor, "batch channels *space"], folder: Path, facts: Mapping[str, Any], first: int
) -> list[Path]:
    """PNGs of the images at their own size, each with what made it, under names that cannot be guessed.

    Data that are no pictures are written together, as one.
    """
    folder = own_folder(folder)
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        path = folder / f"seed-{facts.get('seed', 0)}.png"
        image_files.save_png(sheet(images), path, facts)
        return [path]
    paths: list[Path] = []
    for number, pixels in enumerate(image_files.to_uint8(images), first):
        paths.append(folder / f"seed-{facts.get('seed', 0)}-{number}.png")
        image_files.save_png(image_files.to_pillow(pixels), paths[-1], {**facts, "index": number})
    return paths


def checked(path: str | Path | None, what: str = "a picture") -> Path:
    """An uploaded picture, which can be read and is not too large."""
    if path is None:
        raise InputError(f"Give {what} first: drop a file, or click to choose one.")
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"The file is larger than {MOST_BYTES // 2**20} MB, the most that the page takes.")
    try:
        # refuses what has more than MOST_PIXELS, as the server sets it
        with Image.open(path, formats=FORMATS) as image:
            image.load()
    except Image.DecompressionBombError:
        raise InputError(f"The picture has more than {MOST_PIXELS // 10**6} million pixels.") from None
    except Exception:  # decoders of damaged files raise errors of any kind
        raise InputError("The file is damaged, or is not a picture that can be read.") from None
    return path


def upload(**options: Any) -> gr.Image:
    """A component for a picture that a person drops: a path on the server, checked before anything decodes it."""
    component = gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], **options)
    # not a subclass: Gradio writes a file beside the module of each
    component.preprocess = _path_of
    return component


def inline(image: Image.Image) -> str:
    """A picture as HTML: a preview that is soon replaced is no file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"<img alt='preview' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def of_figure(figure: Figure) -> Image.Image:
    """A figure of matplotlib as a picture."""
    buffer = io.BytesIO()
    with plots.styled():
        figure.savefig(buffer, format="png", dpi=_DPI)
    return Image.open(buffer).convert("RGB")


def shown(name: str, label: str = "", *, pixels: bool = False, **options: Any) -> gr.Image:
    """A component that shows a picture; a small one can show its ``pixels`` as squares."""
    how: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}
    how |= {"show_label": bool(label), "elem_classes": "sf-pixels" if pixels else None}
    return gr.Image(label=label, elem_id=name, **how, **options)


def gallery(label: str, name: str) -> gr.Gallery:
    """A component that shows several; a file that is downloaded from it has its metadata."""
    how: dict[str, Any] = {"interactive": False, "format": "png", "elem_classes": "sf-pixels", "height": "auto"}
    how |= {"object_fit": "contain", "columns": 4, "buttons": ["download", "fullscreen"]}
    return gr.Gallery(label=label, elem_id=name, **how)


def _path_of(payload: Any) -> str | None:
    if payload is None or payload.path is None:
        return None
    try:
        return str(checked(payload.path))
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


def of_model(path: str | None, shape: tuple[int, ...], what: str = "a picture") -> Float[Tensor, "channels *space"]:
    """An upload as a model takes it: scaled, cropped and recoloured."""
    return image_files.read(checked(path, what), shape, fit=True)


def from_pillow(image: Image.Image, shape: tuple[int, ...]) -> Float[Tensor, "channels *space"]:
    """A picture in memory as a model takes it."""
    fitted = image_files.fit(image.convert("L" if shape[0] == 1 else "RGB"), (shape[1], shape[2]), "center")
    values = torch.from_numpy(np.array(fitted, dtype=np.float32)) / 127.5 - 1.0
    return values[None] if shape[0] == 1 else values.permute(2, 0, 1)
