"""A browser, and a person who uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.browsing import Person, opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened() as found:
        yield found


@pytest.fixture
def person(browser: Any, url: str, tmp_path: Path) -> Iterator[Person]:
    """At the page of the fixture ``url``; nothing went wrong in the console when the tab is closed."""
    found = Person(browser, url, tmp_path)
    yield found
    found.leave()
