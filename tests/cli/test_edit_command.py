"""``sfumato edit`` and ``sfumato sample --animation``: what they write, what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.runs.train import train
from tests.cli.command import run
from tests.training.tiny import LABELLED, tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    label = {"label": {**LABELLED["label"], "drop": 0.1}}
    train(tiny(conditions=label, training={"steps": 4}), run=folder)
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 8x8: something, a mask of its upper half, and a large one in colour."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.stack([pixels] * 3, 2)).resize((40, 30)).save(folder / "large.png")
    return folder


def test_inpaint(trained: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(files / "image.png"), "--mask", str(files / "mask.png"), "--count", "3", "--repeats", "2"]
    assert run("edit", trained, "inpaint", *asked, "--out", str(tmp_path / "x.npz"), "--guidance.scale", "2") == 0
    images = np.load(tmp_path / "x.npz")["images"]
    given = np.asarray(Image.open(files / "image.png")) / 127.5 - 1.0
    assert images.shape == (3, 1, 8, 8) and np.abs(images[:, 0, :4] - given[:4]).max() < 1e-5
    assert np.abs(images[:, 0, 4:] - given[4:]).max() > 0.1
    # the command and the run may stand either way; without a place, a picture in the run
    assert run("edit", "inpaint", trained, *asked) == 0
    assert str(Path(trained) / "samples" / "inpaint-image.png") in capsys.readouterr().out
    assert (Path(trained) / "samples" / "inpaint-image.png").exists()


def test_sdedit(trained: str, files: Path, tmp_path: Path) -> None:
    large = str(files / "large.png")
    out = tmp_path / "answers"
    assert run("edit", trained, "sdedit", large, "--fit", "--strength", "0.3", "--count", "2", "--out", str(out)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["000000.png", "000001.png"]


def test_invert(trained: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.npz")
    asked = [str(files / "image.png"), "--label", "3", "--steps", "30", "--out", out]
    assert run("edit", trained, "invert", *asked) == 0
    found = np.load(out)
    given = np.asarray(Image.open(files / "image.png")) / 127.5 - 1.0
    error = float(np.sqrt(np.mean((found["images"][0, 0] - given) ** 2)))
    assert f"RMS of reconstruction less image: {float(found['error'][0]):.4g} in 30 steps" in capsys.readouterr().out
    assert error == pytest.approx(float(found["error"][0]), rel=1e-3) and found["noise"].shape == (1, 1, 8, 8)


def test_interpolate(trained: str, tmp_path: Path) -> None:
    out = str(tmp_path / "x.npz")
    assert run("edit", trained, "interpolate", "--seeds", "3", "5", "--count", "4", "--label", "2", "--out", out) == 0
    images = np.load(out)["images"]
    for seed, image in ((3, images[0]), (5, images[-1])):
        one = str(tmp_path / f"one-{seed}.npz")
        assert run("sample", trained, "--count", "1", "--seed", str(seed), "--label", "2", "--out", one) == 0
        assert np.abs(np.load(one)["images"][0] - image).max() < 1e-4


def test_film(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, out, plain = tmp_path / "out.gif", tmp_path / "x.npz", tmp_path / "y.npz"
    asked = ["--count", "4", "--seed", "2", "--steps", "7"]
    assert run("sample", trained, *asked, "--animation", str(film), "--animation-x0", "--out", str(out)) == 0
    assert "8 frames" in capsys.readouterr().out
    with Image.open(film) as moving:
        assert moving.n_frames == 8 and moving.size[0] == 2 * moving.size[1]  # type: ignore[attr-defined]
    assert run("sample", trained, *asked, "--out", str(plain)) == 0
    assert np.abs(np.load(out)["images"] - np.load(plain)["images"]).max() < 1e-5
    capsys.readouterr()
    # of many steps, every n-th is shown, the first and the last among them
    assert run("sample", trained, "--count", "1", "--steps", "205", "--animation", str(tmp_path / "long.webp")) == 0
    assert "70 frames" in capsys.readouterr().out


def test_a_folder_never_mixes_runs(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten images, then four of another seed: no folder of four new and six old ones without a word."""
    out = tmp_path / "out"

    def sample(*arguments: str) -> int:
        return run("sample", trained, "--steps", "2", "--out", str(out), *arguments)

    def held() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(out.iterdir())}

    assert sample("--count", "10") == 0
    before = held()
    assert sample("--count", "4", "--seed", "1") == 2
    assert "10 images, of which 4 would be replaced, and 6 others would stay" in capsys.readouterr().err
    assert held() == before
    # the next ones of the same seed have numbers of their own
    assert sample("--count", "2", "--first", "10") == 0
    assert "2 images: " in (said := capsys.readouterr().out) and "beside 10 others" in said
    assert list(held()) == [f"{number:06d}.png" for number in range(12)]
    (out / "notes.txt").write_text("mine")
    assert sample("--count", "4", "--seed", "1", "--overwrite") == 0
    after = held()
    assert list(after) == [*(f"{number:06d}.png" for number in range(4)), "notes.txt"]
    assert all(after[name] != before[name] for name in list(after)[:4])


