"""Weights without the zeros that residual branches start with."""

from __future__ import annotations

import torch
from torch import nn


def randomized(module: nn.Module, std: float = 0.3) -> nn.Module:
    """The module in evaluation mode, with the same normal weights each time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std, generator=generator)
    return module.eval()
