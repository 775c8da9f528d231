"""The tabs Generate, Compare and Edit, used as a person uses them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.app.browsing import Person, served


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def url(place: Path, browser: Any) -> Iterator[str]:
    with served(place, 7970) as found:
        yield found


def sides(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


def digit(person: Person, tab: str) -> None:
    """Choose the model of the digits, and few steps."""
    person.fill(f"{tab}-model", "digits")
    person.page.locator(f"#{tab}-class").wait_for()
    person.page.wait_for_timeout(700)  # the other controls follow


def unhurried(person: Person) -> None:
    """Open the settings of sampling, and ask for many steps."""
    person.page.get_by_text("Sampling", exact=True).first.click()
    person.page.wait_for_timeout(700)
    person.page.locator("#generate-steps input[type=number]").fill("250")


def test_generate(person: Person, place: Path) -> None:
    page = person.page
    assert page.title() == "Sfumato"
    person.fill("generate-prompt", "a large red square")
    page.locator("#generate-count input[type=number]").fill("2")
    person.press("generate-go")
    page.locator("#generate-preview img").wait_for()  # while it is made
    first = person.pictures("generate-gallery", 2)
    assert sides(first[0]) == (64, 64)
    person.said("seed 0, index 0")
    person.shot("generated")
    # the picture that is chosen is made again
    page.locator("#generate-gallery .thumbnail-item").nth(1).click()
    person.said("seed 0, index 1")
    person.press("generate-again")
    page.locator("#generate-gallery img").nth(3).wait_for()
    person.shot("again")
    # its file restores the settings on a fresh page
    (place / "dropped.png").write_bytes(first[1])
    page.reload()
    page.locator("#generate-go").wait_for()
    person.errors.clear()  # of the connection that was cut
    person.fill("generate-prompt", "something else")
    person.upload("generate-drop", place / "dropped.png")
    page.wait_for_function(
        "document.querySelector('#generate-prompt textarea').value == 'a large red square' && "
        "document.querySelector('#generate-first input').value == '1'"
    )


def test_cancel_and_then_by_class(person: Person) -> None:
    page = person.page
    unhurried(person)
    page.locator("#generate-count input[type=number]").fill("16")
    person.press("generate-go")
    person.said("of 250")
    person.press("generate-cancel")
    person.said("Cancelled.")
    digit(person, "generate")
    assert page.locator("#generate-prompt").is_hidden()
    person.fill("generate-class", "7")
    person.fill("generate-sampler", "heun")
    page.locator("#generate-steps input[type=number]").fill("4")
    page.locator("#generate-count input[type=number]").fill("3")
    person.press("generate-go")
    assert sides(person.pictures("generate-gallery", 3)[0]) == (8, 8)
    # a variation, and a larger one
    person.press("generate-vary")
    page.locator("#generate-gallery img").nth(6).wait_for()
    person.press("generate-upscale")
    person.said("8x8 → 32x32")
    person.shot("class")


def test_an_error_is_a_sentence(person: Person, place: Path) -> None:
    person.fill("generate-prompt", " ")
    person.press("generate-go")
    person.said("Say in the prompt what to draw")
    (place / "broken.png").write_bytes(b"no picture")
    person.page.locator("#generate-drop input[type=file]").first.set_input_files(place / "broken.png")
    person.said("is damaged")
    person.shot("errors")
    person.errors.clear()  # the browser says that it can't show the damaged picture


def test_compare(person: Person) -> None:
    person.tab("Compare")
    digit(person, "compare")
    person.fill("compare-columns", "1, 2, 3")
    person.fill("compare-rows", "2, 4")
    person.press("compare-go")
    shown = person.page.locator("#compare-plot img")
    person.page.wait_for_function("document.querySelector('#compare-plot img')?.src.endsWith('comparison.png')")
    width, height = sides(person.page.request.get(shown.get_attribute("src")).body())
    assert width > 3 * 160 and height > 2 * 160
    person.shot("compare")
    person.fill("compare-rows", "two")
    person.press("compare-go")
    person.said("steps")


def test_inpaint(person: Person) -> None:
    person.tab("Edit")
    page = person.page
    person.press("inpaint-go")
    person.said("Drop a picture first")
    person.press("inpaint-sample")
    canvas = page.locator("#inpaint-editor canvas").first
    page.wait_for_timeout(3000)  # the sample appears in the canvas, of which nothing else tells
    person.press("inpaint-go")
    person.said("Nothing is painted over")
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 50, y)
    page.mouse.down()
    for step in range(1, 8):
        page.mouse.move(x - 50 + 15 * step, y + 30 * (step % 2))
    page.mouse.up()
    page.wait_for_timeout(1500)
    person.press("inpaint-go")
    assert len(person.pictures("inpaint-gallery", 4)) == 4
    person.shot("inpaint")


@pytest.fixture(scope="module")
def drawn(place: Path) -> list[Path]:
    """Two pictures of the size of the shapes."""
    paths: list[Path] = []
    for number, colour in enumerate(("red", "blue")):
        image = Image.new("RGB", (64, 64), (128, 128, 128))
        ImageDraw.Draw(image).ellipse((12 + 10 * number, 14, 44 + 8 * number, 46), fill=colour)
        paths.append(place / f"{colour}.png")
        image.save(paths[-1])
    return paths


def test_sdedit_and_interpolate(person: Person, drawn: list[Path]) -> None:
    person.tab("Edit", "SDEdit")
    person.upload("sdedit-picture", drawn[0])
    person.press("sdedit-go")
    assert sides(person.pictures("sdedit-gallery", 4)[0]) == (8, 8)
    person.tab("Interpolate")
    person.press("interpolate-go")
    assert len(person.pictures("interpolate-gallery", 8)) == 8
    person.shot("interpolate")


def test_upscale(person: Person, drawn: list[Path]) -> None:
    person.tab("Edit", "Up-scale")
    person.upload("upscale-picture", drawn[0])
    person.press("upscale-go")
    person.said("64x64 → 256x256")
    person.page.locator("#upscale-slider img").nth(1).wait_for()
    person.shot("upscale")


def test_vary_and_blend(person: Person, drawn: list[Path]) -> None:
    person.tab("Edit", "Vary")
    person.upload("vary-picture", drawn[0])
    person.page.locator("#vary-count input[type=number]").fill("2")
    person.press("vary-go")
    assert sides(person.pictures("vary-gallery", 2)[0]) == (64, 64)
    person.tab("Blend")
    person.upload("blend-first", drawn[0])
    person.upload("blend-second", drawn[1])
    person.page.locator("#blend-count input[type=number]").fill("3")
    person.press("blend-go")
    assert len(person.pictures("blend-gallery", 3)) == 3
    person.shot("blend")


def test_two_tabs_take_turns_and_one_that_is_closed_lets_go(browser: Any, url: str, tmp_path: Path) -> None:
    first, second = (Person(browser, url, tmp_path) for _ in range(2))
    digit(second, "generate")
    first.page.bring_to_front()  # one behind another is not drawn
    unhurried(first)
    first.page.locator("#generate-count input[type=number]").fill("16")
    first.press("generate-go")
    first.said("of 250")
    second.page.bring_to_front()
    second.press("generate-go")
    first.page.close()
    assert len(second.pictures("generate-gallery", 4)) == 4
    second.leave()
