"""A training that fits a time on this machine: a few steps are measured, and the rest is counted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from sfumato.config import Config
from sfumato.errors import InputError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EVALUATION = 0.3
"""The largest share of the time for samples and their evaluation."""
LEAST = 20
"""The fewest steps that a time must be enough for."""


def seconds_of(text: str | float) -> float:
    """Seconds of a time such as ``"90s"``, ``"30m"``, ``"1.5h"`` or ``"2d"``, or of a number of seconds."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhd])", str(text).strip())
    value = float(found[1]) * _UNITS[found[2]] if found else text if isinstance(text, int | float) else 0.0
    if not 0.0 < value < 1e9:
        raise InputError(f"A budget is a time such as 90s, 30m, 2h or 3d; got {text!r}.")
    return value


def words_of(seconds: float) -> str:
    """A time in words: ``"40 s"``, ``"12 min"``, ``"3.5 h"``, ``"7.2 days"``."""
    for most, unit, name in ((120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if seconds < most:
            return f"{seconds / unit:.{0 if unit < 3600.0 else 1}f} {name}"
    return f"{seconds / 86400.0:,.1f} days"


def has_gpu() -> bool:
    """Whether there seems to be a GPU, without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/kfd"))


def sized(config: Config, seconds: float, measured: Callable[[Config], float]) -> tuple[Config, str]:
    """The configuration with as many steps as fit, and a sentence that says so.

    Args:
        config: what is trained; its steps, and what is counted in them, are replaced.
        seconds: the time for all of it.
        measured: the seconds that an optimizer step of a configuration takes.
    """
    step = measured(config)
    # a call of the network for one image; a step also has the backward pass, twice the work
    call = config.sampling.steps * step / (3.0 * config.training.batch_size)
    most = int(_EVALUATION * seconds / call / 2.0)
    samples = config.evaluation.samples
    samples = samples if samples <= most else max(100, most // 100 * 100)
    grid = min(config.training.sample_count, max(16, most // 3))
    steps = int((seconds - call * (samples + 3 * grid)) / step)
    if steps < LEAST:
        raise InputError(
            f"A step takes {step:.3g} s here: {words_of(seconds)} are too short; give a longer --budget, a smaller "
            "--data.size or --recipe small."
        )
    changes = {
        "training.steps": steps,
        "training.sample_every": -(-steps // 3),
        "training.sample_count": grid,
        "training.checkpoint_every": max(1, min(config.training.checkpoint_every, steps // 10)),
        "optimizer.warmup": min(config.optimizer.warmup, steps // 10),
        "evaluation.samples": samples,
    }
    return config.override(changes), f"{words_of(seconds)}: {steps:,} steps of {step:.3g} s each on this machine"
