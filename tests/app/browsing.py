"""A real browser on a real page: ``sfumato app`` in a process of its own, driven as a person would."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HARMLESS = ("favicon", "AbortError")  # a page that is loaded again ends what it waited for


def browser() -> str:
    """The program of the browser; a skip with its reason where there is none."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sfumato[app]'")
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    return found


@contextlib.contextmanager
def served(place: Path, port: int, *options: str) -> Iterator[str]:
    """The address of a page that is served from ``place``."""
    command = [sys.executable, "-m", "sfumato", "app", "--port", str(port), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with (place / "page.log").open("w") as log:
        process = subprocess.Popen(command, cwd=place, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        start = time.monotonic()
        while "http://" not in (said := (place / "page.log").read_text()):
            assert process.poll() is None and time.monotonic() - start < 90.0, said
            time.sleep(0.1)
        yield "http://" + said.partition("http://")[2].split()[0]
    finally:
        process.terminate()
        process.wait(30)


class Person:
    """A person at a tab of the browser, who notes every error of its console and every request to elsewhere."""

    def __init__(self, context: Any, url: str, shots: Path) -> None:
        self.page, self.shots, self.url = context.new_page(), shots, url
        self.errors: list[str] = []
        self.page.set_default_timeout(30_000)
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", self._request)
        self.page.goto(url)
        self.page.locator("#generate-go").wait_for()

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.errors.append(f"asked for {request.url}")

    def tab(self, *names: str) -> None:
        for name in names:
            self.page.get_by_role("tab", name=name, exact=True).click()

    def press(self, name: str) -> None:
        self.page.locator(f"#{name}").click()

    def fill(self, name: str, value: object) -> None:
        """Type into a text or a number, or choose of a list."""
        box = self.page.locator(f"#{name} textarea, #{name} input:not([type=range]):not([type=file])").first
        if box.get_attribute("role") == "combobox":
            box.click()
            self.page.get_by_role("option", name=re.compile(rf"^{re.escape(str(value))}(\s|$)")).first.click()
            return
        box.fill(str(value))
        box.press("Tab")

    def upload(self, name: str, path: Path) -> None:
        self.page.locator(f"#{name} input[type=file]").first.set_input_files(path)
        self.page.locator(f"#{name} img").first.wait_for()

    def pictures(self, name: str, count: int) -> list[bytes]:
        """The files of a gallery, once it has so many."""
        images = self.page.locator(f"#{name} .thumbnail-item img, #{name} .grid-container img")
        images.nth(count - 1).wait_for()
        return [self.page.request.get(images.nth(k).get_attribute("src")).body() for k in range(images.count())]

    def said(self, words: str) -> None:
        """Wait for words anywhere on the page, such as those of an error."""
        self.page.get_by_text(words).first.wait_for()

    def shot(self, name: str) -> None:
        """A picture of the page, which is not empty."""
        path = self.shots / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5.0

    def leave(self) -> None:
        """Close the tab; nothing went wrong in it."""
        self.page.close()
        wrong = [one for one in self.errors if not any(word in one for word in HARMLESS)]
        assert not wrong, wrong


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """A browser, with a window that is wide enough for two columns."""
    program = browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield started.new_context(viewport={"width": 1400, "height": 1000})
        finally:
            started.close()
