"""Models with random weights, none of them zero."""

from __future__ import annotations

from typing import Any

import torch

from sfumato.config import Config, merge, parse
from sfumato.models.model import Model
from sfumato.models.storage import Facts

SMALL: dict[str, Any] = {
    "model": {
        "schedule": {"kind": "linear"},
        "parameterization": {"kind": "eps"},
        "network": {"channels": (16, 32), "blocks": 1, "attention": (1,), "heads": 2, "groups": 8},
    },
    "sampling": {"sampler": {"kind": "ddim"}, "grid": {"kind": "uniform"}, "steps": 5},
}


def random_model(shape: tuple[int, ...] = (3, 8, 8), classes: int = 0, **over: Any) -> Model:
    """A model of a small U-Net for noise on linear betas, with the given groups of settings in place of its own."""
    facts = Facts(
        shape=shape,
        classes=tuple(f"c{i}" for i in range(classes)),
        frequencies=(1.0 / classes,) * classes if classes else (),
        std=0.5,
        train=1,
        heldout=0,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = Model(parse(Config, merge(merge(Config().model_dump(), SMALL), over)), facts)
        for parameter in model.denoiser.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.denoiser.eval()
    return model
