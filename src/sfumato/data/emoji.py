"""Vector pictures with names, as Iconify packs them, drawn in pixels with their names as captions."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.arrays import Read
from sfumato.data.dataset import Column
from sfumato.data.decoding import Encoded, Target, decode
from sfumato.errors import InputError
from sfumato.io.files import json_object

_PACKAGE = "@iconify-json/fluent-emoji-flat"
_TONES = ("medium-light", "medium-dark", "light", "medium", "dark")
_GET = f"get 3,139 emoji by: npm pack {_PACKAGE}, unpack that, and give emoji:PATH of its folder"


def is_emoji(source: str) -> bool:
    """Whether a source is ``emoji`` or ``emoji:PATH``."""
    return source.partition(":")[0] == "emoji"


def read_emoji(path: str, target: Target) -> Read:
    """The pictures of an ``icons.json``, with their names in plain words in the column ``caption``.

    Those marked as hidden, and other names of a picture, are left out. Variants of one picture by skin tone, such as
    "woman running, dark skin tone", are in one group, so that they are held out together. What is transparent is laid
    over white, unless the target's channels are ``rgba``; the size is 32 unless the target has one.

    Args:
        path: of ``icons.json`` or its folder; if empty, that of ``fluent-emoji-flat`` where npm installs it from here.
        target: what the pictures become.
    """
    file = Path(path or f"node_modules/{_PACKAGE}").expanduser()
    file = file / "icons.json" if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"{file} is not there; {_GET}.")
    content = file.read_bytes()
    pack = json_object(content.decode("utf-8", "replace")) or {}
    icons: Any = pack.get("icons")
    if not isinstance(icons, dict) or not all(_is_icon(icon) for icon in icons.values()):
        raise InputError(f"{file} is not a pack of icons with a 'body' of SVG for each; {_GET}.")
    shown = {str(name): icon for name, icon in icons.items() if not icon.get("hidden")}
    if not shown:
        raise InputError(f"{file} has no icons to show; {_GET}.")
    names = list(shown)
    size = target.size or (32, 32)
    pixels = max(size)
    library: Any = _library()

    def open_icon(index: int) -> BytesIO:
        svg = _svg({**pack, **shown[names[index]]}, pixels)
        return BytesIO(bytes(library.svg_to_bytes(svg_string=svg, skip_system_fonts=True)))

    encoded = Encoded(
        origin=str(file.resolve()),
        count=len(names),
        name=names.__getitem__,
        open=open_icon,
        listing=f"{hashlib.sha256(content).hexdigest()} {library.__version__}",
        settled=lambda: True,  # the listing is of what was read
    )
    images, kept = decode(encoded, replace(target, size=size, channels=target.channels or "rgb"))
    parts = [_parts(name, shown) for name in names]
    captions = np.array([_words(name, tone) for name, tone in parts], dtype=object)
    _, groups = np.unique([name for name, _ in parts], return_inverse=True)
    return Read(images, {"caption": Column(captions[kept])}, groups=groups.astype(np.int64)[kept])


def _is_icon(icon: Any) -> bool:
    return isinstance(icon, dict) and isinstance(icon.get("body"), str)  # pyright: ignore[reportUnknownMemberType]


def _library() -> Any:
    try:
        return importlib.import_module("resvg_py")
    except ImportError:
        raise InputError('emoji needs resvg-py; install it with: pip install "sfumato[emoji]"') from None


def _svg(icon: dict[str, Any], pixels: int) -> str:
    """A file of SVG, ``pixels`` to a side; of sides that differ, the shorter is centred."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", 16), icon.get("height", 16)  # Iconify's own defaults
    box = f'width="{pixels}" height="{pixels}" viewBox="{left} {top} {width} {height}"'
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {links} {box}>{icon["body"]}</svg>'


def _parts(name: str, known: Any) -> tuple[str, str | None]:
    """A name without its skin tone, and the tone; a police-car-light is no light police car."""
    for tone in _TONES:
        base = name.removesuffix(f"-{tone}")
        if base != name and f"{base}-medium" in known:
            return base, tone
    return name, None


def _words(name: str, tone: str | None) -> str:
    words = name.replace("-", " ")
    return words if tone is None else f"{words}, {tone} skin tone"
