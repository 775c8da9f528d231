"""What the README shows is run: its Python, its commands, and (slow) its main job with the numbers it claims."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato
from tests.pages import blocks, commands, furnish, missing, python, run_command, run_python, text

COMMANDS = commands("README.md")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("readme"))


def test_the_readme_has_what_is_run_here() -> None:
    readme = text("README.md")
    assert len(python("README.md")) >= 1 and len(COMMANDS) >= 8 and len(readme.splitlines()) <= 150
    assert readme.count("```\npip install -e . && sfumato train\n```") == 1
    assert readme.count('```\npip install -e ".[dev]" && python -m pytest\n```') == 1
    assert not missing("README.md")


def test_the_python_of_the_readme_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    for block in python("README.md"):
        run_python(block, names)
    assert tuple(names["images"].shape) == (16, 1, 8, 8)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:With the large reverse variance")
@pytest.mark.filterwarnings("ignore:.*hardly trained")
@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_readme_run(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(line, place, monkeypatch, capsys)


def skeleton(output: str) -> list[str]:
    """The lines of a training without their numbers and rules, and without those that say the step and the time."""
    lines = [re.sub(r"-?[\d.,:]+", "#", " ".join(line.split())) for line in output.splitlines()]
    return [
        re.sub(r"[━─┏┓┡┩└┘┳╇┴├┤┼]+", "-", line) for line in lines if line and not line.startswith(("step ", "time "))
    ]


@pytest.mark.slow
def test_the_main_job_keeps_its_word(tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "sfumato", "train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    (shown,) = (text for _, text in blocks("README.md") if text.startswith("$ sfumato train\n"))
    assert skeleton(done.stdout) == skeleton(shown.partition("\n")[2])
    run = tmp_path / "runs/digits"
    found = json.loads((run / "evaluation.json").read_text())
    assert found["counts"] == {"samples": 1000, "training": 1000, "held-out": 797}
    rows = {row["title"]: row for row in found["rows"]}
    assert rows["FD (classifier)"]["ratio"] < 2.0
    assert rows["nearest / real (pixels)"]["value"] > 0.95
    assert rows["nearest / real (classifier)"]["value"] > 0.95
    assert len(list((run / "samples").glob("*.png"))) == 3
    assert sfumato.load(run).sample(2).shape == (2, 1, 8, 8)
