"""Coming from other libraries: our side of each comparison runs, and that of diffusers where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import commands, furnish, missing, python, run_command

PAGE = "docs/coming-from.md"
OURS = [block for block in python(PAGE) if block.startswith("# Sfumato")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("coming"))


@pytest.mark.filterwarnings("ignore:.*hardly trained")
def test_ours_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    for block in OURS:
        exec(block, names)
    assert len(OURS) == 5 and tuple(names["images"].shape) == (4, 1, 8, 8)  # type: ignore[attr-defined]
    assert not missing(PAGE)


def test_theirs_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
    monkeypatch.chdir(place)
    (block,) = (block for block in python(PAGE) if block.startswith("# diffusers"))
    names: dict[str, object] = {}
    exec(block, names)
    assert len(names["images"]) == 4  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*hardly trained")
@pytest.mark.parametrize("line", commands(PAGE))
def test_the_commands_run(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(line, place, monkeypatch, capsys)
