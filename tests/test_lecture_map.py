"""Every name on the map of the lecture exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from sfumato.cli.explain import TOPICS

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "lecture.md").read_text(encoding="utf-8")
WORDS = re.findall(r"`([^`\n]+)`", MAP)
NAMES = sorted({word for word in WORDS if re.fullmatch(r"sfumato(\.\w+)+", word)})
TESTS = sorted({word for word in WORDS if "::" in word})
COMMANDS = sorted({word for word in WORDS if word.startswith("sfumato ")})


def resolve(name: str) -> object:
    """The object of a dotted name: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            # a module that is there but lacks another one is a fault, not an attribute
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_imports(name: str) -> None:
    assert resolve(name) is not None


@pytest.mark.parametrize("test", TESTS)
def test_a_test_exists(test: str) -> None:
    path, _, function = test.partition("::")
    assert (ROOT / path).is_file(), path
    assert function.startswith("test_") and function in functions(ROOT / path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_a_topic(command: str) -> None:
    words = command.split()
    assert words[1] == "explain" and (len(words) == 2 or words[2] in TOPICS)


def test_the_map_shows_every_topic_and_is_made_of_whole_rows() -> None:
    assert {command.split()[2] for command in COMMANDS if len(command.split()) > 2} == set(TOPICS)
    rows = [line for line in MAP.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| formula"))]
    assert len(rows) > 30
    for row in rows:
        # a function and a test stand in every row
        cells = re.split(r"(?<!\\) \| ", row.strip("| "))
        assert len(cells) in (3, 4), row
        assert re.search(r"`sfumato\.", cells[1]), row
        assert "::test_" in cells[2], row


def test_what_looks_like_a_name_of_the_map_is_checked() -> None:
    """A misspelt prefix would go unseen: all code on the page is a name, a test, a command or this file."""
    others = set(WORDS) - set(NAMES) - set(TESTS) - set(COMMANDS)
    assert others == {"tests/test_lecture_map.py"}
