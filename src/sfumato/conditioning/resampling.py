"""The exact pseudo-inverse of scaling down: the smallest change of a picture that changes its low resolution."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.conditioning.base import keys_of
from sfumato.conditioning.low_resolution import LowResolution, scale_down
from sfumato.diffusion.denoiser import Denoise
from sfumato.errors import InputError
from sfumato.sampling.guidance import Consistent

How = Literal["bicubic", "area"]

_TOGETHER = 64  # unit vectors that are scaled down at once
_ROUNDS = 10  # corrections of what clipping undoes


def down_matrix(length: int, factor: int, how: How = "bicubic") -> Float64[Tensor, "low length"]:
    """The matrix :math:`D` by which :func:`~sfumato.conditioning.low_resolution.scale_down` acts along one axis."""
    columns: list[Tensor] = []
    for start in range(0, length, _TOGETHER):
        units = torch.zeros(min(_TOGETHER, length - start), 1, length, factor, dtype=torch.float64)
        number = torch.arange(len(units))
        units[number, 0, start + number] = 1.0
        columns.append(scale_down(units, factor, how)[:, 0, :, 0])  # constant along the other axis, and stays so
    return torch.cat(columns).T.contiguous()


@lru_cache(maxsize=8)
def up_matrix(length: int, factor: int, how: How = "bicubic") -> Float[Tensor, "length low"]:
    r"""The pseudo-inverse :math:`D^\top (D D^\top)^{-1}` of :func:`down_matrix`, in float32."""
    down = down_matrix(length, factor, how)
    return torch.linalg.solve(down @ down.T, down).T.float().contiguous()


def least_up(
    low: Float[Tensor, "batch channels low_height low_width"], factor: int, how: How = "bicubic"
) -> Float[Tensor, "batch channels height width"]:
    r"""The least picture, in the sum of squares, that :func:`scale_down` turns into ``low``.

    :math:`U_h\, y\, U_w^\top` with the pseudo-inverse :math:`U` of each axis.
    """
    rows, columns = (up_matrix(side * factor, factor, how).to(low) for side in low.shape[2:])
    return rows @ (low @ columns.T)


def in_range(
    pictures: Float[Tensor, "batch channels height width"],
    low: Float[Tensor, "batch channels low_height low_width"],
    factor: int,
    how: How = "bicubic",
) -> Float[Tensor, "batch channels height width"]:
    """Pictures in [-1, 1] that scale down to ``low`` nearly: clipped and corrected in turn.

    Clipping the white and the black that a correction exceeds would undo it by up to a level of 8 bits.
    """
    pictures = pictures.clamp(-1.0, 1.0)
    for _ in range(_ROUNDS):
        pictures = (pictures + least_up(low - scale_down(pictures, factor, how), factor, how)).clamp_(-1.0, 1.0)
    return pictures


def consistent(
    denoiser: Denoise, conditions: Mapping[str, Any], low: Tensor | None = None, *, require: bool = True
) -> Denoise:
    """The denoiser with estimates that agree, scaled down, with the low resolution among the conditions of a model.

    Args:
        denoiser: what is corrected.
        conditions: the conditions of the model by name.
        low: the low resolution without noise, in place of what the condition holds.
        require: refuse a model without a low resolution that is derived from its images. Else it is left alone, and so
            is one whose low resolution is given noise.
    """
    derived = {n: c for n, c in conditions.items() if isinstance(c, LowResolution) and c.column is None}
    if len(derived) != 1:
        if require:
            raise InputError(
                "guidance.consistent needs a model with one condition of kind low_resolution that is scaled down from "
                f"the images; this one has {', '.join(conditions) or 'no conditions'}. Leave it out."
            )
        return denoiser
    [(name, condition)] = derived.items()
    if condition.level > 0.0 and not require:
        return denoiser
    level = next((key for key, part in keys_of(name, condition).items() if part == "level"), None)
    down, up = (partial(f, factor=condition.factor, how=condition.down) for f in (scale_down, least_up))
    if low is not None:
        return Consistent(denoiser, low, condition.factor, down, up)
    return Consistent(denoiser, name, condition.factor, down, up, level, strict=require)
