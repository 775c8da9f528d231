"""The tabs Understand and Train, used as a person uses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.browsing import Person, served


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="module")
def url(place: Path, browser: Any) -> Iterator[str]:
    (place / "empty").mkdir()
    with served(place, 7985, "--folder", "empty") as found:
        yield found


def test_figures_that_need_no_model(person: Person) -> None:
    page = person.page
    person.tab("Understand")
    page.locator("#forward-picture img").wait_for()
    before = page.locator("#forward-picture img").get_attribute("src")
    page.locator("#forward-t input[type=number]").fill("0.9")
    page.wait_for_function(f"document.querySelector('#forward-picture img').getAttribute('src') != {before!r}")
    person.shot("forward")
    person.tab("Schedules")
    person.fill("schedule-kind", "own table")
    person.said("Signal is left at the end")
    person.fill("schedule-table", "a, b")
    person.said("A table is numbers")
    person.shot("schedules")
    person.tab("Spectrum")
    person.press("spectrum-go")
    page.locator("#spectrum-picture img").wait_for()
    person.shot("spectrum")
    person.tab("Families")
    page.locator("#families-picture img").wait_for()
    person.shot("families")


def test_a_density_is_drawn(person: Person) -> None:
    page = person.page
    person.tab("Understand", "Densities")
    page.wait_for_timeout(1500)  # the empty canvas does not change what is chosen
    assert page.locator("#density-name input").first.input_value() == "ring"
    person.fill("density-name", "drawn")
    person.press("density-go")
    person.said("Nothing is painted")
    page.wait_for_timeout(1500)  # the canvas is ready a moment after it is seen
    box = page.locator("#density-canvas canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y - 30)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(x - 60 + 15 * step, y - 30 + 30 * (step % 3))
    page.mouse.up()
    page.wait_for_timeout(1500)
    person.press("density-go")
    page.locator("#density-picture img").wait_for()
    page.locator("#density-t input[type=number]").fill("0.5")
    page.wait_for_function("document.querySelector('#density-said').textContent.includes('t = 0.58')")
    person.shot("density")


def test_figures_of_a_model(person: Person) -> None:
    page = person.page
    person.tab("Understand", "Reverse process")
    person.press("reverse-go")
    page.locator("#reverse-picture img").wait_for()
    page.locator("#reverse-step input[type=number]").fill("16")
    person.said("Step 16 of 16")
    person.shot("reverse")
    for tab, name in (("Loss", "loss"), ("Content and detail", "content"), ("Bits", "hierarchy")):
        person.tab(tab)
        person.press(f"{name}-go")
        page.locator(f"#{name}-picture img").wait_for()
        person.shot(name)
    person.said("the bound is")


def test_train_stop_and_resume(person: Person, place: Path) -> None:
    page = person.page
    person.tab("Train")
    person.fill("train-name", "mine")
    person.fill("train-steps", 400)
    person.press("train-start")
    page.wait_for_function(
        "/[1-9]\\d* of 400/.test(document.querySelector('#train-status')?.innerText ?? '')", timeout=90_000
    )
    person.press("train-stop")
    page.wait_for_function("/[Ss]topped|saved/.test(document.querySelector('#train-status')?.innerText ?? '')")
    person.shot("stopped")
    assert list((place / "runs" / "mine" / "checkpoints").iterdir())
    person.press("train-resume")
    page.wait_for_function(
        "/[Cc]omplete/.test(document.querySelector('#train-status')?.innerText ?? '')", timeout=150_000
    )
    person.shot("complete")


def test_a_folder_without_pictures_is_named(person: Person) -> None:
    person.tab("Train")
    person.fill("train-data", "Folder empty")
    person.fill("train-name", "nothing")
    person.press("train-start")
    person.page.wait_for_function(
        "/no image|No image|no picture|holds no/.test(document.body.innerText)", timeout=60_000
    )
    person.shot("empty")
