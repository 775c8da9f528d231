"""How saturated pictures are, beside real ones: what high guidance and clipping do to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.report import Row, row

LIMIT = 0.98
"""Values further from 0 are at a limit of the range [-1, 1]."""

Pictures = Float[Tensor, "batch channels *space"]


def saturated(images: Pictures) -> Float[Tensor, "batch"]:
    """The share of the values of each image that are at a limit of the range: above 0.98 or below -0.98."""
    return (images.abs() > LIMIT).flatten(1).float().mean(dim=1)


def contrast(images: Pictures) -> Float[Tensor, "batch"]:
    r"""The standard deviation of the luminance of each image, on 0 ... 255 (root-mean-square contrast).

    Luminance is :math:`0.299\, R + 0.587\, G + 0.114\, B` (ITU-R BT.601), or the mean of other channels.
    """
    channels = images.shape[1]
    weights = images.new_tensor([0.299, 0.587, 0.114] if channels == 3 else [1.0 / channels] * channels)
    return 127.5 * torch.einsum("c,bcn->bn", weights, images.flatten(2)).std(dim=1, correction=0)


def colourfulness(images: Pictures) -> Float[Tensor, "batch"]:
    r"""How colourful each image is, on 0 ... 255 (Hasler and Suesstrunk 2003, "Measuring colourfulness", eq. 8).

    With :math:`a = R - G` and :math:`b = (R + G) / 2 - B`, means :math:`\mu` and standard deviations :math:`\sigma`:

    .. math:: \sqrt{\sigma_a^2 + \sigma_b^2} + 0.3 \sqrt{\mu_a^2 + \mu_b^2}
    """
    if images.shape[1] != 3:
        raise InputError(f"Colourfulness is that of images of 3 channels, red, green, blue; got {images.shape[1]}.")
    red, green, blue = (127.5 * images).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2.0 - blue])
    spread, mean = opponents.var(dim=2, correction=0), opponents.mean(dim=2)
    return spread.sum(0).sqrt() + 0.3 * mean.square().sum(0).sqrt()


def saturation(images: Pictures, real: Pictures | None = None) -> list[Row]:
    """The mean share of saturated values, contrast and, of colours, colourfulness, beside those of real images.

    Args:
        images: in [-1, 1].
        real: real ones, which need not be as many.
    """
    if images.ndim < 3:
        raise InputError(f"Saturation is that of images (N, C, H, W); got vectors of shape {tuple(images.shape)}.")
    measures: dict[str, Callable[[Tensor], Tensor]] = {"saturated values": saturated, "contrast": contrast}
    measures |= {"colourfulness": colourfulness} if images.shape[1] == 3 else {}
    return [
        row(title, None, _mean(of(images)), None if real is None else _mean(of(real)), better="floor")
        for title, of in measures.items()
    ]


def _mean(values: Tensor) -> Estimate:
    error = float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else None
    return Estimate(float(values.double().mean()), error, f"spread over {len(values)} pictures")
