"""``sfumato upscale``: pictures of all kinds, and what is said of those that are none."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import sfumato
from sfumato.config import SamplingConfig, parse
from sfumato.io.images import to_uint8
from tests.cli.command import run
from tests.facts import read_facts
from tests.models.test_upscale import model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of super-resolution, x4 from 4x4 to 16x16, with random weights."""
    folder = tmp_path_factory.mktemp("runs") / "photos"
    sfumato.save(model(noise=0.5), folder)
    return str(folder)


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def upscale(run_folder: str, *arguments: str | Path) -> int:
    return run("upscale", *map(str, arguments), "--model", run_folder, "--device", "cpu")


def test_a_picture_becomes_what_python_makes_of_it(
    run_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = noise(5, 4, 3)
    path = tmp_path / "photo.jpg.png"
    Image.fromarray(array).save(path)
    assert upscale(run_folder, "--steps", "2", path, "--seed", "3", "--index", "2", "--input-noise", "0.25") == 0
    out = tmp_path / "photo.jpg-x4.png"
    assert f"4x5 -> 16x20: {out}" in capsys.readouterr().out
    values = torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1
    expected = sfumato.upscale(sfumato.load(run_folder), values, steps=2, seed=3, index=2, input_noise=0.25)
    found = torch.from_numpy(np.asarray(Image.open(out)).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    assert (found - expected).abs().max() < 0.51 / 127.5
    facts = read_facts(out)
    assert facts is not None
    assert {
        "seed": 3,
        "index": 2,
        "steps": 2,
        "scale": 4,
        "input_noise": 0.25,
        "model": run_folder,
    }.items() <= facts.items()
    assert facts["picture"] == path.name and facts["sampler"] == "best" and facts["guidance"] == 1.0
    # a name that nobody chose is not replaced
    assert upscale(run_folder, path, "--steps", "1", "--count", "2") == 0
    assert upscale(run_folder, path, "--steps", "1") == 0
    names = {"photo.jpg-x4.png", "photo.jpg-x4-0.png", "photo.jpg-x4-1.png", "photo.jpg-x4-2.png"}
    assert {p.name for p in tmp_path.glob("*-x4*")} == names
    assert (read_facts(tmp_path / "photo.jpg-x4-1.png") or {})["index"] == 1


@pytest.mark.filterwarnings("ignore:This network has GroupNorm")
def test_the_facts_of_a_picture_make_it_again(run_folder: str, tmp_path: Path) -> None:
    array = noise(9, 7, 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    how = "--steps 3 --seed 5 --index 1 --tile 6 --overlap 2 --sampler ddim --sampler.eta 1 --guidance.consistent False"
    assert upscale(run_folder, tmp_path / "a.png", *how.split()) == 0
    out = tmp_path / "a-x4.png"
    facts = read_facts(out)
    assert facts is not None
    values = torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1
    same = {name: facts[name] for name in ("scale", "seed", "index", "tile", "overlap")}
    sampling = parse(SamplingConfig, facts["settings"])
    again = sfumato.upscale(sfumato.load(facts["model"]), values, sampling=sampling, **same)
    assert np.array_equal(to_uint8(again[None])[0], np.asarray(Image.open(out)))


def test_pictures_of_one_name_do_not_replace_each_other(run_folder: str, tmp_path: Path) -> None:
    out = tmp_path / "large"
    paths = [tmp_path / name for name in ("one/a.png", "two/a.png", "two/a.bmp")]
    for width, path in enumerate(paths, 2):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(3, width, 3)).save(path)
    for _ in range(2):
        assert upscale(run_folder, *paths, "--steps", "1", "--out", out, "--overwrite") == 0
        assert {p.name: Image.open(p).width for p in out.iterdir()} == {
            "a-x4.png": 8,
            "a-x4-2.png": 12,
            "a-x4-3.png": 16,
        }


def kinds(folder: Path) -> dict[str, tuple[Path, str, tuple[int, int]]]:
    """Pictures of each kind, with the mode and the size of their enlargement."""
    rgb, grey = Image.fromarray(noise(6, 5, 3)), Image.fromarray(noise(6, 5))
    alpha = Image.fromarray(noise(6, 5, 4))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    made: dict[str, tuple[Any, str, dict[str, Any], str, tuple[int, int]]] = {
        "rgb": (rgb, "png", {}, "RGB", (20, 24)),
        "grey": (grey, "png", {}, "L", (20, 24)),
        "alpha": (alpha, "png", {}, "RGBA", (20, 24)),
        "greyalpha": (alpha.convert("LA"), "png", {}, "LA", (20, 24)),
        "palette": (rgb.quantize(8), "png", {}, "RGB", (20, 24)),
        "gif": (grey, "gif", {}, "RGB", (20, 24)),
        "cmyk": (rgb.convert("CMYK"), "jpg", {}, "RGB", (20, 24)),
        "deep": (Image.fromarray(noise(6, 5).astype(np.uint16) * 257), "png", {}, "I;16", (20, 24)),
        "turned": (rgb, "jpg", {"exif": exif}, "RGB", (24, 20)),
        "webp": (rgb, "webp", {}, "RGB", (20, 24)),
        "one": (Image.fromarray(noise(1, 1, 3)), "png", {}, "RGB", (4, 4)),
    }
    found: dict[str, tuple[Path, str, tuple[int, int]]] = {}
    for name, (image, suffix, options, mode, size) in made.items():
        image.save(folder / f"{name}.{suffix}", **options)
        found[name] = folder / f"{name}.{suffix}", mode, size
    return found


@pytest.mark.filterwarnings("always::sfumato.errors.SfumatoWarning")
def test_pictures_of_every_kind(run_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, out = kinds(tmp_path), tmp_path / "large"
    paths = [path for path, _, _ in pictures.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert upscale(run_folder, *paths, "--steps", "1", "--out", out) == 0
    assert "colours in CMYK" in capsys.readouterr().err
    for name, (_, mode, size) in pictures.items():
        with Image.open(out / f"{name}-x4.png") as image:
            assert (image.mode, image.size) == (mode, size) and ExifTags.Base.Orientation not in image.getexif()


def test_one_that_cannot_be_read_does_not_stop_the_others(
    run_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise(3, 3, 3)).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    assert upscale(run_folder, tmp_path / "a.png", tmp_path / "b.png", "--steps", "1") == 1
    said = capsys.readouterr().err
    assert "Could not read" in said and "1 of 2 pictures" in said and "Traceback" not in said
    assert (tmp_path / "b-x4.png").exists()
    assert upscale(run_folder, tmp_path / "a.png", "--steps", "1") == 2
    assert upscale(run_folder, tmp_path / "c.png", "--steps", "1") == 2


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_formats(run_folder: str, tmp_path: Path, suffix: str) -> None:
    Image.fromarray(noise(3, 4, 3)).save(tmp_path / "a.png")
    out = tmp_path / f"out.{suffix}"
    assert upscale(run_folder, tmp_path / "a.png", "--steps", "1", "--out", out, "--scale", "16") == 0
    assert Image.open(out).size == (64, 48) and (read_facts(out) or {})["scale"] == 16


def test_a_panel(run_folder: str, tmp_path: Path) -> None:
    Image.fromarray(noise(6, 6, 3)).save(tmp_path / "a.png")
    Image.fromarray(noise(24, 24, 3)).save(tmp_path / "truth.png")
    more = ["--count", "2", "--regression", run_folder, "--truth", str(tmp_path / "truth.png")]
    assert upscale(run_folder, tmp_path / "a.png", "--steps", "1", "--panel", tmp_path / "p.png", *more) == 0
    assert Image.open(tmp_path / "p.png").width > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--scale 3", "can't reach a scale of 3"),
        ("--input-noise 0.9", "input_noise is 0.9"),
        ("--tile -2", "numbers of pixels"),
        ("--count 0", "at least one sample"),
        ("--out x.gif", "written as .png, .jpg"),
        ("--out x.png --count 2", "name a folder"),
        ("--truth a.png", "--panel FILE.png"),
        ("--panel x.svg", "written as .png"),
        ("--sampler.kind eluer", "sampler.kind is 'eluer'"),
        ("--stepz 3", "did you mean --steps?"),
        ("--low-resolution x.png", "There is no option"),
        ("--out a.png", "already exists"),
        ("--out plain", "got the file plain"),
        ("--panel p.png --truth a.png", "The truth has 3x3 pixels"),
        ("--panel p.png --regression nowhere", "no run directory nowhere"),
    ],
)
def test_upscale_refuses(
    run_folder: str,
    tmp_path: Path,
    arguments: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    unchecked: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise(3, 3, 3)).save("a.png")
    Path("plain").touch()
    assert upscale(run_folder, "a.png", *arguments.split()) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "plain"]


def test_sides_that_a_format_does_not_hold_are_said_before_the_work(
    run_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("sfumato.models.upscale.upscale", never)
    Image.fromarray(noise(1, 4097, 3)).save(tmp_path / "a.png")
    assert upscale(run_folder, tmp_path / "a.png", "--out", tmp_path / "a.webp") == 2
    assert "at most 16383 pixels" in capsys.readouterr().err
    assert upscale(run_folder) == 2
    assert "Name a picture" in capsys.readouterr().err


def test_a_model_of_something_else_and_none_at_all(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise(3, 3, 3)).save(tmp_path / "a.png")
    assert run("upscale", str(tmp_path / "a.png"), "--model", trained) == 2
    assert "a model of super-resolution" in capsys.readouterr().err
    assert run("upscale", "--help") == 0
    said = capsys.readouterr().out
    assert "--tile" in said and "PICTURE" in said and "--guidance.consistent" in said


def test_samples_say_how_they_were_made(trained: str, tmp_path: Path) -> None:
    made = ["sample", trained, "--count", "3", "--seed", "5", "--first", "2", "--label", "7", "--steps", "2"]
    assert run(*made, "--out", str(tmp_path / "grid.png")) == 0
    assert run(*made, "--out", str(tmp_path / "each")) == 0
    grid, one = read_facts(tmp_path / "grid.png"), read_facts(tmp_path / "each" / "000003.png")
    assert grid is not None and one is not None
    same = {"model": trained, "seed": 5, "steps": 2, "label": "7", "guidance": 1.0}
    assert {**same, "first": 2, "count": 3}.items() <= grid.items()
    assert {**same, "index": 3}.items() <= one.items() and "count" not in one
