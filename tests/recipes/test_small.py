"""The recipe of small images, on images that it was not made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import sfumato
from sfumato.config import Config, merge, parse
from sfumato.recipes import RECIPES


def test_small_images_of_any_channels_and_sides(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    over = {
        "data": {"source": str(tmp_path / "images.npz"), "holdout": 8},
        "training": {"steps": 3, "batch_size": 8, "sample_count": 0},
        "evaluation": {"samples": 0},
    }
    model = sfumato.train(parse(Config, merge(RECIPES["small"](), over)), run=tmp_path / "run")
    found = model.sample(4, seed=1)
    assert found.shape == (4, 3, 12, 16) and bool(torch.isfinite(found).all())
    # its noise is a function of the seed and the image alone
    assert torch.allclose(model.sample(2, seed=1, first=2), found[2:], atol=1e-4)
