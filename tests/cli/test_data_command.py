"""sfumato data: what is printed of every kind of data, and the contact sheet."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures in two classes, 19 with captions, of which 4 are distinct; a list that names one more."""
    folder, lines = tmp_path / "pictures", []
    for i in range(20):
        name = f"{'cat' if i < 12 else 'dog'}/{i:02d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 4, 3), 12 * i, dtype=np.uint8)).save(folder / name)
        lines.append({"file_name": name, "text": " ".join(["grün"] * (i % 4 + 1))})
    lines[7]["file_name"] = "cat/lost.png"
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "notes.txt").write_text("no caption")
    return folder


def understood(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run("data", *arguments, "--json") == 0
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def test_a_folder(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = (str(pictures), "--data.cache", str(tmp_path / "cache"))
    facts = understood(capsys, *where)
    assert facts["kind"] == "a folder of pictures" and facts["count"] == 20 and facts["shape"] == [3, 6, 4]
    assert facts["channels"] == "rgb" and facts["range"] == pytest.approx([-1.0, 228 / 127.5 - 1.0])
    assert facts["mean"] == pytest.approx(114 / 127.5 - 1.0)
    assert facts["classes"] == {"label": {"cat": 12, "dog": 8}}
    captions = facts["captions"]["caption"]
    assert captions["count"] == 19 and captions["without"] == 1 and captions["distinct"] == 4
    assert captions["words"] == [1, 2, 4] and captions["longest"] == len("grün grün grün grün")
    assert captions["examples"] == [" ".join(["grün"] * n) for n in (1, 2, 3, 4)]
    assert facts["train"] == 18 and facts["heldout"] == 2
    said = " ".join(facts["passed_over"])
    assert "notes.txt" in said and "cat/lost.png" in said and "cat/07.png" in said and "captions.jsonl (" not in said
    assert len(facts["passed_over"]) == 3


def test_in_words(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--data.cache", str(tmp_path / "cache"), "--data.size", "8", "--data.holdout", "5")
    assert run("data", str(pictures), *options) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "20 of 3x8x8, rgb",
        "2: cat (12), dog (8)",
        "19 for 20 images, 4 distinct; 1 to 4 words, median 2; the longest has 19 characters",
        "“grün grün”",
        "held out 5; 15 to train on",
        "skipped",
    ):
        assert words in said


def test_the_options_of_data_are_those_of_train(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    facts = understood(
        capsys, str(pictures), "--data.cache", str(tmp_path), "--data.channels", "grey", "--data.random-crop", "4"
    )
    assert facts["shape"] == [1, 6, 4] and facts["trained_shape"] == [1, 4, 4]
    facts = understood(capsys, str(pictures), "--data.cache", str(tmp_path), "--data.holdout", "20")
    assert facts["heldout"] is None and "leaves nothing to train on" in facts["not_split"]


def test_arrays_and_named_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = understood(capsys)
    assert facts["source"] == "digits" and facts["count"] == 1797 and not facts["captions"]
    assert sum(facts["classes"]["label"].values()) == 1797 and len(facts["classes"]["label"]) == 10
    vectors = np.random.default_rng(0).normal(size=(30, 2))
    np.save(tmp_path / "v.npy", vectors)
    facts = understood(capsys, str(tmp_path / "v.npy"), "--data.layout", "NC", "--out", str(tmp_path / "v.png"))
    assert facts["shape"] == [2] and facts["channels"] is None and (tmp_path / "v.png").is_file()
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 1, 8, 8), np.uint8) + 200, caption=np.array(["a", "b c", "", "a"]))
    facts = understood(capsys, str(tmp_path / "x.npz"))
    assert facts["kind"] == "an array in a file"
    assert facts["captions"]["caption"] | {"examples": 0} == {
        "count": 3, "without": 1, "distinct": 2, "words": [1, 1, 2], "longest": 3, "examples": 0
    }  # fmt: skip


def test_the_contact_sheet(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheets" / "sheet.png"
    command = ("data", str(pictures), "--data.cache", str(tmp_path / "cache"), "--out", str(sheet), "--count", "2")
    assert run(*command) == 0
    assert str(sheet) in capsys.readouterr().out
    with Image.open(sheet) as image:
        facts, pixels = json.loads(image.text["sfumato"]), np.asarray(image.convert("RGB")).astype(int)
    assert facts["rows"] == [0, 19]
    # the first and the last picture stand side by side, 128 wide and 192 high, with words below in black on white
    size, step = (192, 128), 140
    for i, grey in enumerate((0, 228)):
        assert (pixels[6 : 6 + size[0], 6 + i * step : 6 + i * step + size[1]] == grey).all()
    below = pixels[6 + size[0] :]
    assert (below[:, :step] < 100).any() and (below[:, step:] < 100).any() and (below[-1] == 255).all()
    assert run(*command) == 2 and "already exists" in capsys.readouterr().err
    assert run(*command, "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "sheet.jpg"), "written as .png"),
        (("--count", "0"), "at least 1 image"),
        (("nowhere",), "neither a known name nor a file"),
        (("--data.sizes", "8"), "no option --data.sizes; did you mean --data.size"),
        (("--data.source", "digits"), "no option --data.source"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", *arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and not said.out


def test_wrong_captions_are_refused(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "captions.jsonl").write_text("{")
    assert run("data", str(pictures), "--data.cache", str(tmp_path)) == 2
    assert "line 1" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom sfumato.cli import main\n"
        "try: main(['data', '--help'])\nexcept SystemExit as e: assert not e.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "--data.size" in done.stdout
