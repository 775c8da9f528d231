"""Train a network of your own: any module that is called as ``network(x, time)``.

    python examples/own_network.py

Checkpoints, averaged weights, resuming, sampling and editing come with it.
"""

from __future__ import annotations

from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn

import sfumato


class Network(nn.Module):
    """Three convolutions, which are told the time as a second channel."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        level = (time / 1000).reshape(-1, 1, 1, 1).expand_as(x)
        return self.layers(torch.cat([x, level], dim=1))


digits = load_digits().images[:, None].astype("float32") / 8.0 - 1.0  # (1797, 1, 8, 8) in [-1, 1]
model = sfumato.train(
    data=digits,
    network=partial(Network, width=16),
    training={"steps": 20, "sample_count": 0},
    evaluation={"samples": 0},
    run="runs/own-network",
)
print(model.sample(4, seed=0).shape)

# the run names the class, which is imported only where you say that you trust it
again = sfumato.load("runs/own-network", network=partial(Network, width=16))
print("the same samples:", torch.equal(again.sample(4, seed=0), model.sample(4, seed=0)))
