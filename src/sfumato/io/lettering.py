"""Words on grids of images: names above the columns, values beside the rows, captions below each."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_SIZE, _LEAST = 15, 9  # of the letters, in pixels
_GAP = 6
_LINES = 4  # of words below a picture
_CAPTION = 240.0  # the most pixels of a line of a caption beside a row
_INKS = {"L": (255, 0), "RGB": ((255,) * 3, (0,) * 3), "RGBA": ((255,) * 4, (0, 0, 0, 255))}  # paper and ink


def lettered(
    sheets: Sequence[Image.Image],
    *,
    above: Sequence[str] = (),
    beside: Sequence[str] = (),
    title: str = "",
    left: int = 0,
) -> Image.Image:
    """Grids one below the other as one picture with words on it.

    Args:
        sheets: grids of one mode.
        above: a word for each of the columns, which are equally wide.
        beside: a word for each grid, at its left.
        title: a line above all.
        left: pixels that are free at the left, at least.
    """
    mode = sheets[0].mode
    paper, ink = _INKS.get(mode, _INKS["RGBA"])
    words = [word for word in beside if word]
    widest = max((_width(word, _font(_SIZE, word)) for word in words), default=0.0)
    left = max(left, round(widest) + 2 * _GAP if words else 0)
    line = _SIZE + _GAP
    top = line * (bool(title) + bool(above))
    width = max(sheet.width for sheet in sheets)
    width = max(width + left, round(_width(title, _font(_SIZE, title))) + 2 * _GAP)
    height = top + sum(sheet.height for sheet in sheets) + _GAP * (len(sheets) - 1)
    picture = Image.new(mode, (width, height), paper)
    pen = ImageDraw.Draw(picture)
    if title:
        pen.text((_GAP, line / 2), title, fill=ink, font=_font(_SIZE, title), anchor="lm")
    cell = sheets[0].width / max(len(above), 1)
    for i, word in enumerate(above):
        text, font = _fitted(word, cell - 2)
        pen.text((left + (i + 0.5) * cell, top - line / 2), text, fill=ink, font=font, anchor="mm")
    for i, sheet in enumerate(sheets):
        picture.paste(sheet, (left, top))
        if i < len(beside):
            pen.text(
                (left - _GAP, top + sheet.height / 2), beside[i], fill=ink, font=_font(_SIZE, beside[i]), anchor="rm"
            )
        top += sheet.height + _GAP
    return picture


def _font(size: int, *texts: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of Pillow; of texts that have other letters than English ones, that of matplotlib, which has more."""
    found = None if all(text.isascii() for text in texts) else find_spec("matplotlib")
    if found is not None and found.origin is not None:
        more = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if more.is_file():
            return ImageFont.truetype(more, size)
    return ImageFont.load_default(size)


def _width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return font.getlength(text)


def _fitted(word: str, width: float) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """A word with letters so small, or so much of it, that it fits a width."""
    for size in range(_SIZE, _LEAST - 1, -1):
        if _width(word, _font(size, word)) <= width:
            return word, _font(size, word)
    font = _font(_LEAST, word)
    return _cut(word, width, font), font


def _cut(word: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """So much of a word that it fits a width."""
    # no letter is narrower than a quarter of a pixel, and lengths of thousands of letters take long
    start = word[: max(1, math.ceil(4.0 * width))]
    if start == word and font.getlength(word) <= width:
        return word
    most = bisect.bisect_right(range(1, len(start)), width, key=lambda end: font.getlength(start[:end] + "…"))
    return start[: max(1, most)] + "…"


def contact_sheet(pictures: Sequence[Image.Image], words: Sequence[str], columns: int) -> Image.Image:
    """Pictures in rows, each 128 to 256 pixels wide, with its words below it, on up to four lines.

    Args:
        pictures: the pictures, of one size.
        words: what stands below each of them.
        columns: how many stand in a row.
    """
    width, height = pictures[0].size
    factor = math.ceil(128 / width) if width < 128 else min(1.0, 256 / width)
    size, font = (round(width * factor), max(1, round(height * factor))), _font(12, *words)
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    texts = [_wrapped(word, float(size[0]), font) for word in words]
    cell = (size[0] + 2 * _GAP, size[1] + 2 * _GAP + 14 * max(map(len, texts)))
    sheet = Image.new("RGB", (cell[0] * columns, cell[1] * -(-len(pictures) // columns)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
        left, top = i % columns * cell[0] + _GAP, i // columns * cell[1] + _GAP
        upright = picture.convert("RGBA").resize(size, how)
        sheet.paste(upright, (left, top), upright)
        for j, line in enumerate(lines):
            pen.text((left, top + size[1] + 14 * j + 1), line, fill=(0, 0, 0), font=font)
    return sheet


def captioned(sheets: Sequence[Image.Image], captions: Sequence[str], above: Sequence[str] = ()) -> Image.Image:
    """Grids one below the other, each with its caption at its left, on as many lines as its height has room for.

    Args:
        sheets: grids of one mode and width.
        captions: what stands beside each.
        above: a word for each of the columns, which are equally wide.
    """
    font, line = _font(_SIZE, *captions), _SIZE + 4
    text = [
        _wrapped(caption, _CAPTION, font, max(1, sheet.height // line))
        for caption, sheet in zip(captions, sheets, strict=True)
    ]
    left = round(max(_width(one, font) for lines in text for one in lines)) + 3 * _GAP
    # beside nothing: the captions are drawn here, on several lines
    pictures = lettered(sheets, above=above, left=left)
    pen, top = ImageDraw.Draw(pictures), (_SIZE + _GAP) * bool(above)
    ink = _INKS.get(pictures.mode, _INKS["RGBA"])[1]
    for sheet, lines in zip(sheets, text, strict=True):
        begin = top + (sheet.height - line * len(lines)) / 2
        for number, one in enumerate(lines):
            pen.text((_GAP, begin + line * (number + 0.5)), one, fill=ink, font=font, anchor="lm")
        top += sheet.height + _GAP
    return pictures


def _wrapped(
    text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int = _LINES
) -> list[str]:
    """A text in at most so many lines that fit a width; what is beyond the last is left out."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return [_cut(line, width, font) for line in lines]
