"""Models with random weights, none of them zero."""

from __future__ import annotations

from typing import Any

import torch

from sfumato.config import Config, merge, parse
from sfumato.models.model import Model
from sfumato.models.storage import Info

SMALL: dict[str, Any] = {
    "model": {
        "schedule": {"kind": "linear"},
        "parameterization": {"kind": "eps"},
        "network": {"channels": (16, 32), "blocks": 1, "attention": (1,), "heads": 2, "groups": 8},
    },
    "sampling": {"sampler": {"kind": "ddim"}, "grid": {"kind": "uniform"}, "steps": 5},
}


def labelled(classes: int, drop: float = 0.1) -> dict[str, Any]:
    """The condition of so many classes, equally frequent; none without classes."""
    names = [f"c{i}" for i in range(classes)]
    label = {"kind": "label", "drop": drop, "names": names, "frequencies": [1.0 / classes] * classes if classes else []}
    return {"label": label} if classes else {}


def random_model(shape: tuple[int, ...] = (3, 8, 8), classes: int = 0, **over: Any) -> Model:
    """A model of a small U-Net for noise on linear betas, with the given groups of settings in place of its own."""
    conditions = over.pop("conditions", labelled(classes))
    info = Info(shape=shape, std=0.5, train=1, heldout=0, conditions=conditions)
    settings = merge(merge(Config().model_dump(), {**SMALL, "conditions": conditions}), over)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = Model.build(parse(Config, settings), info)
        for parameter in model.denoiser.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.denoiser.eval()
    return model
