"""The page of an evaluation: well-formed, closed to the network, escaped, and with the right pixels inside."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.errors import InputError
from sfumato.io.images import grid, to_uint8
from sfumato.metrics.curves import draw, panels, read_curves
from sfumato.metrics.page import Gallery, write_page
from sfumato.metrics.report import Report, Row

EVIL = "<script>alert('1')</script> & \"co\" {body} $x"
VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """A parsed page: fails on tags that do not nest; keeps attributes, headings, cells and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.stack, "all elements are closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and data.strip():
            self.texts.setdefault(self.stack[-1], []).append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]

    def images(self) -> list[Image.Image]:
        head = "data:image/png;base64,"
        sources = self.values("img", "src")
        assert all(source.startswith(head) for source in sources)
        return [Image.open(BytesIO(base64.b64decode(source[len(head) :], validate=True))) for source in sources]


def report(**more: object) -> Report:
    rows = (
        Row("FD", "pixels", 12.3456, 0.523, "jackknife", 3.21, 0.0312, "lower", EVIL),
        Row("precision", EVIL, 0.9, None, "", None, None, "higher", None),
        Row("PSNR", None, math.inf, None, "1 of 3 values are infinite", None, None, "higher", None),
    )
    fields = {
        "name": EVIL,
        "counts": {"generated": 1000, EVIL: 2},
        "rows": rows,
        "settings": {"sampling": {EVIL: EVIL}},
        "notes": (EVIL,),
    }
    return Report(**{**fields, **more})  # type: ignore[arg-type]


def read(path: Path) -> Page:
    text = path.read_text("utf-8")
    # nothing is loaded from anywhere: no address, no script, no style or font of another file
    assert not re.search(r"https?:|//|@import|<script|url\((?!#)", re.sub(r'base64,[^"]*', "", text))
    return Page(text)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def metrics(folder: Path) -> Path:
    """What a run logs, with a line that a crash cut off and a loss that is not finite."""
    lines = [{"step": step, "images": 8 * step, "loss": 1.0 / step, "seconds": 0.1} for step in range(1, 701)]
    lines += [{"step": 50, "loss": math.nan}]
    for step in (100, 200):
        levels = {f"heldout_loss at log-SNR {at}": 2.0 + step * at for at in (2.0, 10.0, -1.5)}
        levels |= {name.replace("loss", "loss shuffled"): value + 1.0 for name, value in levels.items()}
        levels |= {f"{kind} (held-out pair)": 0.5 for kind in ("relation", "agreement", "colour")}
        whole = {"heldout_loss": 3.0 / step, "heldout_loss shuffled": 4.0 / step}
        lines.append({"step": step, **whole, **levels, "FD (pixels)": 7.0})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo', "utf-8")
    return folder / "metrics.jsonl"


def test_all_of_a_page_is_there_and_escaped(tmp_path: Path) -> None:
    generated = images(40, 1, 8, 8)
    gallery = Gallery(
        generated,
        nearest=images(20, 1, 8, 8, seed=1),
        distances=torch.arange(20) / 16.0,
        density=torch.arange(40.0),
        labels=torch.arange(40) % 3,
        names=("zero", EVIL),
    )
    write_page(tmp_path / "page.html", report(), gallery, metrics=metrics(tmp_path))
    page = read(tmp_path / "page.html")
    assert page.texts["h1"] == page.texts["title"] == [EVIL]
    headings = ["Measures", "Samples", "Nearest training images", "By density", "By class", "Training", "Settings"]
    assert page.texts["h2"] == headings
    cells = page.texts["td"]
    assert "12.35 ± 0.52" in cells and "3.210 ± 0.031" in cells and "0.9" in cells and "inf" in cells
    assert f"jackknife; {EVIL}" in cells and cells.count("higher") == 2
    assert {"FD (pixels)", f"precision ({EVIL})", "PSNR"} < set(page.texts["th"])
    assert EVIL in page.texts["p"], "a note of the report"
    assert page.texts["dt"] == [f"sampling.{EVIL}"] and page.texts["dd"] == [EVIL]
    assert EVIL in page.values("img", "alt") and "2" in page.texts["figcaption"]
    assert {"zero", EVIL, "0.6875"} < set(page.texts["figcaption"])
    assert "Loss" in page.values("svg", "aria-label")
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    referred = re.findall(r'(?:href="#|url\(#)([^")]+)', (tmp_path / "page.html").read_text("utf-8"))
    assert referred and set(referred) <= set(identifiers)
    assert "default-src 'none'" in " ".join(page.values("meta", "content"))