@pytest.mark.parametrize("name", ["x.png", "x.npz"])
def test_a_file_is_replaced_only_when_asked(trained: str, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    asked = ["sample", trained, "--steps", "2", "--count", "1", "--out", str(out)]
    assert run(*asked) == 0
    first = out.read_bytes()
    assert run(*asked, "--seed", "1") == 2 and out.read_bytes() == first
    assert run(*asked, "--seed", "1", "--overwrite") == 0 and out.read_bytes() != first
    film = ["--animation", str(tmp_path / "x.gif"), "--overwrite"]
    assert run(*asked, *film) == 0
    assert run(*asked[:-2], "--animation", str(tmp_path / "x.gif")) == 2


def test_masks_with_holes_and_deep_images(trained: str, files: Path, tmp_path: Path) -> None:
    given = np.asarray(Image.open(files / "image.png"))
    hole = np.dstack([given, given, given, np.where(np.arange(8) < 5, 255, 0) * np.ones((8, 1))]).astype(np.uint8)
    Image.fromarray(hole).save(tmp_path / "hole.png")
    Image.fromarray(given.astype(np.uint16) * 16).save(tmp_path / "deep.png")  # 12 bits
    out = str(tmp_path / "x.npz")
    asked = [
        "edit",
        trained,
        "inpaint",
        str(tmp_path / "deep.png"),
        "--mask",
        str(tmp_path / "hole.png"),
        "--count",
        "1",
    ]
    assert run(*asked, "--out", out) == 2  # what is white?
    assert run(*asked, "--out", out, "--value-range", "0", "4080", "--repeats", "1") == 0
    image = np.load(out)["images"][0, 0]
    assert np.abs(image[:, :5] - (given[:, :5] / 127.5 - 1.0)).max() < 1e-5
    assert np.abs(image[:, 5:] - (given[:, 5:] / 127.5 - 1.0)).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("inpaint IMAGE", "--mask MASK"),
        ("inpaint IMAGE --mask LARGE", "has shape 30x40, and the images have 8x8"),
        ("inpaint LARGE --mask MASK", "has shape 3x30x40, but this model needs 1x8x8; --fit"),
        ("inpaint IMAGE --mask MASK --out DIR", "cat.jpg"),
        ("inpaint IMAGE --mask MASK --overwrite --out DIR", "cat.jpg"),
        ("sdedit IMAGE --out DIR/cat.png", "already exists; choose another name, or replace it with --overwrite"),
        ("inpaint IMAGE --mask MASK --repeats 0", "at least 1 repetition"),
        ("inpaint nothing.png --mask MASK", "nothing.png: No such file or directory"),
        ("sdedit IMAGE --strength 0", "strength"),
        ("sdedit IMAGE --strength 1.5", "strength"),
        ("sdedit IMAGE --label eleven", "There is no class 'eleven'"),
        ("invert IMAGE --sampler.kind ancestral", "noise"),
        ("invert IMAGE --out x.jpg", "written as .png"),
        ("interpolate --seeds 1", "--seeds"),
        ("interpolate --count 1", "at least 2 images"),
        ("interpolate --seed 1", "did you mean --seeds?"),
        ("inpant IMAGE", "did you mean 'inpaint'?"),
        ("", "inpaint|sdedit|invert|interpolate"),
    ],
)
def test_edit_refuses(
    trained: str,
    files: Path,
    arguments: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    unchecked: None,
) -> None:
    for name in ("cat.jpg", "cat.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    for name in ("IMAGE", "MASK", "LARGE"):
        if words != "--mask MASK" or name == "IMAGE":
            arguments = arguments.replace(name, str(files / f"{name.lower()}.png"))
    arguments = arguments.replace("DIR", str(tmp_path))
    assert run("edit", trained, *arguments.split()) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
