"""The map of the lecture is true: every function, test and command on it is there, and they belong together."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfumato.analysis import topics
from sfumato.cli import HELP
from sfumato.cli.explain import TOPICS

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "lecture.md").read_text(encoding="utf-8")
WORDS = re.findall(r"`([^`\n]+)`", MAP)
NAMES = sorted({word for word in WORDS if re.fullmatch(r"sfumato(\.\w+)+", word)})
TESTS = sorted({word for word in WORDS if "::" in word})
COMMANDS = sorted({word for word in WORDS if word.startswith("sfumato ")})

SLIDES = [
    "Taxonomy; successful applications",
    "Denoising diffusion models",
    "Forward diffusion process",
    "Diffusion kernel",
    "What happens to a distribution in the forward diffusion?",
    "Generative learning by denoising",
    "Reverse denoising process",
    "Learning the denoising model",
    "Parameterizing the denoising model",
    "Training objective weighting",
    "Training and sample generation",
    "Network architectures",
    "Noise schedule",
    "What happens to an image in the forward diffusion process?",
    "Content-detail tradeoff",
    "Connection to VAEs",
    "Summary; the design space of EDM",
]

FUTURE: dict[str, str] = {}
"""What the page says is not here, and the module that will make it untrue."""


@dataclass(frozen=True)
class Row:
    formula: str
    names: tuple[str, ...]
    tests: tuple[str, ...]
    commands: tuple[str, ...]
    text: str


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def rows() -> list[Row]:
    found: list[Row] = []
    for line in MAP.splitlines():
        if not line.startswith("|") or re.match(r"\| (---|formula|what) \|", line):
            continue
        formula, where, tests, figure = cells(line)
        words = [tuple(re.findall(r"`([^`]+)`", cell)) for cell in (where, tests, figure)]
        found.append(Row(formula, *words, text=where))
    return found


ROWS = rows()
HERE = [row for row in ROWS if not row.text.startswith("not here yet")]


def resolve(name: str) -> tuple[str, object]:
    """The module and the object of a dotted name: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: object = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # a module that is there but lacks another one is a fault, not an attribute
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[cut:]:
            found = inspect.getattr_static(found, part)
        return module, found
    raise ModuleNotFoundError(name)


@functools.cache
def source(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


@functools.cache
def functions(path: str) -> list[str]:
    """The functions that pytest collects: those of the module itself, not what stands within another."""
    return [node.name for node in ast.parse(source(path)).body if isinstance(node, ast.FunctionDef)]


@functools.cache
def identifiers(path: str) -> set[str]:
    """Everything that the code of a file refers to; comments and strings don't count."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_function_or_class_at_home(name: str) -> None:
    module, found = resolve(name)
    assert found is not None and module != name, f"{name} is a module; name what is in it"
    thing = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    assert callable(thing), name
    # a package may show what its modules define; a module that shows another's is not its home
    assert thing.__module__ == module or thing.__module__.startswith(f"{module}."), f"{name} is of {thing.__module__}"


@pytest.mark.parametrize("test", TESTS)
def test_a_test_is_collected(test: str) -> None:
    path, _, function = test.partition("::")
    assert re.fullmatch(r"tests/(\w+/)?test_\w+\.py", path) and (ROOT / path).is_file(), path
    assert function.startswith("test_") and functions(path).count(function) == 1, test


@pytest.mark.parametrize("row", HERE, ids=lambda row: row.names[0].rpartition(".")[2] if row.names else "none")
def test_a_row_is_whole_and_its_tests_use_its_functions(row: Row) -> None:
    assert row.formula and row.names and row.tests, row
    assert set(row.names) <= set(NAMES) and set(row.tests) <= set(TESTS) and set(row.commands) <= set(COMMANDS), row
    assert row.formula.count("$") % 2 == 0, row.formula
    used = set[str]().union(*(identifiers(test.partition("::")[0]) for test in row.tests))
    unused = [name for name in row.names if name.rpartition(".")[2] not in used]
    assert not unused, f"no test of this row refers to {unused}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_a_topic(command: str) -> None:
    words = command.split()
    assert f"\n  {words[1]} " in HELP and len(words) <= 4, command
    assert words[1] != "explain" or len(words) == 2 or (words[2] in TOPICS and words[2] in topics.TOPICS), command


def test_the_map_goes_through_the_slides_and_shows_every_topic() -> None:
    assert re.findall(r"^## (.*)$", MAP, re.MULTILINE) == SLIDES
    commands = [command.split() for row in ROWS for command in row.commands]
    assert {words[2] for words in commands if words[1] == "explain"} == set(TOPICS)
    for section in re.split(r"^## ", MAP, flags=re.MULTILINE)[1:]:
        assert section.count("| --- | --- | --- | --- |") == 1, section.splitlines()[0]


def test_what_is_not_here_yet_is_said_and_is_not_here() -> None:
    future = [row for row in ROWS if row not in HERE]
    assert [row.formula for row in future] == list(FUTURE)
    assert all(not row.names and not row.tests and not row.commands for row in future)
    for what, module in FUTURE.items():
        assert what in MAP
        package = module.rpartition(".")[0]
        there = importlib.util.find_spec(package) is not None and importlib.util.find_spec(module) is not None
        assert not there, f"{module} is here: give {what} its row in docs/lecture.md"


def test_what_looks_like_a_name_of_the_map_is_checked() -> None:
    """A misspelt prefix would go unseen: all code on the page is a name, a test, a command or this file."""
    others = set(WORDS) - set(NAMES) - set(TESTS) - set(COMMANDS)
    assert others == {"tests/test_lecture_map.py"}
    assert "```" not in MAP and MAP.count("`") == 2 * len(WORDS)
