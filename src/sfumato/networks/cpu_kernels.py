"""Group normalization, convolutions and attention where PyTorch's own are slow on a CPU (torch 2.13).

What each is worth stands in ``docs/networks.md``, measured by ``benchmarks/networks.py``. Each is called as PyTorch's
own is, and decides by itself when it takes its place.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_FEW_POSITIONS, _MANY_POSITIONS, _MANY_CHANNELS = 64, 1024, 128
_FEW_SCORES = 512 * 512


def _laid_out(x: Tensor, layout: torch.memory_format) -> bool:
    """Whether ``x`` is on a CPU in this layout and no other; no kernel of this file is for what is compiled."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if layout == torch.channels_last and x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=layout)


def _is_trained(module: nn.Conv2d) -> bool:
    return torch.is_grad_enabled() and module.weight.requires_grad


def attend(
    q: Float[Tensor, "batch heads queries width"],
    k: Float[Tensor, "batch heads keys width"],
    v: Float[Tensor, "batch heads keys width"],
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "batch heads queries width"]:
    r"""Attention, :math:`\operatorname{softmax}(q k^T / \sqrt{d})\, v`; keys where ``mask`` is False are left out.

    PyTorch's kernel, except for short sequences in training, where its gradient takes ten times as long as that of
    three products for 64 positions with heads of 8 channels, and twice as long for 256 with heads of 64.
    """
    short = q.requires_grad and q.shape[-2] * k.shape[-2] <= _FEW_SCORES
    if not short or q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v


class Pointwise(nn.Conv2d):
    """A 1x1 convolution; in training with the channels first one product of matrices, in a third of the time."""

    def forward(self, input: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h w"]:
        if self.bias is None or not _is_trained(self) or not _laid_out(input, torch.contiguous_format):
            return super().forward(input)
        flat = input.flatten(2)
        out = torch.bmm(self.weight.flatten(1).expand(len(flat), -1, -1), flat)
        return (out + self.bias.to(out.dtype)[:, None]).unflatten(2, input.shape[2:])


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the size, with a faster gradient for few positions of many channels.

    For 256 channels it takes half the time at 8x8 positions, and a fifth at 4x4.
    """

    def forward(self, input: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h w"]:
        few = input.shape[2] * input.shape[3] <= _FEW_POSITIONS
        many = min(self.in_channels, self.out_channels) >= _MANY_CHANNELS
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        halves = dtype == input.dtype == torch.bfloat16
        fast = few and many and halves and _is_trained(self) and _laid_out(input, torch.channels_last)
        if self.bias is None or not fast:
            return super().forward(input)
        return _Unfolded.apply(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


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
        to_input: Tensor | None = None
        if ctx.needs_input_grad[0]:
            options = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
            to_input = torch.ops.aten.convolution_backward(gradient, input, weight, *options)[0]
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        padded = functional.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
        sample, line, place, _ = padded.stride()
        # three neighbours in a line lie side by side
        windows = padded.as_strided((batch, height, width, 3, 3 * channels), (sample, line, place, line, 1))
        to_weight = (rows.T @ windows.reshape(len(rows), -1)).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
        return to_input, to_weight, rows.sum(0)


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu and He 2018), in bfloat16 with the channels last in a fraction of the kernel's time.

    There PyTorch's kernel takes up to thirty times as long as with the channels first: forward for fewer than 1,024
    positions, and backward always.
    """

    def forward(self, input: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        if input.ndim != 4 or input.dtype != torch.bfloat16 or not _laid_out(input, torch.channels_last):
            return super().forward(input)
        return _ChannelsLast.apply(input, self.weight, self.bias, self.num_groups, self.eps)


class _ChannelsLast(torch.autograd.Function):
    r"""The normalization of ``input`` with the channels last, and its gradient by sums over positions.

    With the mean :math:`\mu` and the inverse deviation :math:`r` of a group of :math:`M` values, the gradient
    :math:`g` of the output, :math:`\hat x = r (x - \mu)` and means over the group,

    .. math:: \partial x = r\, (\gamma g - \langle \gamma g \rangle - \hat x\, \langle \gamma g \hat x \rangle)

    is linear in :math:`g` and :math:`x` with coefficients per sample and channel. They are rounded to bfloat16, which
    costs about what the rounding of the result does, and percents where the mean of a gradient over the positions is
    several times its deviation. There is no second derivative.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = input.shape
        # statistics in float32, for any dtype of the input
        gain, bias = (None if p is None else p.float() for p in (weight, bias))
        contiguous = input if height * width >= _MANY_POSITIONS else input.contiguous()
        out, mean, inverse = torch.native_group_norm(
            contiguous, gain, bias, batch, channels, height * width, groups, eps
        )
        ctx.save_for_backward(input, weight, mean, inverse)
        return out.contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        input, weight, mean, inverse = ctx.saved_tensors
        batch, channels, height, width = input.shape
        groups = mean.shape[1]
        to_input: Tensor | None
        if height * width <= _FEW_POSITIONS:
            sizes, needs = (batch, channels, height * width, groups), list(ctx.needs_input_grad[:3])
            gain = None if weight is None else weight.float()
            to_input, to_weight, to_bias = torch.ops.aten.native_group_norm_backward(
                gradient.contiguous(), input.contiguous(), mean, inverse, gain, *sizes, needs
            )
            to_input = None if to_input is None else to_input.contiguous(memory_format=torch.channels_last)
            return to_input, to_weight, to_bias, None, None
        g, x = (tensor.permute(0, 2, 3, 1).contiguous().flatten(1, 2) for tensor in (gradient, input))
        per_group = (batch, groups, channels // groups)

        def per_channel(values: Tensor) -> Float[Tensor, "batch 1 channels"]:
            return values.expand(per_group).reshape(batch, 1, -1).to(x.dtype)

        mean, inverse = mean[..., None], inverse[..., None]
        # the rounded mean is subtracted first, so that no sums cancel, and the rest of it from the sums
        rounded = mean.to(x.dtype)
        centred, rest = x - per_channel(rounded), mean - rounded
        products = g * centred
        sum_g, sum_gx = _sum(g).view(per_group), _sum(products).view(per_group)
        sum_gx = (sum_gx - rest * sum_g) * inverse
        to_input = None
        if ctx.needs_input_grad[0]:
            size = channels // groups * height * width
            scale = inverse.expand(per_group) if weight is None else weight.float().view(1, *per_group[1:]) * inverse
            # the mean of what is scaled below, so that its error is not part of the sum of the gradient
            scale = scale.to(x.dtype).float()
            offset = (sum_g * scale).sum(2, keepdim=True) / size
            slope = (sum_gx * scale).sum(2, keepdim=True) * inverse / size
            scale, slope, shift = (per_channel(c) for c in (scale, -slope, slope * rest - offset))
            rows = torch.addcmul(shift, centred, slope, out=products).addcmul_(g, scale)
            to_input = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        to_weight, to_bias = (
            total.sum(0).view(channels) if needed else None
            for total, needed in zip((sum_gx, sum_g), ctx.needs_input_grad[1:3], strict=True)
        )
        return to_input, to_weight, to_bias, None, None


def _sum(x: Float[Tensor, "batch positions channels"]) -> Float[Tensor, "batch channels"]:
    """The sum over positions in float32, by parts that are rounded: fast where a sum in float32 is not."""
    parts = next(n for n in (16, 8, 5, 4, 3, 2, 1) if x.shape[1] % n == 0)
    return x.unflatten(1, (parts, -1)).sum(2).float().sum(1)
