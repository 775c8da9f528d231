"""A run small enough for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.config import Config, merge, parse
from sfumato.recipes import digits

TINY: dict[str, Any] = {
    "conditions": {},
    "model": {"network": {"channels": (8, 8), "groups": 4, "embedding": 16, "heads": 1}},
    "training": {
        "steps": 12,
        "batch_size": 16,
        "checkpoint_every": 4,
        "sample_every": 1000,
        "sample_count": 0,
        "log_every": 1,
        "precision": "fp32",
        "threads": 1,
    },
    "optimizer": {"method": {"kind": "adamw"}, "learning_rate": 4e-3, "warmup": 2},
    "sampling": {"steps": 3},
    "evaluation": {"samples": 0},
}


LABELLED: dict[str, Any] = {"label": {"kind": "label", "drop": 0.0, "draw": "uniform"}}
"""The condition of a model of classes that can't be guided."""


def tiny(**over: Any) -> Config:
    """The recipe of the digits, shrunk and without classes, with the given groups of settings in place of its own."""
    return parse(Config, merge({**merge(digits(), TINY), "conditions": {}}, over))


def flags(condition: str = "none", **training: Any) -> list[str]:
    """The same as :func:`tiny`, as options of the command line."""
    found = ["--model.network.channels", "8", "8", "--model.network.groups", "4", "--model.network.embedding", "16"]
    found += ["--model.network.heads", "1", "--sampling.steps", "3"]
    found += ["--optimizer.method", "adamw", "--optimizer.learning-rate", "4e-3", "--optimizer.warmup", "2"]
    found += ["--evaluation.samples", "0", "--condition", condition]
    values: dict[str, Any] = {**TINY["training"], **training}
    for name, value in values.items():
        found += [f"--training.{name.replace('_', '-')}", str(value)]
    return found


def command(*arguments: str, cwd: Path, processes: int = 1) -> subprocess.Popen[str]:
    """``sfumato`` in a process of its own, or in several that torchrun starts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--")
    launcher = ("-m",) if processes == 1 else torchrun
    return subprocess.Popen(
        [sys.executable, *launcher, "sfumato", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LONG = 600
"""Seconds after which something hangs, also on a machine that is busy with other work."""


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for what a running process will bring about."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
