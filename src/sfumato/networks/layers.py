"""The layers that the networks are made of, in one and two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.cpu_kernels import Conv3x3, GroupNorm, Pointwise

Dims = Literal[1, 2]
M = TypeVar("M", bound=nn.Module)


def conv(
    dims: Dims, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, pad: int | None = None
) -> nn.Conv1d | nn.Conv2d:
    """A convolution over ``dims`` spatial axes, by default padded to keep the size."""
    pad = kernel // 2 if pad is None else pad
    planar = {(1, 1, 0): Pointwise, (3, 1, 1): Conv3x3}.get((kernel, stride, pad), nn.Conv2d)
    return (planar if dims == 2 else nn.Conv1d)(inputs, outputs, kernel, stride=stride, padding=pad)


def zero(module: M) -> M:
    """The module with all parameters zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def modulate(
    x: Float[Tensor, "batch *tokens width"], shift: Float[Tensor, "batch *one width"], scale: Tensor
) -> Float[Tensor, "batch *tokens width"]:
    r"""Normalized activations, scaled and shifted: :math:`(1 + s)\, x + b` (Peebles and Xie 2023, sec. 3.2)."""
    return torch.addcmul(shift, x, scale + 1.0)


def group_norm(
    channels: int, groups: int, affine: bool = True, eps: float = 1e-5, group_channels: int = 1
) -> nn.GroupNorm:
    """Group normalization with at most ``groups`` groups: the largest number that divides the channels.

    Groups have at least ``group_channels`` channels, unless there are fewer in all.
    """
    if groups < 1 or group_channels < 1:
        raise InputError(
            f"Normalization needs at least 1 group, of at least 1 channel; got {groups}, {group_channels}."
        )
    most = min(groups, max(1, channels // group_channels))
    divisor = next(g for g in range(most, 0, -1) if channels % g == 0)
    return GroupNorm(divisor, channels, affine=affine, eps=eps)


class PixelNorm(nn.Module):
    """Normalizes the channels of each position by themselves, so that no position depends on those far away."""

    def __init__(self, channels: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        normalized = functional.layer_norm(x.movedim(1, -1), (self.num_channels,), self.weight, self.bias, self.eps)
        return normalized.movedim(-1, 1)


Norm = nn.GroupNorm | PixelNorm


def check_divisible(sides: Sequence[int], factor: int, name: str, advice: str) -> None:
    """Check that ``factor`` divides all sides; the message names the nearest sizes that it does."""
    if all(side > 0 and side % factor == 0 for side in sides):
        return
    below = tuple(max(1, side // factor) * factor for side in sides)
    above = tuple(-(-side // factor) * factor for side in sides)
    fits = " or ".join("x".join(map(str, size)) for size in dict.fromkeys([below, above]))
    raise InputError(
        f"A size of {'x'.join(map(str, sides))} is not divisible by the {name} of {factor}; resize to {fits}, or use "
        f"{advice}."
    )


def concatenate(x: Tensor, channels: Tensor | None, count: int) -> Float[Tensor, "batch all *space"]:
    """``x`` followed by the ``count`` channels of a condition, zeros if they are missing."""
    if channels is None:
        return torch.cat([x, x.new_zeros(x.shape[0], count, *x.shape[2:])], dim=1) if count else x
    if channels.shape != (x.shape[0], count, *x.shape[2:]):
        raise InputError(
            f"This network takes {count} channels of condition at the size of its input, "
            f"{'x'.join(map(str, x.shape[2:]))}, for each of {x.shape[0]} samples; got shape {tuple(channels.shape)}."
        )
    return torch.cat([x, channels.to(x.dtype)], dim=1)


class Dropout(nn.Module):
    """Sets the fraction ``rate`` of each sample's activations to zero, scales up the others (Srivastava et al. 2014).

    Which ones is a function of the key of the sample, the number of the ``layer`` (:func:`number_layers`) and the
    position: the same in any batch, on any device, and when the layer is computed again under gradient checkpointing.
    A call without keys changes nothing.
    """

    def __init__(self, rate: float, layer: int = 0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise InputError(f"The fraction that dropout leaves out must be at least 0 and below 1; got {rate}.")
        self.rate, self.layer = rate, layer

    def forward(
        self, x: Float[Tensor, "batch *shape"], keys: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch *shape"]:
        if keys is None or self.rate == 0.0:
            return x
        position = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device)
        key = _mix(keys.to(torch.int32) + _mix(torch.full_like(keys, self.layer + 1, dtype=torch.int32)))
        noise = _mix(position * (0x9E3779B1 - 2**32) + key[:, None])
        kept = noise >= int(self.rate * 2**32) - 2**31
        return x * kept.reshape(x.shape).to(x.dtype) / (1.0 - self.rate)


def number_layers(network: nn.Module) -> None:
    """Number the dropout layers of a network, so that each leaves out other positions."""
    for layer, module in enumerate(m for m in network.modules() if isinstance(m, Dropout)):
        module.layer = layer


def _mix(word: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The finalizer of MurmurHash3 (Appleby): a bijection of 32 bits, here signed, that spreads each bit over all."""
    word = word ^ ((word >> 16) & 0xFFFF)
    word = word * (0x85EBCA6B - 2**32)
    word = word ^ ((word >> 13) & 0x7FFFF)
    word = word * (0xC2B2AE35 - 2**32)
    return word ^ ((word >> 16) & 0xFFFF)


class Resample(nn.Module):
    r"""Halves or doubles every side with a separable filter, without aliasing if that is long enough (Zhang 2019).

    With taps :math:`f` of length :math:`2 p + 2` and sum 1, in each axis,

    .. math::
        \text{down: } y_i = \sum_j f_j x_{2 i + j - p}, \qquad \text{up: } y_{2 i + j - p} \mathrel{+}= 2 f_j x_i,

    with zeros outside. The box (1, 1) is the mean of two and the repetition of each.

    Args:
        dims: spatial axes.
        direction: ``"down"`` or ``"up"``.
        taps: the filter, symmetric and scaled to the sum 1: (1, 1) is the box, (1, 3, 3, 1) that of StyleGAN2.
    """

    weight: Float[Tensor, "1 1 *taps"]

    def __init__(self, dims: Dims, direction: Literal["down", "up"], taps: Sequence[float] = (1.0, 1.0)) -> None:
        super().__init__()
        if len(taps) % 2 or len(taps) == 0 or sum(taps) <= 0.0:
            raise InputError(f"A resampling filter has an even number of taps with a positive sum; got {tuple(taps)}.")
        self.dims, self.down, self.pad = dims, direction == "down", len(taps) // 2 - 1
        self.box = len(taps) == 2 and taps[0] == taps[1]
        line = torch.tensor(list(taps), dtype=torch.float64)
        line = line / line.sum() * (1.0 if self.down else 2.0)
        weight = line if dims == 1 else line[:, None] * line
        # part of the architecture, not of the weights
        self.register_buffer("weight", weight.float()[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *other"]:
        if self.box and self.down:
            return functional.avg_pool2d(x, 2) if self.dims == 2 else functional.avg_pool1d(x, 2)
        if self.box:
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        return self.filter(x, self.pad)

    def filter(self, x: Float[Tensor, "batch channels *space"], pad: int) -> Float[Tensor, "batch channels *other"]:
        """The filter with ``pad`` zeros on each side in place of those that keep the size."""
        channels = x.shape[1]
        weight = self.weight.to(x.dtype).expand(channels, *self.weight.shape[1:])
        if self.down:
            convolve = functional.conv2d if self.dims == 2 else functional.conv1d
        else:
            convolve = functional.conv_transpose2d if self.dims == 2 else functional.conv_transpose1d
        return convolve(x, weight, stride=2, padding=pad, groups=channels)


class Downsample(nn.Module):
    """Halves every side.

    ``"learned"`` is a strided convolution; ``"asymmetric"`` too, padded at the far end only (Ho et al. 2020, code);
    ``"fixed"`` averages with the filter ``taps``. Convolutions may change the channels to ``outputs``.
    """

    def __init__(
        self,
        dims: Dims,
        channels: int,
        kind: Literal["learned", "asymmetric", "fixed"] = "learned",
        taps: Sequence[float] = (1.0, 1.0),
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.far = [0, 1] * dims if kind == "asymmetric" else None
        pad = 0 if self.far else 1
        strided = conv(dims, channels, outputs or channels, stride=2, pad=pad) if kind != "fixed" else None
        self.resample = strided or Resample(dims, "down", taps)

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch outputs *half"]:
        return self.resample(functional.pad(x, self.far) if self.far else x)


class Upsample(nn.Module):
    """Doubles every side with the filter ``taps``, by default nearest neighbours; then a convolution, if learned."""

    def __init__(self, dims: Dims, channels: int, learned: bool = True, taps: Sequence[float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.resample = Resample(dims, "up", taps)
        self.conv = conv(dims, channels, channels) if learned else nn.Identity()

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *double"]:
        return self.conv(self.resample(x))


def to_patches(x: Float[Tensor, "batch channels *space"], patch: int) -> Float[Tensor, "batch _ *patches"]:
    """Signals or images with the values of each patch of side ``patch`` as the channels of one position."""
    if patch == 1:
        return x
    if x.ndim == 4:
        return functional.pixel_unshuffle(x, patch)
    return x.unflatten(2, (-1, patch)).transpose(2, 3).flatten(1, 2)


def from_patches(x: Float[Tensor, "batch _ *patches"], patch: int) -> Float[Tensor, "batch channels *space"]:
    """The inverse of :func:`to_patches`."""
    if patch == 1:
        return x
    if x.ndim == 4:
        return functional.pixel_shuffle(x, patch)
    return x.unflatten(1, (-1, patch)).transpose(2, 3).flatten(2, 3)


class Coordinates(nn.Module):
    """Joins one more channel for each spatial axis: the coordinate of each position along it (Liu et al. 2018).

    It goes evenly from -1 at the first position to 1 at the last, and is 0 where there is only one.
    """

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch more *space"]:
        parts = [x]
        for axis in range(2, x.ndim):
            last = x.shape[axis] - 1
            place = torch.arange(-last, last + 1, 2, device=x.device).to(x.dtype) / max(last, 1)
            along = [1] * x.ndim
            along[axis] = last + 1
            parts.append(place.reshape(along).expand(x.shape[0], 1, *x.shape[2:]))
        return torch.cat(parts, dim=1)
