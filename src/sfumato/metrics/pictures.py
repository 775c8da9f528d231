"""Pictures as pretrained networks see them: in colour, of eight bits, and resized as published numbers are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sfumato.errors import InputError


def check_images(what: str, images: Tensor) -> None:
    """An InputError unless ``images``, called ``what``, is a finite float batch ``(N, C, *space)``."""
    if not images.is_floating_point() or images.ndim not in (2, 3, 4) or images.numel() == 0:
        raise InputError(
            f"{what} must be a floating-point tensor of shape (N, C), (N, C, length) or (N, C, height, width),"
            f" not {images.dtype} of shape {tuple(images.shape)}."
        )
    if not bool(torch.isfinite(images).all()):
        raise InputError(f"{what} holds NaN or infinite values; the model or file they come from is broken.")


def check_picture(name: str, shape: tuple[int, ...]) -> None:
    """An InputError unless images ``(C, *space)`` are pictures that a network for colours, called ``name``, takes."""
    if len(shape) != 3:
        kind = "vectors" if len(shape) == 1 else "signals"
        raise InputError(f"{name} sees pictures, and these are {kind} of shape {shape}; take 'classifier' or 'pixels'.")
    if shape[0] not in (1, 3):
        raise InputError(
            f"{name} sees pictures of 1 or 3 channels, and these have {shape[0]}; load them with channels='rgb', which "
            "lays what is transparent over white."
        )


def colours(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Images in [-1, 1] as the colours 0 ... 255 of a file: clipped, rounded to whole numbers; grey becomes R = G = B.

    Published distances are of files of 8 bits. So samples have the same features before and after they were saved.
    """
    rounded = images.float().clamp(-1.0, 1.0).add_(1.0).mul_(127.5).round_()
    return rounded.expand(-1, 3, -1, -1) if images.shape[1] == 1 else rounded


def bicubic(pixels: Float[Tensor, "batch 3 height width"], side: int) -> Float[Tensor, "batch 3 side side"]:
    """Keys' bicubic filter (a = -1/2), widened where it makes smaller, in float, and clipped: that of Pillow.

    It is that of clean-fid (Parmar, Zhang and Zhu, 2022), which resizes each channel as a float image of Pillow.
    """
    if pixels.shape[2:] == (side, side):
        return pixels
    resized = functional.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp_(0.0, 255.0)


def bilinear(pixels: Float[Tensor, "batch 3 height width"], side: int) -> Float[Tensor, "batch 3 side side"]:
    """Bilinear between the four nearest pixels, centres at half-integers; it aliases where it makes smaller.

    It is that of pytorch-fid.
    """
    return functional.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)


def bilinear_corner(pixels: Float[Tensor, "batch 3 height width"], side: int) -> Float[Tensor, "batch 3 side side"]:
    r"""Bilinear as in TensorFlow 1: pixel :math:`i` of the result is at :math:`i h / \mathrm{side}` of the picture.

    So the upper left corners of pixels meet, and not their centres. It is that of the original FID (Heusel et
    al., 2017) and of torch-fidelity.
    """

    def axis(values: Tensor, dim: int) -> Tensor:
        length = values.shape[dim]
        # the factor in float32, as in TensorFlow, decides which pixel a position just at one belongs to
        scale = torch.tensor(length / side, dtype=torch.float32, device=values.device)
        place = torch.arange(side, dtype=torch.float32, device=values.device) * scale
        low = place.long().clamp_max(length - 1)
        shape = [1] * values.ndim
        shape[dim] = side
        first = values.index_select(dim, low)
        return first + (values.index_select(dim, (low + 1).clamp_max(length - 1)) - first) * (place - low).view(shape)

    return axis(axis(pixels, 3), 2)
