"""How a picture was made, as its metadata say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image


def read_facts(path: Path) -> dict[str, Any] | None:
    """What was written of a picture, in a text of a PNG or in the comment of the user; None where nothing is said."""
    with Image.open(path) as image:
        image.load()
        text: Any = image.info.get("sfumato")
        comment: Any = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if text is None and comment[:8] == b"ASCII\0\0\0":
        text = comment[8:]
    return None if text is None else json.loads(text)
