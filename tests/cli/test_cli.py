"""The command line: what it says, what it costs, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from sfumato.cli import COMMANDS
from sfumato.cli.flags import flag_fields
from sfumato.cli.flags import parse as parse_flags
from sfumato.config import KINDS, Config, SamplingConfig, component, parse, walk
from sfumato.errors import SfumatoWarning
from sfumato.recipes.openai import CLASSIFIERS
from sfumato.recipes.published import PRESETS
from tests.cli.command import run
from tests.training.tiny import command, flags, tiny


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
        ("train --trainning.no-compile", "There is no option --trainning.no-compile"),
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
        ("evaluate nowhere", "neither a known name nor a file or folder"),
        ("info nowhere", "no run directory nowhere"),
        ("info", "required"),
        ("train --evaluation.samples 1", "at least 2, or 0 for none"),
        ("train --optimizer.method.betas 1.5 0.9", "betas"),
        ("train --model.network.channels 0 8", "channels"),
        ("train --model.schedule.kind continuous_cosine --model.schedule.log-snr-min -1000", "log_snr_min"),
        ("train --sampling.grid.sigma-min 100", "sigma_min < sigma_max"),
        ("train --condition lable", "did you mean 'label'?"),
        ("train --model.network.kind nowhere:Network", "Could not import nowhere"),
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
    assert "not valid JSON" in capsys.readouterr().err


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


def test_every_grid_and_sampler_can_be_trained_with() -> None:
    for group, kinds in (("grid", KINDS["grid"]), ("sampler", KINDS["sampler"])):
        for kind in kinds:
            over = {"sampling": {group: {"kind": kind}, **({"grid": {"kind": "fitted"}} if kind == "fitted" else {})}}
            base = tiny(**over)
            options = parse_flags(flag_fields(base), [], prog="sfumato train", description="")
            assert getattr(options.sampling, group).kind == kind


def test_info_of_a_published_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "ddpm-cifar10") == 0
    said = capsys.readouterr().out
    assert "35,746,307 parameters, 6.22 GMAC per call" in said and "images of 3x32x32" in said
    assert "model.network.resample" in said
    assert run("info", "adm-256") == 0
    said = capsys.readouterr().out
    assert "1000 classes" in said and "sfumato train DATA --recipe adm-256" in said and "optimizer.clip" in said


def test_info_of_a_published_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "adm-128-classifier") == 0
    said = capsys.readouterr().out
    assert "42,558,568 parameters, 21 GMAC per call" in said and "1000 classes" in said
    assert "sfumato train DATA --recipe adm-128-classifier" in said
    assert "optimizer.method.weight_decay" in said and "network.channels" in said


def test_info_lists_the_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--presets") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == [*PRESETS, *CLASSIFIERS]
    assert lines[1][1:6] == ["3x32x32", "none", "35,746,307", "6.22", "GMAC"]
    expected = ["sr3-16-128", "3x128x128", "from", "16", "none", "560,719,107", "274", "GMAC"]
    assert expected in lines


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_the_options_of_a_kind() -> None:
    def completed(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in words)
        program = f'PATH={Path(sys.executable).parent}:$PATH; sfumato() {{ {sys.executable} -m sfumato "$@"; }}; '
        program += f'eval "$(sfumato completion)"; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; '
        program += '_sfumato; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("sfumato", "ev") == ["evaluate"]
    assert completed("sfumato", "train", "--objective.times.kind", "log_normal", "--objective.times.m") == [
        "--objective.times.mean"
    ]


def test_usual_names_of_solvers_are_known_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    config = SamplingConfig().override({"sampler": "dpm++3m"})
    assert config.sampler.kind == "dpm_solver" and config.sampler.order == 3
    assert run("train", "--sampling.sampler", "dpm++2m-sde", "--print-config") == 0
    assert json.loads(capsys.readouterr().out)["sampling"]["sampler"]["kind"] == "sde_dpm_solver"


def test_helps_have_no_commands_of_latex() -> None:
    for slot, kinds in KINDS.items():
        for kind in kinds:
            made = component(slot, kind)
            for text in (made.__doc__, *(field.description for field in made.model_fields.values())):
                assert not re.search(r"\\|[{}]|frac\d|mathcal|lfloor|\bhat\b|\bsim\b|propto\b|\bdots\b", text or ""), (
                    text
                )


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("launcher", ["", "OMPI_COMM_WORLD_"])
def test_of_several_processes_one_works(
    name: str, launcher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command whose work is not shared is done once, and told to be started once."""
    if name in ("train", "evaluate", "likelihood"):
        return
    monkeypatch.setenv(f"{launcher}SIZE" if launcher else "WORLD_SIZE", "2")
    rank = f"{launcher}RANK"
    monkeypatch.setenv(rank, "1")
    assert run(name, "--wrong") == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv(rank, "0")
    assert run(name, "--wrong") == 2
    said = capsys.readouterr().err
    assert f"2 processes were started, and {name} takes one" in said
    assert rank not in os.environ and "LOCAL_RANK" not in os.environ


def test_torchrun_of_a_command_that_takes_one_process(trained: str, tmp_path: Path) -> None:
    """As it is typed: one process samples, the other ends; the likelihood is shared, and the same as by one."""
    process = command("sample", trained, "--count", "2", "--out", "x.npz", cwd=tmp_path, processes=2)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.count("2 images: x.npz") == 1 and errors.count("sample takes one") == 1
    judged: list[dict[str, Any]] = []
    for processes in (1, 2):
        options = ("--features", "pixels", "--measures", "fd", "kid", "--samples", "31", "--steps", "2", "--json")
        process = command("evaluate", trained, *options, cwd=tmp_path, processes=processes)
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        judged.append(json.loads(said))
    values = [[row["value"] for row in report["rows"]] for report in judged]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    found: list[dict[str, Any]] = []
    for processes in (1, 2):
        asked = ("likelihood", trained, "--images", "4", "--steps", "4", "--what", "bound", "--json")
        process = command(*asked, cwd=tmp_path, processes=processes)
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        found.append(json.loads(said))
    assert found[0]["bound"] == pytest.approx(found[1]["bound"])
