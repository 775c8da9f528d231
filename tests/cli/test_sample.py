"""Commands on a trained run: sample, evaluate, info."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli.commands import with_sampling
from sfumato.config import KINDS, EvaluationConfig
from tests.cli.command import run
from tests.training.tiny import flags

FITTED = ("optimal", "fitted")


def test_sample(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, array, folder = tmp_path / "x.png", tmp_path / "x.npz", tmp_path / "many"
    assert run("sample", trained, "--count", "5", "--seed", "3", "--out", str(array)) == 0
    assert run("sample", trained, "--count", "5", "--seed", "3", "--out", str(grid)) == 0
    assert run("sample", trained, "--count", "2", "--seed", "3", "--first", "3", "--out", str(folder)) == 0
    assert run("sample", trained, "--count", "3", "--label", "7", "--sampler.kind", "ancestral", "--steps", "4") == 0
    images = np.load(array)["images"]
    assert images.shape == (5, 1, 8, 8) and np.abs(images).max() <= 1.0
    assert sorted(path.name for path in folder.iterdir()) == ["000003.png", "000004.png"]
    one = np.asarray(Image.open(folder / "000003.png"), dtype=float)
    assert np.abs(one - (images[3, 0] + 1) * 127.5).max() <= 1.0
    assert Image.open(grid).size[0] > 3 * 48
    assert list((Path(trained) / "samples").glob("seed-0-0-2.png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--count 0", "at least 1 image"),
        ("--count -3", "at least 1 image"),
        ("--steps 0", "steps is 0"),
        ("--sampler.kind eluer", "did you mean"),
        ("--sampler.kind ddim --sampler.eta 2", "eta of DDIM"),
        ("--label eleven", "There is no class 'eleven'"),
        ("--label ²", "There is no class"),
        ("--device nowhere", "There is no device 'nowhere'"),
        ("--first 9999999999999999999", "0 to 2^40"),
        ("--first -1", "first image from 0"),
        ("--label 10", "0 to 9"),
        ("--out x.jpg", "written as .png, .npz"),
        ("--grid.sigma-max 1e9", "can't start"),
        ("--sed 3", "did you mean --seed?"),
        ("--guidance.scale 2", "conditions.label.drop 0 and knows no null condition"),
        ("--guidance.scale -1", "guidance.scale is -1.0"),
        ("--guidance.scale 2 --guidance.weak-run nowhere", "There is no run directory nowhere"),
        ("--animation x.mp4", "written as .gif or .webp"),
        ("--animation-x0", "name one"),
        ("--animation x.gif --count 501", "An animation shows one batch"),
    ],
)
def test_sample_refuses(
    trained: str, arguments: str, words: str, capsys: pytest.CaptureFixture[str], unchecked: None
) -> None:
    if "eluer" in arguments:
        words = "sampler.kind is 'eluer'"
    assert run("sample", trained, *arguments.split()) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


GRIDS: dict[str, list[str]] = {
    "list": ["--grid.sigmas", "10", "5", "1"],
    "karras": ["--grid.sigma-max", "5"],
    "log_snr": ["--grid.sigma-max", "5"],
}


@pytest.mark.parametrize("kind", KINDS["grid"])
def test_every_grid_can_be_asked_for(kind: str, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--grid.kind", kind, *GRIDS.get(kind, [])]
    _, sampling, _ = with_sampling("sfumato sample", [trained, *asked], {}, "")
    assert sampling.grid.kind == kind
    code = run("sample", trained, "--count", "1", "--steps", "3", "--sampler.kind", "ddim", *asked)
    # what is fitted to a model, or of a table of betas, is asked for in words
    refused = {**dict.fromkeys(FITTED, "sfumato tune"), "timesteps": "table of betas"}.get(kind)
    said = capsys.readouterr().err
    assert (code, refused is not None and refused in said) == ((0, False) if refused is None else (2, True))


@pytest.mark.parametrize("kind", KINDS["sampler"])
def test_every_sampler_can_be_asked_for(kind: str, trained: str) -> None:
    asked = ["--sampler.kind", kind, *(["--grid.kind", "fitted"] if kind == "fitted" else [])]
    _, sampling, _ = with_sampling("sfumato sample", [trained, *asked], {}, "")
    assert sampling.sampler.kind == kind


def test_the_help_of_a_run_shows_its_defaults_and_the_options_of_a_kind(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", trained, "--sampler.kind", "unipc", "--help") == 0
    said = capsys.readouterr().out
    assert "--sampler.corrector" in said and "(default: 3)" in said and "--label" in said
    assert json.loads((Path(trained) / "config.json").read_text())["config"]["sampling"]["steps"] == 3
    assert run("sample", "--sampler", "unipc", "--steps", "2", trained, "--print-config") == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["sampler"]["kind"] == "unipc" and settings["steps"] == 2 and settings["grid"]["kind"] == "karras"


def test_a_solver_and_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from torch import nn\n\n"
        "class Network(nn.Module):\n"
        '    """Mine.\n\n    Args:\n        width: how wide it is.\n    """\n'
        "    def __init__(self, inputs: int, outputs: int, width: int = 8):\n"
        "        super().__init__()\n"
        "        self.layers = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.Conv2d(width, outputs, 1))\n"
        "    def forward(self, x, time):\n"
        "        return self.layers(x)\n\n"
        "def step(denoise, x, t, s, memory, *, half: bool = False):\n"
        '    """Euler."""\n'
        "    return denoise(x, t).mix(s.alpha, s.sigma) * (0.5 if half else 1.0)\n"
    )
    options = [word for word in flags(steps=2) if "model.network" not in word]
    options = options[options.index("--sampling.steps") :]
    own = ["--model.network.kind", "mine:Network", "--model.network.width", "4"]
    assert run("train", *own, "--help") == 0
    assert "How wide it is" in capsys.readouterr().out
    assert run("train", *own, *options) == 0
    assert json.loads(Path("runs/digits/config.json").read_text())["config"]["model"]["network"]["width"] == 4
    assert run("sample", "runs/digits", "--count", "2") == 2
    assert "--trust" in capsys.readouterr().err
    assert run("train", "--resume", "runs/digits", "--training.steps", "3") == 2
    assert "--trust" in capsys.readouterr().err
    assert run("train", "--resume", "runs/digits", "--training.steps", "3", "--trust") == 0
    assert run("sample", "runs/digits", "--count", "2", "--trust", "--out", "a.npz", "--sampler", "ddim") == 0
    step = ["--sampler.kind", "mine:step"]
    assert run("sample", "--trust", *step, "runs/digits", "--count", "2", "--out", "b.npz") == 0
    a, b = (np.load(name)["images"] for name in ("a.npz", "b.npz"))
    assert np.abs(a - b).max() < 1e-5
    assert run("sample", "runs/digits", "--trust", *step, "--sampler.half", "--count", "2", "--out", "c.npz") == 0
    assert np.abs(np.load("c.npz")["images"] - b).max() > 0.01


def test_lists_of_levels(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.npz")
    found: list[np.ndarray] = []
    lists = (["--grid.sigmas", "5", "1", "0.2"], ["--grid.sigmas", "5", "1", "0.2", "0"])
    logs = ["--grid.log-snrs", *(str(-2.0 * np.log(sigma)) for sigma in (5.0, 1.0, 0.2))]
    for listed in (*lists, logs):
        asked = ["--count", "2", "--grid.kind", "list", *listed, "--steps", "3", "--out", out, "--overwrite"]
        assert run("sample", trained, *asked) == 0
        found.append(np.load(out)["images"])
    assert np.abs(found[0] - found[1]).max() == 0.0 and np.abs(found[0] - found[2]).max() < 1e-4
    assert run("sample", trained, "--grid.kind", "list", "--grid.times", "1", "0.6", "0.2", "--steps", "3") == 0
    for listed, words in (
        ([], "in one list: sigmas, times or log_snrs"),
        (["--grid.sigmas", "2", "--grid.times", "1"], "in one list"),
        (["--grid.sigmas", "3", "1", "0"], "lists 2 levels, which make as many steps; sampling.steps is 3"),
    ):
        capsys.readouterr()
        assert run("sample", trained, "--grid.kind", "list", *listed, "--steps", "3") == 2
        assert words in capsys.readouterr().err


def test_evaluate_and_info(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", trained, "--samples", "100", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["features"] for row in said["rows"]} == {"classifier", "pixels", None}
    assert said["counts"] == {"samples": 100, "training": 1000, "held-out": 797}
    assert (Path(trained) / "evaluation.json").exists()
    assert run("evaluate", trained, "--samples", "50", "--overwrite") == 0
    table = capsys.readouterr().out
    assert "FD" in table and "real pictures" in table and "FID" not in table
    assert run("info", trained) == 0
    said_info = capsys.readouterr().out
    assert "1000 images of 1x8x8, 797 held out" in said_info and "parameters" in said_info
    assert run("info", trained, "--settings", "all") == 0
    assert "optimizer.method.weight_decay" in capsys.readouterr().out
    assert run("evaluate", trained, "--samples", "1") == 2


@pytest.mark.filterwarnings("default")
def test_what_rests_on_more_images_is_kept(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation or a likelihood of few images does not replace one of many of the same weights, unless told to."""
    for command, file, many in (
        ("evaluate", "evaluation.json", ("--samples",)),
        ("likelihood", "likelihood.json", ("--steps", "4", "--what", "bound", "--images")),
    ):
        record = Path(trained) / file
        record.unlink(missing_ok=True)
        assert run(command, trained, *many, "12") == 0
        before = record.read_bytes()
        capsys.readouterr()
        assert run(command, trained, *many, "8") == 0
        said = capsys.readouterr()
        assert record.read_bytes() == before and said.out
        assert "rests on 12" in said.err and "these are 8" in said.err and "--overwrite" in said.err
        assert run(command, trained, *many, "8", "--overwrite") == 0 and record.read_bytes() != before
        assert not capsys.readouterr().err
        # of other weights it says nothing any more
        record.write_text(before.decode().replace('"step": 4', '"step": 3'))
        assert run(command, trained, *many, "8") == 0 and b'"step": 4' in record.read_bytes()


