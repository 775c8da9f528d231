"""What the README shows is run: its Python, its commands, and (slow) its main job with the numbers it claims."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfumato
from sfumato.cli import main
from sfumato.run import train
from tests.training.tiny import flags, tiny

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line for _, text in BLOCKS for line in text.splitlines() if line.startswith("sfumato ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with what the README speaks of: a run, a folder of images, arrays."""
    place = tmp_path_factory.mktemp("readme")
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        folder = place / "path/to/folder" / name
        folder.mkdir(parents=True)
        for i in range(8):
            Image.fromarray(generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    np.savez(place / "images.npz", images=generator.integers(0, 255, (20, 16, 16, 3), dtype=np.uint8))
    np.save(place / "signals.npy", generator.uniform(-1, 1, (20, 2, 32)).astype(np.float32))
    Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(place / "seven.png")
    Image.fromarray(np.array([[255], [0]], dtype=np.uint8).repeat(4, axis=0).repeat(8, axis=1)).save(place / "mask.png")
    train(tiny(data={"labels": True}, evaluation={"samples": 50}), run=place / "runs/digits")
    return place


def test_the_readme_has_what_is_run_here() -> None:
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 10
    assert README.count("```\npip install -e . && sfumato train\n```") == 1
    assert README.count('```\npip install -e ".[dev]" && python -m pytest\n```') == 1
    for path in re.findall(r'src="([^"]+)"', README) + re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / path).exists(), path


def test_the_python_of_the_readme_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    for block in PYTHON:
        # the same code, on a run small enough for a test
        exec(
            block.replace("digits().model_dump()", "tiny().model_dump()").replace("500", "3"),
            {**globals(), **names},
            names,
        )
    images = names["images"]
    assert tuple(images.shape) == (64, 1, 8, 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_readme_run(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "datasets", None)
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "train" and "--resume" not in words:
        extra = [word for word in flags(steps=2) if word != "--data.no-labels"]
        where = [] if "--run" in words else ["--run", "runs/mine"]
        words += [*extra, "--overwrite", *where, "--model.network.attention", "1"]
    if words[0] == "sample" and "250" in words:
        words[words.index("250")] = "3"
    with pytest.raises(SystemExit) as exit_:
        main(words)
    said = capsys.readouterr()
    if "hf:" in line:
        assert exit_.value.code == 2 and 'pip install "sfumato[hf]"' in said.err
    else:
        assert not exit_.value.code, said.err


@pytest.mark.slow
def test_the_main_job_keeps_its_word(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "sfumato", "train"], cwd=tmp_path, check=True)
    run = tmp_path / "runs/digits"
    found = json.loads((run / "evaluation.json").read_text())
    assert found["samples"] == 1000 and found["train"] == 1000 and found["heldout"] == 797
    assert found["spaces"]["classifier"]["frechet_ratio"] < 2.0
    assert found["spaces"]["pixels"]["neighbour_ratio"] > 0.95
    assert found["spaces"]["classifier"]["neighbour_ratio"] > 0.95
    assert len(list((run / "samples").glob("*.png"))) == 3
    assert sfumato.load(run).sample(2).shape == (2, 1, 8, 8)
