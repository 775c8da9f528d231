"""Photographs that packages carry, as images in [-1, 1]."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor


def photograph(name: str) -> Tensor:
    """``(1, 3, H, W)`` in [-1, 1]: china and flower of scikit-learn, others of scikit-image."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name}.jpg")
    else:
        pixels = getattr(pytest.importorskip("skimage").data, name)()
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def square(images: Tensor) -> Tensor:
    """The square in the middle."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]
