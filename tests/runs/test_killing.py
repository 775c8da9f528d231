"""A run that is killed at random moments, in every phase, ends with the same bytes as one that was never stopped.

``SFUMATO_KILLS`` says how many kills; the seed of the moments is fixed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.runs.test_resume import assert_same_bytes, losses
from tests.training.tiny import command, flags

KILLS = int(os.environ.get("SFUMATO_KILLS", "12"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """The whole life of a run: its start, its first write, steps, checkpoints, sample grids, the evaluation."""
    settings = [*flags("label", steps=60, checkpoint_every=5, sample_every=20, sample_count=4)]
    settings[settings.index("--evaluation.samples") + 1] = "20"
    start = ("train", "digits", "--run", "killed", *settings)
    whole = command("train", "digits", "--run", "whole", *settings, cwd=tmp_path)
    began = time.monotonic()
    assert whole.wait() == 0, whole.stderr and whole.stderr.read()
    life = time.monotonic() - began
    moments, run, kills = random.Random(0), tmp_path / "killed", 0
    while kills < KILLS:
        ready = (run / "config.json").exists()
        process = command(*(("train", "--resume", "killed") if ready else start), cwd=tmp_path)
        # half of the moments lie around the first write
        time.sleep(moments.uniform(0.0, life) if moments.random() < 0.5 else moments.uniform(0.25, 0.6) * life)
        finished = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert "Traceback" not in errors, errors
        if finished:
            assert process.returncode == 0, errors
            assert_same_bytes(tmp_path / "whole", run)
            shutil.rmtree(run)
        else:
            kills += 1
    ready = (run / "config.json").exists()
    process = command(*(("train", "--resume", "killed") if ready else start), cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_same_bytes(tmp_path / "whole", run)
    assert losses(tmp_path / "whole") == losses(run)
    assert not list(run.rglob("*.tmp"))
