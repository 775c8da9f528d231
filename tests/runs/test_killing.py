"""A run that is killed at random moments, in every phase, ends with the same bytes as one that was never stopped.

``SFUMATO_KILLS`` says how many kills; it is also the seed of the moments. They are moments of computing, not of the
clock, so that a busy machine does not move them, and after the imports, which write nothing: processes are forked from
one that has done them.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from tests.runs.test_resume import assert_same_bytes, losses
from tests.training.tiny import flags

KILLS = int(os.environ.get("SFUMATO_KILLS", "12"))


def work(arguments: list[str], folder: Path) -> None:
    """``sfumato`` in this process."""
    from sfumato.cli import main

    os.chdir(folder)
    written = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    main(arguments)


def computed(process: BaseProcess) -> float:
    """Seconds of computing of a process so far; infinite once it has ended."""
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return float("inf")
    return times.user + times.system if process.is_alive() else float("inf")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole life of a run: its first write, steps, checkpoints, sample grids, the evaluation."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    server = multiprocessing.get_context("forkserver")
    late = ["sfumato.cli.train", "sfumato.runs.train", "sklearn.datasets", "sklearn.linear_model", "torch._dynamo"]
    server.set_forkserver_preload([work.__module__, *late])
    settings = [*flags("label", steps=60, checkpoint_every=5, sample_every=20, sample_count=4)]
    settings[settings.index("--evaluation.samples") + 1] = "20"

    def begin(*arguments: str) -> BaseProcess:
        process = server.Process(target=work, args=(["train", *arguments], tmp_path))
        process.start()
        return process

    def said() -> str:
        return (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""

    whole, life, last = begin("digits", "--run", "whole", *settings), 0.0, 0.0
    while last < float("inf"):
        life, last = last, computed(whole)
        time.sleep(0.01)
    whole.join()
    assert whole.exitcode == 0, said()
    moments, run, kills, begun = random.Random(KILLS), tmp_path / "killed", 0, 0
    while True:
        resumed = (run / "config.json").exists()
        process = begin(*(("--resume", "killed") if resumed else ("digits", "--run", "killed", *settings)))
        moment = moments.uniform(0.0, life) if kills < KILLS else float("inf")
        while computed(process) < moment:
            time.sleep(0.003)
        process.kill()
        process.join()
        finished = process.exitcode != -signal.SIGKILL  # it may have ended just before
        assert "Traceback" not in said()
        if finished:
            assert process.exitcode == 0, said()
            assert_same_bytes(tmp_path / "whole", run)
            assert losses(tmp_path / "whole") == losses(run)
            assert not list(run.rglob("*.tmp"))
            if kills == KILLS:
                break
            shutil.rmtree(run)
        else:
            kills, begun = kills + 1, begun + run.exists()
    assert begun >= KILLS / 4, f"only {begun} of {KILLS} kills hit what was written"