def test_no_grid_is_replaced_unasked(trained: str) -> None:
    """Two samplings that nobody named are two files, and the first is as it was."""
    folder = Path(trained) / "samples"
    asked = ("sample", trained, "--count", "2", "--seed", "77", "--steps", "2")
    assert run(*asked) == 0
    before = (folder / "seed-77-0-1.png").read_bytes()
    assert run(*asked, "--label", "3") == 0
    assert (folder / "seed-77-0-1.png").read_bytes() == before != (folder / "seed-77-0-1-2.png").read_bytes()
    assert run(*asked, "--label", "3", "--overwrite") == 0
    assert (folder / "seed-77-0-1.png").read_bytes() == (folder / "seed-77-0-1-2.png").read_bytes()
    assert len(list(folder.glob("seed-77-*"))) == 2


def test_evaluating_a_run_that_was_not_evaluated(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that asked for no evaluation gets the usual one when it is asked for now."""
    assert json.loads((Path(trained) / "config.json").read_text())["config"]["evaluation"]["samples"] == 0
    assert run("evaluate", trained, "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["samples"] == EvaluationConfig().samples
    assert run("evaluate", trained, "--samples", "0") == 2
    assert "at least" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_a_truncated_log_does_not_break_info(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = Path(trained) / "metrics.jsonl"
    log.write_text(log.read_text()[:-20] + "garbage}\n")
    (Path(trained) / "evaluation.json").write_text("{}")
    assert run("info", trained) == 0
    assert "evaluation.json is damaged" in capsys.readouterr().err
