"""Runs survive: checkpoints are checked whole, no directory is dead, one trainer at a time, signals are answered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import sfumato
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.tensors import read_tensors, write_tensors
from sfumato.runs.train import train
from tests.training.tiny import LONG, command, flags, tiny, wait_until

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny(training={"steps": 4, "checkpoint_every": 2}), run=folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def first(tensors: Tensors, start: str) -> str:
    return next(name for name, value in tensors.items() if name.startswith(start) and value.ndim > 1)


def other_shape(tensors: Tensors, facts: dict[str, Any]) -> None:
    name = first(tensors, "optimizer/exp_avg/")
    tensors[name] = torch.zeros(3, 5)


def other_type(tensors: Tensors, facts: dict[str, Any]) -> None:
    name = first(tensors, "optimizer/exp_avg_sq/")
    tensors[name] = tensors[name].double()


def without(start: str) -> Callable[[Tensors, dict[str, Any]], None]:
    def drop(tensors: Tensors, facts: dict[str, Any]) -> None:
        del tensors[first(tensors, start)]

    return drop


def wild(start: str) -> Callable[[Tensors, dict[str, Any]], None]:
    def damage(tensors: Tensors, facts: dict[str, Any]) -> None:
        tensors[first(tensors, start)][0] = torch.nan

    return damage


def fact(name: str, value: Any) -> Callable[[Tensors, dict[str, Any]], None]:
    def change(tensors: Tensors, facts: dict[str, Any]) -> None:
        facts[name] = value

    return change


DAMAGE = {
    "a moment of another shape": other_shape,
    "a moment of another type": other_type,
    "no moment": without("optimizer/"),
    "no average": without("ema/"),
    "no weight": without("weights/"),
    "an average that is not finite": wild("ema/"),
    "a weight that is not finite": wild("weights/"),
    "a moment that is not finite": wild("optimizer/exp_avg/"),
    "no step": lambda tensors, facts: facts.pop("step"),
    "a step that is no number": fact("step", "four"),
    "a step below zero": fact("step", -1),
    "a loss that is no number": fact("usual_loss", None),
    "something else": lambda tensors, facts: tensors.update(more=torch.zeros(2)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(run: Path, trained: Path, damage: str) -> None:
    newest = max((run / "checkpoints").iterdir())
    tensors, facts = read_tensors(newest)
    DAMAGE[damage](tensors, facts)
    write_tensors(newest, tensors, facts)
    with pytest.warns(SfumatoWarning, match=r"Using the older step-000000002"):
        train(run=run, resume=True)
    before, after = (read_tensors(max((r / "checkpoints").iterdir()))[0] for r in (trained, run))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for path in (run / "checkpoints").iterdir():
        write_tensors(path, tensors, facts)
    with pytest.raises(InputError, match="No checkpoint of this run is whole"):
        train(run=run, resume=True)


def test_a_model_of_nan_is_not_sampled(run: Path) -> None:
    tensors, meta = read_tensors(run / "model.safetensors")
    tensors[next(iter(tensors))].view(-1)[0] = torch.nan
    write_tensors(run / "model.safetensors", tensors, meta)
    with pytest.raises(InputError, match="not finite"):
        sfumato.load(run)


def test_remains_of_a_killed_start_are_a_free_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".config.json.123-456.tmp").write_text("{")
    (tmp_path / ".run.overwritten-12").mkdir()
    train(tiny(training={"steps": 1}), run=run)
    assert not list(run.rglob("*.tmp")) and not (tmp_path / ".run.overwritten-12").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"already exists|not a run"):
            train(tiny(training={"steps": 1}), run=tmp_path / "photos", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]
    with pytest.raises(InputError, match="is a file"):
        train(tiny(training={"steps": 1}), run=tmp_path / "photos" / "a.png")


def test_a_run_whose_config_is_gone_can_be_overwritten(run: Path) -> None:
    (run / "config.json").unlink()
    with pytest.raises(InputError, match="already exists"):
        train(tiny(training={"steps": 1}), run=run)
    train(tiny(training={"steps": 1}), run=run, overwrite=True)
    assert sfumato.load(run).step == 1


def started(run: Path, *more: str) -> subprocess.Popen[str]:
    """A long training, after its first step."""
    settings = flags(steps=10**6, checkpoint_every=10**6)
    process = command("train", "digits", "--run", str(run), *settings, *more, cwd=run.parent)
    wait_until((run / "metrics.jsonl").exists, process)
    return process


def test_a_run_of_another_process_is_refused_before_data_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("sfumato.runs.train.training_data", read)
    with FileLock(run / ".lock"), pytest.raises(InputError, match="another process"):
        train(run=run, resume=True)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_a_signal_saves_and_a_second_trainer_is_refused(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup, and so by the processes that are started")
    run = tmp_path / "run"
    process = started(run)
    for arguments in (("--resume", str(run)), ("digits", "--run", str(run), "--overwrite", *flags(steps=1))):
        second = command("train", *arguments, cwd=tmp_path)
        errors = second.communicate(timeout=LONG)[1]
        assert second.returncode == 2 and "by another process" in errors
    process.send_signal(number)
    out, errors = process.communicate(timeout=LONG)
    assert process.returncode == 128 + number, errors
    assert "resume with" in out and not errors
    step = int(read_tensors(next((run / "checkpoints").glob("*.safetensors")))[1]["step"])
    assert f"Stopped at step {step}" in out
    assert sfumato.load(run).step == step


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_before_the_first_step_says_so(tmp_path: Path) -> None:
    process = command("train", "digits", "--run", "run", *flags(steps=10**6), cwd=tmp_path)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=LONG)
    assert process.returncode == 143
    assert "Traceback" not in errors and ("nothing to save" in out or "interrupted" in errors or "Stopped at" in out)


def test_damaged_notes_are_a_warning(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(b'\xff\xfe{"step": 1}\n{"step":\n')
    train(run=run, resume=True, training={"steps": 5})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [5]
    for text in ("", "[1e400]", "[" * 100_000, '{"solvers": {"5": {}}, "step": 5}'):
        (run / "fitted.json").write_text(text)
        with pytest.warns(SfumatoWarning, match="fitted.json is damaged"):
            sfumato.load(run)


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"format": 2, "config": {"training": {"steps": 1e400}}}', "\xff"]
)
def test_a_damaged_configuration_is_a_sentence(run: Path, text: str) -> None:
    (run / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="can't be read as a configuration"):
        sfumato.load(run)


def test_what_can_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"GiB.*training\.batch_size"):
        train(tiny(training={"batch_size": 2**31 - 1}), run=tmp_path / "run")
    model = train(tiny(training={"steps": 1}), run=tmp_path / "run")
    with pytest.raises(InputError, match="GiB"):
        model.sample(10**12)


@pytest.mark.parametrize("cpu", ["true", "false"])
def test_processes_that_do_not_find_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", cpu)
    process = command("train", "digits", "--run", "run", *flags(steps=1), cwd=tmp_path)
    errors = process.communicate(timeout=LONG)[1]
    assert process.returncode == 2 and "torchrun --nproc-per-node 2" in errors


@pytest.mark.slow
def test_accelerate_that_starts_one_process_instead_of_two_is_refused(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "sfumato"]
    arguments = [*launch, "train", "digits", "--run", "run", *flags(steps=1)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode != 0 and "2 processes were asked for" in done.stderr
