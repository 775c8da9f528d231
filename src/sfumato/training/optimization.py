"""The optimizer and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from sfumato.errors import InputError

Decay = Literal["constant", "cosine", "linear"]
LearningRate = Callable[[int], float]
"""The learning rate of optimizer step ``k = 1, 2, ...``."""


def learning_rate(peak: float, steps: int, *, warmup: int = 0, decay: Decay = "constant") -> LearningRate:
    r"""A linear warm-up to ``peak`` over ``warmup`` steps, then constant, or falling to zero at ``steps``.

    With :math:`p = (k - w) / (N + 1 - w)`, cosine is :math:`\tfrac12 (1 + \cos \pi p)` and linear is :math:`1 - p`.
    """
    if peak <= 0.0 or warmup < 0 or steps < 1:
        raise InputError("The learning rate and steps must be positive, the warm-up not negative.")

    def law(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        if decay == "constant":
            return peak
        progress = min(1.0, (step - warmup) / max(1, steps + 1 - warmup))
        return peak * (0.5 * (1.0 + math.cos(math.pi * progress)) if decay == "cosine" else 1.0 - progress)

    return law


def adamw(
    module: nn.Module, *, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0, epsilon: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused; weight decay on matrices and kernels, not on biases and gains."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda", "xpu", "mps") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=fused)
