"""The command line: what it says, what it costs, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.cli.commands import with_sampling
from sfumato.cli.flags import flag_fields
from sfumato.cli.flags import parse as parse_flags
from sfumato.config import KINDS, Config, EvaluationConfig, parse, walk
from sfumato.errors import SfumatoWarning
from sfumato.recipes.published import PRESETS
from sfumato.runs.train import train
from tests.training.tiny import LABELLED, flags, tiny

FITTED = ("optimal", "fitted")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(conditions=LABELLED, training={"steps": 4}), run=folder)
    return str(folder)


@pytest.mark.parametrize(
    "command",
    [
        "",
        "--help",
        "help",
        "--version",
        "train --help",
        "sample -h",
        "evaluate -h",
        "info --help",
        "explain",
        "edit",
        "edit invert -h",
        "tune --help",
        "likelihood --help",
        "export -h",
        "import -h",
        "info --presets",
    ],
)
def test_help_is_fast_and_imports_no_torch(command: str) -> None:
    code = (
        "import sys\n"
        "from sfumato.cli import main\n"
        f"try: main({command.split()!r})\n"
        "except SystemExit as e: assert not e.code\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("False")
    assert len(done.stdout) > 10


def test_top_level_help_answers_in_a_third_of_a_second() -> None:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sfumato", "--help"], capture_output=True, check=True)
        return time.perf_counter() - began

    assert min(once() for _ in range(5)) < 0.3


def test_importing_sfumato_costs_no_more_than_torch() -> None:
    """Nothing is imported beside it, with torch or without. (Seconds are no measure where other tests run.)"""
    code = "import sys; before = set(sys.modules); import sfumato; print(*(set(sys.modules) - before))"

    def brought(first: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", first + code], check=True, capture_output=True, text=True)
        return done.stdout.split()

    assert brought("import torch; ") == ["sfumato"]
    alone = brought("")
    assert "sfumato" in alone and "torch" not in alone and "numpy" not in alone and len(alone) < 60


def test_the_help_of_train_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from sfumato.recipes import digits

    assert run("train", "--help") == 0
    said = capsys.readouterr().out
    config = parse(Config, digits())
    known = [key for key, _ in walk(Config, config.model_dump())]
    used = config.model_dump()

    def leaves(values: dict[str, object], prefix: str = "") -> list[str]:
        found: list[str] = []
        for name, value in values.items():
            found += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
        return found

    for key in leaves(used):
        assert key in known or key.endswith(".kind")
        # the kind of a condition is chosen by --condition
        assert f"--{key.replace('_', '-')}" in said or key == "conditions.label.kind", key


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("trian", "did you mean 'train'?"),
        ("train digitz", "did you mean 'digits'?"),
        ("train nothing/here", "neither a known name nor a file or folder"),
        ("train --training.stepz 5", "did you mean --training.steps?"),
        ("train --trainning.no-tensorboard", "There is no option --trainning.no-tensorboard"),
        ("train --training.steps many", "--training.steps: invalid literal for int()"),
        ("train --training.steps 0", "training.steps is 0: input should be greater than or equal to 1"),
        ("train --training.steps -5", "training.steps"),
        ("train --sampling.steps 0", "sampling.steps is 0"),
        ("train --data.workers 0", "workers"),
        ("train --model.schedule.kind cosin", "did you mean 'cosine'?"),
        ("train --model.schedule.kind cosine --model.schedule.rho 3", "no option --model.schedule.rho"),
        ("train --model.schedule.kind linear --model.schedule.steps 1", "at least 2 steps"),
        ("train --model.schedule.kind linear --model.schedule.beta-end 1e-3", "leaves signal at its end"),
        ("train --model.schedule.kind cosine --model.schedule.steps 1", "None"),
        ("train --data.size 9", "resize to 8x8 or 10x10"),
        ("train --data.holdout 1797", "leaves nothing to train on"),
        ("train --training.batch-size 10 --training.accumulate 3", "does not divide"),
        ("train --config missing.toml", "Could not read the configuration file missing.toml"),
        ("train --recipe digit", "did you mean 'digits'?"),
        ("train --recipe ddpm-cifar", "did you mean 'ddpm-cifar10'?"),
        ("info adm-255", "no published model of that name; did you mean 'adm-256'?"),
        ("info adm-256 --presets", "required"),
        ("train --resume nowhere", "no run directory nowhere"),
        ("train digits --resume nowhere", "leave DATA"),
        ("sample", "Say which run"),
        ("sample nowhere", "no run directory nowhere"),
        ("evaluate nowhere", "no run directory nowhere"),
        ("info nowhere", "no run directory nowhere"),
        ("info", "required"),
        ("train --evaluation.samples 1", "at least 2, or 0 for none"),
        ("train --optimizer.method.betas 1.5 0.9", "betas"),
        ("train --model.network.channels 0 8", "channels"),
        ("train --model.schedule.kind continuous_cosine --model.schedule.log-snr-min -1000", "log_snr_min"),
        ("train --sampling.grid.sigma-min 100", "sigma_min < sigma_max"),
        ("train --condition lable", "did you mean 'label'?"),
        ("train --model.network.kind nowhere:Network", "no Python module"),
        ("train --model.network.blocksize 3", "no option --model.network.blocksize"),
        ("train --sampling.sampler.eta 1", "it belongs to --sampling.sampler.kind ddim"),
        ("train digits cats", "One DATA"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchecked: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    if words == "None":
        # one step is a legal cosine schedule: it trains, with a warning
        with warnings.catch_warnings():
            warnings.simplefilter("always", SfumatoWarning)
            assert run(*arguments.split(), *flags(steps=1), "--sampling.steps", "1") == 0
        assert "sfumato: alpha_bar_T = 0.001 is not near zero" in capsys.readouterr().err
        return
    assert run(*arguments.split()) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.startswith("sfumato: ")
    assert "Traceback" not in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_settings_from_files_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(
        '[training]\nseed = 7\nlog_every = 3\n[model.schedule]\nkind = "cosine"\nsteps = 50\n[model.parameterization]\n'
        'kind = "v"\n[objective.weight]\nkind = "simple"\n[objective.times]\nkind = "uniform"\n'
    )
    options = flags(steps=2)
    assert run("train", "--config", "my.toml", *options, "--training.log-every", "1", "--condition", "label") == 0
    written = json.loads(Path("runs/digits/config.json").read_text())["config"]
    assert written["training"]["seed"] == 7 and written["training"]["log_every"] == 1
    assert written["model"]["schedule"] == {"kind": "cosine", "steps": 50, "s": 0.008}
    assert written["conditions"]["label"]["kind"] == "label" and written["data"]["holdout"] == 797
    # the config of a run is a file of settings too
    assert run("train", "--config", "runs/digits/config.json", "--run", "again", *options) == 0
    assert json.loads(Path("again/config.json").read_text())["config"]["model"] == written["model"]


def test_a_wrong_key_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.json").write_text('{"optimizer": {"learning_rates": 1}}')
    assert run("train", "--config", "my.json") == 2
    assert "In my.json: there is no setting 'optimizer.learning_rates'; did you mean 'optimizer.learning_rate'?" in (
        capsys.readouterr().err
    )
    Path("my.json").write_text("{")
    assert run("train", "--config", "my.json") == 2
    assert "not valid json" in capsys.readouterr().err


def test_a_run_that_is_there_is_not_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", *flags(steps=1)) == 0
    assert run("train", *flags(steps=1)) == 2
    assert "--resume runs/digits" in capsys.readouterr().err
    assert run("train", *flags(steps=2), "--overwrite") == 0
    Path("other").mkdir()
    Path("other/thesis.tex").write_text("precious")
    assert run("train", *flags(steps=1), "--run", "other", "--overwrite") == 2
    assert Path("other/thesis.tex").read_text() == "precious"


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
    # what is fitted to a model is asked for in words
    assert (code, "sfumato tune" in capsys.readouterr().err) == ((2, True) if kind in FITTED else (0, False))


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


def test_words_and_flags_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--objective.no-stratified", "digits", "--print-config") == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["data"]["source"] == "digits" and settings["objective"]["stratified"] is False
    for words in (
        ["--condition", "label", "low_resolution"],
        ["--condition", "label", "--condition", "low_resolution"],
    ):
        assert run("train", *words, "--print-config") == 0
        assert list(json.loads(capsys.readouterr().out)["conditions"]) == ["label", "low_resolution"]


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


def test_every_grid_and_sampler_can_be_trained_with() -> None:
    for group, kinds in (("grid", KINDS["grid"]), ("sampler", KINDS["sampler"])):
        for kind in kinds:
            over = {"sampling": {group: {"kind": kind}, **({"grid": {"kind": "fitted"}} if kind == "fitted" else {})}}
            base = tiny(**over)
            options = parse_flags(flag_fields(base), [], prog="sfumato train", description="")
            assert getattr(options.sampling, group).kind == kind


def test_evaluate_and_info(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", trained, "--samples", "100", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["spaces"]) == {"pixels", "classifier"} and said["samples"] == 100
    assert (Path(trained) / "evaluation.json").exists()
    assert run("evaluate", trained, "--samples", "50") == 0
    table = capsys.readouterr().out
    assert "Frechet to held-out" in table and "real vs real" in table and "FID" not in table
    assert run("info", trained) == 0
    said_info = capsys.readouterr().out
    assert "1000 images of 1x8x8, 797 held out" in said_info and "parameters" in said_info
    assert run("info", trained, "--settings", "all") == 0
    assert "optimizer.method.weight_decay" in capsys.readouterr().out
    assert run("evaluate", trained, "--samples", "1") == 2


def test_evaluating_a_run_that_was_not_evaluated(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that asked for no evaluation gets the usual one when it is asked for now."""
    assert json.loads((Path(trained) / "config.json").read_text())["config"]["evaluation"]["samples"] == 0
    assert run("evaluate", trained, "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == EvaluationConfig().samples
    assert run("evaluate", trained, "--samples", "0") == 2
    assert "at least" in capsys.readouterr().err


def test_info_of_a_published_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "ddpm-cifar10") == 0
    said = capsys.readouterr().out
    assert "35,746,307 parameters, 6.22 GMAC per call" in said and "images of 3x32x32" in said
    assert "model.network.resample" in said
    assert run("info", "adm-256") == 0
    said = capsys.readouterr().out
    assert "1000 classes" in said and "sfumato train DATA --recipe adm-256" in said and "optimizer.clip" in said


def test_info_lists_the_published_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = {name: PRESETS[name] for name in ("ddpm-cifar10", "DiT-S/2")}
    # all of them are counted by a command of the README
    monkeypatch.setattr("sfumato.cli.info.PRESETS", few)
    assert run("info", "--presets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(few)
    assert lines[1].split()[1:6] == ["3x32x32", "none", "35,746,307", "6.22", "GMAC"]


def test_a_truncated_log_does_not_break_info(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = Path(trained) / "metrics.jsonl"
    log.write_text(log.read_text()[:-20] + "garbage}\n")
    (Path(trained) / "evaluation.json").write_text("{}")
    assert run("info", trained) == 0