def test_embedded_images_have_the_right_pixels(tmp_path: Path) -> None:
    generated, nearest = images(40, 3, 8, 8), images(20, 3, 8, 8, seed=1)
    density = torch.randperm(40, generator=torch.Generator().manual_seed(2)).float()
    labels = torch.arange(40) % 2
    write_page(tmp_path / "page.html", report(), Gallery(generated, nearest, None, density, labels))
    samples, *others = read(tmp_path / "page.html").images()
    # 8 pixels become 48, with lines of 2 pixels between; 7 columns
    for index in (0, 6, 7, 39):
        top, left = (2 + 50 * (index // 7), 2 + 50 * (index % 7))
        tile = np.asarray(samples)[top : top + 48 : 6, left : left + 48 : 6]
        assert np.array_equal(tile, to_uint8(generated)[index])
    pairs, (highest, lowest), classes = others[:12], others[12:14], others[14:]
    for index, pair in enumerate(pairs):
        both = np.asarray(pair)[2:50:6]
        assert np.array_equal(both[:, 2:50:6], to_uint8(generated)[index])
        assert np.array_equal(both[:, 52:100:6], to_uint8(nearest)[index])
    order = density.argsort()
    assert np.array_equal(np.asarray(highest), np.asarray(grid(generated[order.flip(0)[:16]])))
    assert np.array_equal(np.asarray(lowest), np.asarray(grid(generated[order[:16]])))
    assert len(classes) == 2
    for label, column in enumerate(classes):
        for k in range(6):
            tile = np.asarray(column)[2 + 50 * k : 50 + 50 * k : 6, 2:50:6]
            assert np.array_equal(tile, to_uint8(generated)[label + 2 * k])


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", report(settings={}), metrics=tmp_path / "metrics.jsonl")
    page = read(tmp_path / "page.html")
    assert page.texts["h2"] == ["Measures"] and not page.images()
    write_page(tmp_path / "page.html", report(rows=(), settings={}), Gallery(images(3, 1, 4, 4)))
    page = read(tmp_path / "page.html")
    assert page.texts["h2"] == ["Samples"] and len(page.images()) == 1


@pytest.mark.parametrize("shape", [(2, 30), (2,), (1,), (5, 6, 6)])
def test_signals_vectors_and_other_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    generated = images(30, *shape)
    gallery = Gallery(generated, generated[:5], torch.zeros(5), torch.arange(30.0), torch.arange(30) % 2)
    write_page(tmp_path / "page.html", report(), gallery)
    page = read(tmp_path / "page.html")
    assert ("Nearest training images" in page.texts["h2"]) == (len(shape) > 1)
    found = page.images()
    assert np.array_equal(np.asarray(found[0]), np.asarray(grid(generated)))
    assert len(found) == (1 + 5 + 2 + 2 if len(shape) > 1 else 1 + 2)


def test_large_images_and_many_classes_make_a_small_page(tmp_path: Path) -> None:
    generated = images(100, 3, 256, 200)
    gallery = Gallery(generated, generated[:20], None, torch.arange(100.0), torch.arange(100) // 2)
    write_page(tmp_path / "page.html", report(), gallery)
    assert (tmp_path / "page.html").stat().st_size < 7_000_000, "noise, of which PNG saves nothing"
    page = read(tmp_path / "page.html")
    assert len(page.images()) == 1 + 12 + 2 + 20 and "The first 20 of 50 classes." in page.texts["p"]
    side = int(re.findall(r"scaled down to (\d+) pixels", " ".join(page.texts["p"]))[0])
    assert page.images()[1].height - 2 == side


def test_curves(tmp_path: Path) -> None:
    found = panels(read_curves(metrics(tmp_path)))
    shuffled = "Held-out loss by log-SNR, conditions shuffled"
    assert list(found) == ["Loss", "Held-out loss by log-SNR", shuffled, "Agreement (held-out pair)", "FD (pixels)"]
    assert list(found["Agreement (held-out pair)"]) == ["agreement", "colour", "relation"]
    assert list(found["Loss"]) == ["training", "held out", "conditions shuffled"]
    assert found[shuffled]["2.0"] == [(100.0, 203.0), (200.0, 403.0)]
    assert list(found["Held-out loss by log-SNR"]) == ["-1.5", "2.0", "10.0"], "by number and not by letter"
    training = found["Loss"]["training"]
    assert len(training) == 234, "700 losses in groups of 3"
    assert training[0] == pytest.approx((2.0, (1.0 + 1.0 / 2.0 + 1.0 / 3.0) / 3.0))
    assert found["Loss"]["held out"] == [(100, 0.03), (200, 0.015)]
    drawn = draw("Loss", found["Loss"])
    path = max(re.findall(r'<path d="([^"]*)" clip-path', drawn), key=len)
    heights = [float(y) for _, y in re.findall(r"[ML] (\S+) (\S+)", path)]
    assert len(heights) > 20 and heights == sorted(heights), "the falling loss goes down the page"
    assert "training" in Page(drawn).texts["text"] and "currentColor" in drawn and "#010203" not in drawn
    assert draw("Loss", found["Loss"]) == drawn


@pytest.mark.usefixtures("unchecked")
def test_bad_galleries() -> None:
    good = images(4, 1, 8, 8)
    with pytest.raises(InputError, match="nearest must hold an image of the same shape"):
        Gallery(good, images(4, 1, 9, 8))
    with pytest.raises(InputError, match=r"distances has shape .* no nearest images"):
        Gallery(good, distances=torch.zeros(4))
    with pytest.raises(InputError, match=r"labels has shape .* 4 images"):
        Gallery(good, labels=torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match="density holds NaN"):
        Gallery(good, density=torch.tensor([0.0, math.nan, 1.0, 2.0]))
