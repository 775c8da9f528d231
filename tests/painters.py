"""Models of text to image for tests: tiny, and with random weights, so that every word and every stage shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato import random
from sfumato.conditioning.low_resolution import scale_down
from sfumato.data import Dataset
from sfumato.data.dataset import Column
from sfumato.models.folders import save
from sfumato.models.storage import System, write_system
from sfumato.runs.train import train
from tests.training.tiny import tiny

TEXT: dict[str, Any] = {"kind": "text", "width": 16, "layers": 1, "heads": 1, "drop": 0.1}
LOW: dict[str, Any] = {"kind": "low_resolution", "factor": 2, "drop": 0.0, "noise": 0.4, "level": 0.1}


def captioned(side: int) -> Dataset:
    """Sixteen pictures of 8 or 16 pixels, with captions of two or three words."""
    pixels = random.uniform(0, "pixels", 0, 16, (3, 16, 16)).float() * 2.0 - 1.0
    pixels = pixels if side == 16 else scale_down(pixels, 16 // side).clamp(-1.0, 1.0)
    captions = [f"a {c} {s}" for c in ("red", "green", "blue", "white") for s in ("circle", "square")] * 2
    return Dataset(pixels.numpy(), {"caption": Column(np.array(captions))})


def painted(run: Path, side: int, **conditions: Any) -> str:
    """A run that was trained for two steps, whose weights then were shaken."""
    more: dict[str, Any] = {"data": {"holdout": 0}, "model": {"network": {"middle_attention": True}}}
    conditions = {"text": TEXT, **conditions}
    model = train(tiny(conditions=conditions, training={"steps": 2}, **more), data=captioned(side), run=run)
    with torch.no_grad():
        for number, parameter in enumerate(model.module.parameters()):
            parameter += 0.3 * random.normal(1, "shake", number, 1, tuple(parameter.shape))[0]
    save(model, run, overwrite=True)
    return str(run)


def system(folder: Path) -> str:
    """A cascade of 8 to 16 pixels, with text in both stages."""
    painted(folder / "stages" / "base", 8)
    painted(folder / "stages" / "up", 16, low_resolution=LOW)
    write_system(folder, System(stages=("base", "up")))
    return str(folder)
