"""Words beneath pictures."""

from __future__ import annotations

import time

import pytest
from PIL import Image, ImageFont

from sfumato.io.lettering import _cut, captioned  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("width", [5.0, 40.0, 128.0])
def test_a_word_is_cut_where_it_is_too_long(width: float) -> None:
    font = ImageFont.load_default(12)
    word = "incomprehensibilities" * 4
    found = _cut(word, width, font)
    kept = found.removesuffix("…")
    assert found.endswith("…") and word.startswith(kept) and kept
    longer = word[: len(kept) + 1] + "…"
    assert (font.getlength(found) <= width or len(kept) == 1) and font.getlength(longer) > width
    assert _cut("in", 128.0, font) == "in"


def test_a_text_without_spaces_takes_no_time() -> None:
    start = time.process_time()
    captioned([Image.new("RGB", (64, 64))], ["x" * 200_000])
    assert time.process_time() - start < 2.0
