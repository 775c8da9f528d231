"""Train on a folder of pictures, and sample from the model.

    python examples/train_on_a_folder.py [FOLDER]

Without a folder, one with 64 pictures of coloured gradients is made. Ten steps show that all works; for a real model
leave ``training`` out, and the run takes as many steps as the recipe says.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import sfumato
from sfumato.io.images import save_grid


def gradients(folder: Path, count: int = 64, side: int = 20) -> Path:
    """Pictures of gradients between two random colours."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    ramp = np.linspace(0.0, 1.0, side)[:, None, None]
    for number in range(count):
        first, last = random.integers(0, 256, (2, 3))
        pixels = np.broadcast_to((1.0 - ramp) * first + ramp * last, (side, side, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


folder = Path(sys.argv[1]) if len(sys.argv) > 1 else gradients(Path("pictures"))
model = sfumato.train(
    {"data": {"source": str(folder), "size": 16}},
    model={"network": {"channels": (16, 32)}},
    training={"steps": 10, "batch_size": 16, "sample_count": 0},
    evaluation={"samples": 0},
    run="runs/folder",
)
images = model.sample(8, seed=0, steps=10)  # (8, 3, 16, 16) in [-1, 1]
save_grid(images, Path("samples.png"))
print(f"{model}: samples.png")
