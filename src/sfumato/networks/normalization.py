"""Group normalization, quick with the channels last too."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_SMALL, _LARGE = 64, 1024
"""Positions up to which the channels are cheap to bring first and back, and from which the kernel is quick forward."""


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu and He 2018); on a processor with the channels last, in a fraction of the kernel's time.

    There the kernel of PyTorch (2.13) takes up to thirty times as long as with the channels first: forward for fewer
    than 1,024 positions, and backward always.
    """

    def forward(self, input: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        last = input.ndim == 4 and not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last)
        if not last or input.dtype != torch.bfloat16 or input.device.type != "cpu" or torch.compiler.is_compiling():
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
        # statistics in float32, whatever the input is in
        gain, bias = (None if p is None else p.float() for p in (weight, bias))
        sizes = (batch, channels, height * width, groups)
        seen = input if height * width >= _LARGE else input.contiguous()
        out, mean, inverse = torch.native_group_norm(seen, gain, bias, *sizes, eps)
        ctx.save_for_backward(input, weight, mean, inverse)
        return out.contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        input, weight, mean, inverse = ctx.saved_tensors
        batch, channels, height, width = input.shape
        groups = mean.shape[1]
        if height * width <= _SMALL:
            sizes, needs = (batch, channels, height * width, groups), list(ctx.needs_input_grad[:3])
            gain = None if weight is None else weight.float()
            found, to_weight, to_bias = torch.ops.aten.native_group_norm_backward(
                gradient.contiguous(), input.contiguous(), mean, inverse, gain, *sizes, needs
            )
            found = None if found is None else found.contiguous(memory_format=torch.channels_last)
            return found, to_weight, to_bias, None, None
        size = channels // groups * height * width
        g, x = _rows(gradient), _rows(input)
        per_group = (batch, groups, channels // groups)
        mean, inverse = mean[..., None], inverse[..., None]
        # a rounded mean is subtracted first, so that no sums cancel, and the rest of it from the sums
        rounded = mean.to(x.dtype)
        centred, rest = x - _each(rounded, x, per_group), mean - rounded
        values = g * centred
        plain, product = _sum(g).view(per_group), _sum(values).view(per_group)
        product = (product - rest * plain) * inverse
        found: Tensor | None = None
        if ctx.needs_input_grad[0]:
            scale = inverse.expand(per_group) if weight is None else weight.float().view(1, *per_group[1:]) * inverse
            # the mean of what is scaled below, so that its error is not part of the sum of the gradient
            scale = scale.to(x.dtype).float()
            offset = (plain * scale).sum(2, keepdim=True) / size
            slope = (product * scale).sum(2, keepdim=True) * inverse / size
            scale, slope, shift = (_each(c, x, per_group) for c in (scale, -slope, slope * rest - offset))
            found = _image(torch.addcmul(shift, centred, slope, out=values).addcmul_(g, scale), input)
        to_weight, to_bias = (
            total.sum(0).view(channels) if needed else None
            for total, needed in zip((product, plain), ctx.needs_input_grad[1:3], strict=True)
        )
        return found, to_weight, to_bias, None, None


def _each(found: Tensor, like: Tensor, per_group: tuple[int, ...]) -> Float[Tensor, "batch 1 channels"]:
    """A number per sample and channel, of numbers of groups or of their channels, in the type of ``like``."""
    return found.expand(per_group).reshape(per_group[0], 1, -1).to(like.dtype)


def _rows(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch positions channels"]:
    """A view with the channels last, of what has them last; else a copy."""
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def _image(rows: Float[Tensor, "batch positions channels"], like: Tensor) -> Float[Tensor, "batch channels h w"]:
    """The inverse of :func:`_rows`, of the sides of ``like``."""
    return rows.view(rows.shape[0], *like.shape[2:], rows.shape[2]).permute(0, 3, 1, 2)


def _sum(x: Float[Tensor, "batch positions channels"]) -> Float[Tensor, "batch channels"]:
    """The sum over positions, in float32: by parts that are rounded, which is quick where a sum in float32 is not."""
    parts = next(n for n in (16, 8, 5, 4, 3, 2, 1) if x.shape[1] % n == 0)
    return x.unflatten(1, (parts, -1)).sum(2).float().sum(1)
