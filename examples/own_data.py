"""Train on data of your own: arrays with columns, here with a class for each image.

    python examples/own_data.py

Data are anything that PyTorch indexes: an array, a Dataset, a DataLoader, or a dictionary of columns.
"""

from __future__ import annotations

import torch

import sfumato

# images of horizontal (class 0) and vertical (class 1) stripes
generator = torch.Generator().manual_seed(0)
phase, label = torch.rand(200, generator=generator) * 6.28, torch.arange(200) % 2
wave = torch.sin(torch.arange(16) * 1.2 + phase[:, None])
images = torch.where(label[:, None, None] == 0, wave[:, :, None], wave[:, None, :]).expand(200, 16, 16)[:, None]

model = sfumato.train(
    data={"image": images, "label": label},
    conditions={"label": {"kind": "label", "drop": 0.1}},
    model={"network": {"channels": (16, 32)}},
    training={"steps": 150, "batch_size": 32, "sample_count": 0},
    evaluation={"samples": 0},
    run="runs/stripes",
)
for name in (0, 1):
    sample = model.sample(20, seed=0, steps=10, label=name)
    across, down = (float(sample.diff(dim=axis).abs().mean()) for axis in (3, 2))
    print(f"class {name}: mean change of {down:.2f} down a column, {across:.2f} along a row")
