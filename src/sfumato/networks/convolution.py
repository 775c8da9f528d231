"""Convolutions, quick where PyTorch's kernels are slow on a processor."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_POSITIONS, _CHANNELS = 64, 128
"""Positions up to which, and channels from which, a product of matrices is the quicker gradient of a kernel."""


class Pointwise(nn.Conv2d):
    """A 1x1 convolution; trained on a processor with the channels first, a product of matrices, in a third of the time.

    (torch 2.13, in bfloat16 and float32; with the channels last its own kernel is ahead.)
    """

    def forward(self, input: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h w"]:
        bias = self.bias
        if not _trained(self, input) or bias is None or not input.is_contiguous():
            return super().forward(input)
        flat = input.flatten(2)
        out = torch.bmm(self.weight.flatten(1).expand(len(flat), -1, -1), flat)
        return (out + bias.to(out.dtype)[:, None]).unflatten(2, input.shape[2:])


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the size; for few positions of many channels in bfloat16, with a quicker gradient.

    With the channels last on a processor, the gradient of the kernel is one product of matrices: for 256 channels it
    takes half the time at 8x8 positions, and a fifth at 4x4 (torch 2.13).
    """

    def forward(self, input: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h w"]:
        if not _trained(self, input) or self.bias is None or not self._is_quicker(input):
            return super().forward(input)
        return _Unfolded.apply(input, self.weight.to(input.dtype), self.bias.to(input.dtype))

    def _is_quicker(self, input: Tensor) -> bool:
        few = input.shape[2] * input.shape[3] <= _POSITIONS and min(self.in_channels, self.out_channels) >= _CHANNELS
        last = not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last)
        cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        return few and last and input.dtype == cast == torch.bfloat16


def _trained(module: nn.Conv2d, input: Tensor) -> bool:
    """Whether this call is a step of a training on a processor, without a compiler."""
    if input.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() and module.weight.requires_grad


class _Unfolded(torch.autograd.Function):
    r"""A 3x3 convolution whose kernel has the gradient :math:`G^T W` (im2col; Chellapilla et al. 2006).

    :math:`G` has a row per position with the gradient of the output there, :math:`W` one with the 3x3 inputs that the
    kernel saw. There is no second derivative.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return functional.conv2d(input, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        input, weight = ctx.saved_tensors
        batch, channels, height, width = input.shape
        found: Tensor | None = None
        if ctx.needs_input_grad[0]:
            sizes = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
            found = torch.ops.aten.convolution_backward(gradient, input, weight, *sizes)[0]
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        padded = functional.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
        step, line, place, _ = padded.stride()
        # three neighbours in a line lie side by side
        windows = padded.as_strided((batch, height, width, 3, 3 * channels), (step, line, place, line, 1))
        to_weight = (rows.T @ windows.reshape(len(rows), -1)).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
        return found, to_weight, rows.sum(0)
