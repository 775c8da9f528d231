"""Words on grids of images: names above the columns, values beside the rows."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_SIZE, _LEAST = 15, 9  # of the letters, in pixels
_GAP = 6


def lettered(
    sheets: Sequence[Image.Image], *, above: Sequence[str] = (), beside: Sequence[str] = (), title: str = ""
) -> Image.Image:
    """Grids one below the other as one picture with words on it.

    Args:
        sheets: grids of one mode.
        above: a word for each of the columns, which are equally wide.
        beside: a word for each grid, at its left.
        title: a line above all.
    """
    mode = sheets[0].mode
    paper, ink = {"L": (255, 0), "RGB": ((255,) * 3, (0,) * 3)}.get(mode, ((255,) * 4, (0, 0, 0, 255)))
    words = [word for word in beside if word]
    left = max((_width(word, _font(_SIZE)) for word in words), default=0.0)
    left = round(left) + 2 * _GAP if words else 0
    line = _SIZE + _GAP
    top = line * (bool(title) + bool(above))
    width = max(sheet.width for sheet in sheets)
    width = max(width + left, round(_width(title, _font(_SIZE))) + 2 * _GAP)
    height = top + sum(sheet.height for sheet in sheets) + _GAP * (len(sheets) - 1)
    picture = Image.new(mode, (width, height), paper)
    pen = ImageDraw.Draw(picture)
    if title:
        pen.text((_GAP, line / 2), title, fill=ink, font=_font(_SIZE), anchor="lm")
    cell = sheets[0].width / max(len(above), 1)
    for i, word in enumerate(above):
        text, font = _fitted(word, cell - 2)
        pen.text((left + (i + 0.5) * cell, top - line / 2), text, fill=ink, font=font, anchor="mm")
    for i, sheet in enumerate(sheets):
        picture.paste(sheet, (left, top))
        if i < len(beside):
            pen.text((left - _GAP, top + sheet.height / 2), beside[i], fill=ink, font=_font(_SIZE), anchor="rm")
        top += sheet.height + _GAP
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return font.getlength(text)


def _fitted(word: str, width: float) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """A word with letters so small, or so much of it, that it fits a width."""
    for size in range(_SIZE, _LEAST - 1, -1):
        if _width(word, _font(size)) <= width:
            return word, _font(size)
    font, end = _font(_LEAST), len(word)
    while end > 1 and _width(word[:end] + "…", font) > width:
        end -= 1
    return word[:end] + "…", font
