"""Promise 1: what is trained does not depend on interruptions, accumulation or processes."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from sfumato.io.tensors import read_tensors
from sfumato.runs.train import train
from tests.training.tiny import LONG, command, flags, tiny, wait_until


def state(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(max((run / "checkpoints").glob("*.safetensors")))[0]


def losses(run: Path) -> dict[int, float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}


def assert_same_bytes(one: Path, two: Path, *more: str) -> None:
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    assert {name.split("/")[0] for name in a} == {"weights", "ema", "optimizer", *more}
    differ = [name for name in a if a[name].numpy().tobytes() != b[name].numpy().tobytes()]
    assert not differ
    same = (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert same


def test_killed_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    """SIGKILL at a moment that chance decides, twice; the resumed run ends with the same bytes."""
    steps = 150
    settings = flags(steps=steps, checkpoint_every=7)
    whole = command("train", "digits", "--run", "whole", *settings, cwd=tmp_path)
    killed = tmp_path / "killed"
    process = command("train", "digits", "--run", "killed", *settings, cwd=tmp_path)
    for _ in range(2):
        before = set((killed / "checkpoints").glob("*"))
        wait_until(lambda before=before: not set((killed / "checkpoints").glob("*")) <= before, process)
        time.sleep(random.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        process = command("train", "--resume", "killed", cwd=tmp_path)
    assert process.wait() == 0, process.stderr and process.stderr.read()
    assert whole.wait() == 0, whole.stderr and whole.stderr.read()
    assert_same_bytes(tmp_path / "whole", killed)
    assert losses(tmp_path / "whole") == losses(killed)
    assert list(losses(killed)) == list(range(1, steps + 1))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("SIGINT is ignored here, as in the background of a shell, and so by the processes that are started")
    settings = flags(steps=1_000_000, checkpoint_every=1_000_000)
    process = command("train", "digits", "--run", "run", *settings, cwd=tmp_path)
    wait_until((tmp_path / "run" / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=LONG)
    assert process.returncode == 130, errors
    assert "resume with: sfumato train --resume run" in out
    assert "Traceback" not in errors
    assert int(read_tensors(next((tmp_path / "run" / "checkpoints").iterdir()))[1]["step"]) > 0


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_stopping_in_python_and_going_on_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    config = tiny(optimizer={"method": method})
    for name in ("whole", "parts"):
        train(config, run=tmp_path / name)
    # back to an older checkpoint, as after a crash
    newest = max((tmp_path / "parts" / "checkpoints").iterdir())
    newest.unlink()
    train(run=tmp_path / "parts", resume=True)
    assert_same_bytes(tmp_path / "whole", tmp_path / "parts")
    kept = {name.split("/")[1] for name in state(tmp_path / "whole") if name.startswith("optimizer/")}
    assert kept == {"exp_avg", "exp_avg_sq", "step"} | ({"momentum"} if method == "muon" else set())


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_accumulation_sees_the_same_numbers(tmp_path: Path, method: str) -> None:
    optimizer = {"method": method}
    train(tiny(training={"batch_size": 64}, optimizer=optimizer), run=tmp_path / "one")
    train(tiny(training={"batch_size": 64, "accumulate": 4}, optimizer=optimizer), run=tmp_path / "four")
    one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert list(one.values()) == pytest.approx(list(four.values()), rel=1e-5)
    a, b = state(tmp_path / "one"), state(tmp_path / "four")
    weights = [name for name in a if name.startswith(("weights", "ema"))]
    assert max(float((a[name] - b[name]).abs().max()) for name in weights) < 1e-4


def test_two_processes_give_the_same_as_one(tmp_path: Path) -> None:
    settings = flags("label", batch_size=64, steps=8)
    two = command("train", "digits", "--run", "two", *settings, cwd=tmp_path, processes=2)
    out, errors = two.communicate(timeout=LONG)
    assert two.returncode == 0, errors
    assert "on 2 x cpu" in out
    one = command("train", "digits", "--run", "one", *settings, cwd=tmp_path)
    assert one.wait() == 0
    assert list(losses(tmp_path / "one").values()) == pytest.approx(list(losses(tmp_path / "two").values()), rel=1e-5)
    a, b = state(tmp_path / "one"), state(tmp_path / "two")
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a if name.startswith("ema")) < 1e-4


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    from sfumato.errors import InputError

    train(tiny(training={"steps": 4}), run=tmp_path / "run")
    with pytest.raises(InputError, match=r"training\.batch_size differs"):
        train(tiny(training={"batch_size": 32}), run=tmp_path / "run", resume=True)
    config = tmp_path / "run" / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"heldout": 797', '"heldout": 796'))
    with pytest.raises(InputError, match="have changed"):
        train(run=tmp_path / "run", resume=True)
    config.write_text(whole)
    with pytest.raises(InputError, match="beyond the 2 steps"):
        train(tiny(training={"steps": 2}), run=tmp_path / "run", resume=True)
    # where images are decoded to, and by how many threads, changes nothing
    elsewhere = {"cache": str(tmp_path), "workers": 2}
    assert train(tiny(data=elsewhere, training={"steps": 4}), run=tmp_path / "run", resume=True).step == 4


def test_resuming_before_the_first_checkpoint_begins_again(tmp_path: Path) -> None:
    train(tiny(training={"steps": 4}), run=tmp_path / "run")
    before = state(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    train(run=tmp_path / "run", resume=True)
    after = state(tmp_path / "run")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_other_threads_do_not_change_the_data(tmp_path: Path) -> None:
    train(tiny(training={"steps": 4, "threads": 2}), run=tmp_path / "run")
    train(tiny(training={"steps": 6, "threads": 1}), run=tmp_path / "run", resume=True)
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]


def test_the_launcher_has_no_say_in_the_mathematics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(training={"steps": 3}), run=tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(tiny(training={"steps": 3}), run=tmp_path / "launched")
    assert losses(tmp_path / "plain") == losses(tmp_path / "launched")
    logs = ((tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("plain", "launched"))
    one, two = ([json.loads(line)["grad_norm"] for line in log if "grad_norm" in line] for log in logs)
    assert one == two
