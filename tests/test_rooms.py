"""The rooms of the package: a room imports only from rooms before it, and no file is too long."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sfumato"
ROOMS = (
    "errors",
    "random",
    "io",
    "pretrained",
    "diffusion",
    "sampling",
    "networks",
    "conditioning",
    "data",
    "training",
    "metrics",
    "config",
    "recipes",
    "models",
    "runs",
    "systems",
    "analysis",
    "interop",
    "app",
    "cli",
)
LOOSE = {"__init__", "__main__", "errors", "random"}
"""The modules at the top: the first two may import anything, the other two are rooms of one file."""
FILES = sorted(SOURCE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def room(path: Path) -> str:
    """The room of a file: the folder below the package, or the module at its top."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path: Path) -> list[tuple[int, str]]:
    """The rooms that a file imports anything of, and where: also inside functions and for type checkers only."""
    package = ("sfumato", *path.relative_to(SOURCE).parent.parts)
    rooms: set[tuple[int, str]] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])
            base = base if node.level else node.module or ""
            # `from sfumato import random` names the room, `from sfumato.data import load` something in it
            modules = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [module.split(".") for module in modules]
        rooms |= {(node.lineno, part[1]) for part in parts if part[0] == "sfumato" and len(part) > 1}
    return sorted(rooms)


def test_relative_and_absolute_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    path = tmp_path / "data" / "sources.py"
    path.parent.mkdir()
    path.write_text(
        "import torch\nimport sfumato.io.files as files\nfrom sfumato import random\nfrom . import loader\n"
        "from ..cli.flags import parse\ndef f():\n    from sfumato.metrics.report import report\n"
    )
    rooms = [(2, "io"), (3, "random"), (4, "data"), (5, "cli"), (7, "metrics")]
    assert room(path) == "data" and imported(path) == rooms


def test_every_file_is_in_a_room() -> None:
    rooms = {room(path) for path in FILES}
    assert rooms <= {*ROOMS, *LOOSE}, f"without a place in the order: {sorted(rooms - {*ROOMS, *LOOSE})}"
    assert {path.stem for path in SOURCE.glob("*.py")} == LOOSE


@pytest.mark.parametrize("name", [name for name in ROOMS if (SOURCE / name).exists() or name in LOOSE])
def test_a_room_imports_only_from_rooms_before_it(name: str) -> None:
    before = {name, *ROOMS[: ROOMS.index(name)]}
    wrong = [
        f"{relative(path)}:{line} imports {other}"
        for path in FILES
        if room(path) == name
        for line, other in imported(path)
        if other not in before and not other.startswith("__")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_longer_than_400_lines() -> None:
    root = Path(__file__).parents[1]
    files = (path for name in ("src", "tests", "benchmarks", "examples") for path in (root / name).rglob("*.py"))
    lines = {str(path.relative_to(root)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert not {path: count for path, count in lines.items() if count > 400}


def test_files_of_tests_have_names_of_their_own() -> None:
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not {name: count for name, count in names.items() if count > 1}
