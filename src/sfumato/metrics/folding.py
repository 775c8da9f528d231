"""Convolutions with batch normalization, as feature networks have them, and as one layer when they only compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ConvNorm(nn.Module):
    """A convolution without biases, a batch normalization, and an activation."""

    def __init__(self, conv: nn.Conv2d, activation: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.conv = conv
        self.bn: nn.Module = nn.BatchNorm2d(conv.out_channels, eps=1e-3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.conv(x))
        return h if self.activation is None else self.activation(h, inplace=True)


@torch.no_grad()
def fold(network: nn.Module) -> None:
    """Let the convolutions of a network in evaluation mode do what the normalizations after them do.

    That is the same function, to rounding, with less to read and write: on a CPU up to two thirds faster.
    """
    for module in network.modules():
        if isinstance(module, ConvNorm) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn).requires_grad_(False)
            module.bn = nn.Identity()
