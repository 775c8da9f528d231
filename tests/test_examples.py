"""The scripts and notebooks of examples/ run as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = ("train_on_a_folder", "own_network", "own_data", "own_sampler", "diffusers_weights")


def said(name: str, place: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name: str, tmp_path: Path) -> None:
    if name == "diffusers_weights":
        pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
    text = said(name, tmp_path)
    if name == "train_on_a_folder":
        assert (tmp_path / "samples.png").stat().st_size > 100
    elif name == "own_network":
        assert "the same samples: True" in text
    elif name == "own_data":
        (down, along), (down_other, along_other) = (
            map(float, found) for found in re.findall(r"([\d.]+) down.* ([\d.]+) along", text)
        )
        assert down > 1.5 * along and along_other > 1.5 * down_other
    elif name == "own_sampler":
        errors = [tuple(map(float, found)) for found in re.findall(r"midpoint ([\d.]+), DDIM ([\d.]+)", text)]
        assert len(errors) == 4 and all(mine < ddim for mine, ddim in errors)
        # second order against first: halving the steps divides the errors by about 4 and 2
        assert errors[2][0] / errors[3][0] > 3.0 and errors[2][1] / errors[3][1] < 2.6
    else:
        assert float(re.findall(r"predicted noise: (\S+)", text)[0]) < 1e-4 and "Model(" in text


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # beside other tests
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'sfumato[docs]'")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_notebooks_are_stored_without_what_they_printed() -> None:
    root = EXAMPLES.parent
    for path in (*EXAMPLES.glob("*.ipynb"), *(root / "docs").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path
