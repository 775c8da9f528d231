"""``sfumato generate``: grids, single pictures, and pictures that are made again."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato import pretrained
from sfumato.cli import prompts as prompt_files
from sfumato.io.images import grid, to_uint8
from sfumato.io.lettering import captioned
from sfumato.io.pictures import read_facts
from tests.cli.command import run
from tests.painters import painted, system

ASKED = ("a red circle", "a green square", "white")


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return painted(tmp_path_factory.mktemp("runs") / "painter", 8)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> str:
    return system(tmp_path_factory.mktemp("systems") / "painter")


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


def test_a_grid_has_a_row_per_prompt_and_says_how_it_was_made(painter: str, tmp_path: Path) -> None:
    out, again, other = (tmp_path / f"{name}.png" for name in ("grid", "again", "other"))
    asked = ("--count", "3", "--first", "2", "--seed", "7", "--guidance.scale", "2", "--batch-size", "4")
    assert run("generate", *ASKED, "--model", painter, *asked, "--out", str(out)) == 0
    images = sfumato.load(painter).generate(ASKED, count=3, first=2, seed=7, guidance=2.0, progress=False, batch_size=4)
    found = pixels(out)
    rows = [np.asarray(grid(part, 3, 128)) for part in images.split(3)]
    height, width, _ = rows[0].shape
    # 8 pixels are enlarged to 128, by a whole factor; three rows at the right, captions at the left
    assert height > 128 and found.shape[0] > 3 * height and found.shape[1] > width
    places = [y for y in range(len(found) - height + 1) if np.array_equal(found[y : y + height, -width:], rows[1])]
    assert len(places) == 1
    assert int(found[places[0] : places[0] + height, : found.shape[1] - width].min()) < 100
    facts = read_facts(out)
    assert facts["prompts"] == list(ASKED) and (facts["seed"], facts["first"], facts["count"]) == (7, 2, 3)
    assert facts["model"] == painter and facts["step"] == 2 and facts["sfumato"] == sfumato.__version__
    assert facts["settings"]["guidance"]["scale"] == 2.0 and facts["settings"]["batch_size"] == 4
    assert facts["fingerprint"] == {"model": sfumato.load(painter).fingerprint}
    assert run("generate", "--like", str(out), "--out", str(again)) == 0
    assert again.read_bytes() == out.read_bytes()
    # only what is said is changed
    assert run("generate", "--like", str(out), "--steps", "2", "--out", str(other)) == 0
    new = read_facts(other)
    assert not np.array_equal(pixels(other), found)
    assert {key for key in facts if facts[key] != new[key]} == {"steps", "settings"}
    assert {key for key in facts["settings"] if facts["settings"][key] != new["settings"][key]} == {"steps"}


def test_single_pictures_are_made_again_bit_for_bit(cascade: str, tmp_path: Path) -> None:
    folder, one = tmp_path / "many", tmp_path / "one.png"
    how = ("--count", "2", "--seed", "4", "--guidance.scale", "2", "--base.steps", "2", "--base.guidance.scale", "3")
    assert run("generate", *ASKED, "--model", cascade, *how, "--batch-size", "5", "--out", str(folder)) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names[:3] == ["0001-a-red-circle-4-0.png", "0001-a-red-circle-4-1.png", "0002-a-green-square-4-0.png"]
    assert len(names) == 6
    guided = {"steps": 2, "guidance": 3.0}
    images = sfumato.load(cascade).generate(
        ASKED, count=2, seed=4, guidance=2.0, base=guided, batch_size=5, progress=False
    )
    for name, image in zip(names, to_uint8(images), strict=True):
        assert np.array_equal(pixels(folder / name), image)
    # the shorter prompt was padded to the longer one beside it; the last stood in a batch of its own
    for name in (names[1], names[2], names[5]):
        assert run("generate", "--like", str(folder / name), "--out", str(one), "--overwrite") == 0
        assert one.read_bytes() == (folder / name).read_bytes()
    facts = read_facts(folder / names[1])
    assert facts["settings"]["base"]["guidance"]["scale"] == 3.0 and set(facts["fingerprint"]) == {"base", "up"}
    assert (facts["prompt"], facts["index"], facts["seed"]) == (ASKED[0], 1, 4)
    assert run("generate", "--like", str(folder / names[1]), "--base.steps", "3", "--out", str(one), "--overwrite") == 0
    new = read_facts(one)
    assert new["settings"]["base"]["steps"] == 3 and not np.array_equal(pixels(one), pixels(folder / names[1]))
    assert {key for key in facts if facts[key] != new[key]} == {"settings"}
    # a folder is added to, and nothing in it is replaced
    assert run("generate", "blue", "--model", cascade, "--out", str(folder)) == 0
    assert len(list(folder.iterdir())) == 10
    assert run("generate", *ASKED, "--model", cascade, "--seed", "4", "--out", str(folder)) == 2


@pytest.mark.filterwarnings("default::sfumato.errors.SfumatoWarning")
def test_other_weights_are_refused_unless_they_are_named(
    painter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, picture = tmp_path / "run", tmp_path / "x.png"
    shutil.copytree(painter, here)
    assert run("generate", "red", "--count", "1", "--model", str(here), "--out", str(picture)) == 0
    model = sfumato.load(here)
    with torch.no_grad():
        next(model.module.parameters()).mul_(1.5)
    sfumato.save(model, here, overwrite=True)
    assert run("generate", "--like", str(picture)) == 2
    assert "holds other weights" in capsys.readouterr().err
    assert run("generate", "--like", str(picture), "--model", str(here)) == 0
    assert "the pictures differ" in capsys.readouterr().err
    assert (here / "samples" / "red-seed-0.png").is_file()
    assert run("generate", "--like", str(picture), "--model", painter, "--out", str(tmp_path / "y.png")) == 0
    assert np.array_equal(pixels(tmp_path / "y.png"), pixels(picture))
    shutil.rmtree(here)
    assert run("generate", "--like", str(picture)) == 2
    assert "is not here; say where it is" in capsys.readouterr().err


def test_what_a_picture_says_is_not_trusted(painter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sfumato.io.images import save_png

    facts: dict[str, Any] = {"seed": 0, "prompt": "red", "index": 0, "model": painter}
    bad = tmp_path / "bad.png"
    save_png(Image.new("L", (8, 8)), bad, {**facts, "settings": {"sampler": {"kind": "os:system"}}})
    assert run("generate", "--like", str(bad)) == 2
    assert "os:system" in capsys.readouterr().err
    Image.new("L", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "none.png").write_text("no picture")
    save_png(Image.new("L", (8, 8)), tmp_path / "sample.png", {"seed": 0, "model": painter, "settings": {}})
    for name, words in (("plain", "does not say how"), ("none", "Could not read"), ("sample", "was not made by")):
        assert run("generate", "--like", str(tmp_path / f"{name}.png")) == 2
        assert words in capsys.readouterr().err


def test_prompts_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_bytes("\ufeffa red circle\r\n\n  white \n".encode())
    assert prompt_files.read_prompts(text) == ["a red circle", "white"]
    entries = [{"prompt": "one", "text": "no"}, {"text": "two"}, {"caption": "drei\u2028vier"}]
    lines.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), "utf-8")
    assert prompt_files.read_prompts(lines) == ["one", "two", "drei\u2028vier"]
    for content, expected in ((b"x\ny", ["x", "y"]), (b'{"text": "z"}', ["z"])):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert prompt_files.read_prompts(Path("-")) == expected
    assert prompt_files.slug("A red circle, left of … 'it'!") == "a-red-circle-left-of-it"
    assert prompt_files.slug("नीला circle") == "नीला-circle"
    assert prompt_files.slug("😀") == "prompt" and len(prompt_files.slug("x" * 500)) == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Say what to draw"),
        (["red", "--prompts", "FILE"], "leave --prompts or the words out"),
        (["--prompts", "FILE.csv"], "one per line, or a .jsonl"),
        (["--prompts", "missing.txt"], "missing.txt can't be read"),
        (["--prompts", "empty.txt"], "holds no prompts"),
        (["--prompts", "bad.jsonl"], "line 2 has none of prompt, text, caption"),
        (["--prompts", "latin.txt"], "not UTF-8"),
        (["--prompts", "many.txt"], "65 prompts has 65 rows, and 64 is the most"),
        (["red", ""], "Prompt 2 of 2 is empty"),
        (["red", "--count", "0"], "count is 0"),
        (["red", "--out", "x.gif"], "one .png or into a folder"),
        (["red", "--out", "taken.png"], "already exists"),
        (["😀"], "no word of the caption"),
        (["red", "--guidance.scael", "3"], "--guidance.scale"),
    ],
)
def test_wrong_requests_in_words(
    painter: str,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("bad.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    Path("many.txt").write_text("\n".join(f"red {i}" for i in range(65)))
    Path("taken.png").write_text("")
    assert run("generate", *arguments, "--model", painter) == 2
    assert words in capsys.readouterr().err
    assert Path("taken.png").read_text() == ""


@pytest.mark.filterwarnings("default")
def test_unknown_words_are_one_line_each(painter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("a purple circle", "a circle of mauve", "red")
    assert run("generate", *asked, "--model", painter, "--count", "1", "--out", str(tmp_path / "x.png")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "'purple'" in lines[0] and "'of', 'mauve'" in lines[1]


@pytest.mark.filterwarnings("default")
def test_models_that_draw_nothing_yet(
    painter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(pretrained.SAID, "shapes", raising=False)
    assert run("generate", "red") == 2
    assert "no included model 'shapes'" in capsys.readouterr().err
    early = tmp_path / "early"
    shutil.copytree(painter, early)
    config = json.loads((early / "config.json").read_text())
    config["config"]["training"]["steps"] = 1000
    (early / "config.json").write_text(json.dumps(config))
    assert run("generate", "red", "--model", "early") == 2
    assert "early was hardly trained, 2 of 1,000 steps" in (said := capsys.readouterr().err) and "--untrained" in said
    assert run("generate", "red", "--model", "early", "--untrained") == 0
    assert run("sample", "early", "--count", "1") == 0
    assert "hardly trained" in capsys.readouterr().err


def test_a_model_that_comes_along(painter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    shutil.copytree(painter, package / "shapes")
    monkeypatch.setattr(pretrained, "__file__", str(package / "__init__.py"))
    monkeypatch.setitem(pretrained.SAID, "shapes", "shapes")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run("generate", "a red circle", "--count", "1") == 0
    first, second = Path("a-red-circle-seed-0.png"), Path("a-red-circle-seed-0-2.png")
    assert np.array_equal(pixels(first), pixels(second)) and read_facts(first)["model"] == "sfumato:shapes"
    # wherever the package is then
    monkeypatch.setattr(pretrained, "__file__", str((package.rename(tmp_path / "moved")) / "__init__.py"))
    assert run("generate", "--like", str(first), "--out", "again.png") == 0
    assert Path("again.png").read_bytes() == first.read_bytes()


def test_captions_take_turns_in_samples(painter: str, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    assert run("sample", painter, "--text", "a red circle", "white", "--count", "4", "--out", str(out)) == 0
    expected = sfumato.load(painter).sample(4, text=["a red circle", "white"] * 2, progress=False)
    assert torch.allclose(torch.from_numpy(np.load(out)["images"]), expected, atol=1e-6)
    # one that is too long for the name of a file is a caption, and what is a run is no caption
    long = ("--text", "a red circle " * 21, "white", painter)
    assert run("sample", *long, "--count", "2", "--out", str(out), "--overwrite") == 0


def test_captions_beside_grids() -> None:
    sheet = Image.new("RGB", (130, 130))
    long = "a small red circle left of a large blue square and much more " * 9
    for caption in ("red", "😀 漢字", long, "x" * 300):
        found = captioned([sheet, sheet], [caption, "white"], above=["index 0"])
        left = found.width - 130
        assert found.mode == "RGB" and 0 < left < 280
        assert int(np.asarray(found)[21:151, :left].min()) < 100 and np.array_equal(
            np.asarray(found)[21:151, left:], sheet
        )
