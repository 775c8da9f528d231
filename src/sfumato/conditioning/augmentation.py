"""Augmentation of training images on which the network is conditioned, so that samples show none of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from sfumato.conditioning.base import Condition, Data, Filled, rows_of, without_null
from sfumato.errors import InputError
from sfumato.random import Draws, sent

NUMBERS = 9
"""How many numbers encode a transform."""


@dataclass(frozen=True)
class Altering(Condition):
    """What alters training images and tells the network how, in nine numbers: zeros for an image as it is.

    Subclasses have ``training`` and ``alter``.
    """

    @property
    def optional(self) -> bool:
        return True

    def evaluation(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        return {"value": x0.new_zeros(len(x0), NUMBERS)}

    def given(self, value: Any, count: int, *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """The nine numbers of a transform, for all samples or for each; left out, nothing is done to the images."""
        return {"value": rows_of(value, count, (NUMBERS,), "The numbers of a transform")}

    def missing(self, count: int) -> dict[str, Tensor]:
        return {"value": torch.zeros(count, NUMBERS)}

    def default(self, seed: int, first: int, count: int) -> dict[str, Tensor]:
        """Nothing was done."""
        return self.missing(count)

    def slots(self, shape: Sequence[int]) -> Filled:
        return Filled(vector=True)

    def build_encoder(self, shape: Sequence[int], width: int, tokens: int) -> nn.Module:
        return Told(width)


@dataclass(frozen=True)
class Augmentation(Altering):
    r"""Flips, rotations, scalings and shifts of training images, which condition the network (Karras et al. 2022).

    Against over-fitting on few images, up to some ten thousand; of more there is no need. Samples are conditioned on no
    transform, so that none shows in them, not even one that no image of the data bears, such as the flip of a digit.

    Each transform has random parameters, which are 0 where it is left out. The network is conditioned, by a linear map,
    on the numbers (app. F.2, table 6 there)

    .. math:: (a_0,\; a_1,\; a_2,\; \cos a_3 - 1,\; \sin a_3,\; a_5 \cos a_4,\; a_5 \sin a_4,\; a_6,\; a_7)

    of the mirroring and the flip, 0 or 1; the scaling; the angle of the rotation; the direction and the strength of
    the stretch; and the shifts. All but mirroring happen with the ``probability``. They are done in this order, by
    one resampling, with the image reflected at its edges; mirroring, flips and quarter turns are exact.

    Attributes:
        drop: 0: an image without transforms is conditioned on zeros.
        column: none: it is derived from the images.
        probability: how likely each transform but mirroring is, from 0 to 1; the paper has 0.12 for CIFAR-10, 0.15 for
            faces and animals.
        mirror: the fraction of images that are mirrored left to right, from 0 to 1.
        flip: whether images are turned upside down too, half as often as the other transforms.
        rotation: by any angle, by quarter turns (of square images), or none.
        scale: the standard deviation of the binary logarithm of the scale; 0 for none.
        stretch: the same of the stretch along one direction, and of the shrinking across it; 0 for none.
        shift: the standard deviation of the shifts along both axes, over the side of the image; 0 for none.
    """

    drop: float = 0.0
    column: str | None = None
    probability: float = 0.12
    mirror: float = 0.5
    flip: bool = True
    rotation: Literal["any", "quarter", "none"] = "any"
    scale: float = 0.2
    stretch: float = 0.2
    shift: float = 0.125

    def __post_init__(self) -> None:
        if self.drop or self.column is not None:
            raise InputError(
                "An augmentation is derived from the images and never dropped: its drop is 0, and it has no column."
            )
        for name in ("probability", "mirror"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"The {name} of an augmentation lies in [0, 1]; got {getattr(self, name):g}.")
        for name in ("scale", "stretch", "shift"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(
                    f"The {name} of an augmentation is a standard deviation from 0, for none, to 1; "
                    f"got {getattr(self, name):g}."
                )

    @property
    def summary(self) -> str:
        return f"transforms with probability {self.probability:g}, in training only"

    def describe(self, data: Data) -> Augmentation:
        """Checked against the data, whose images alone are transformed."""
        if len(data.shape) != 3:
            raise InputError(f"An augmentation is of images; {data.name} has shape {tuple(data.shape)}.")
        check_columns(data)
        return self

    def drawn(self, draws: Draws) -> Float64[Tensor, "batch 8"]:
        """The parameters of the transforms of samples, each 0 where it is left out."""
        chance, u = draws.uniform("chance", (6,)), draws.uniform("parameters", (6,))
        # uniform numbers are multiples of 2^-32 from 0 on
        z = torch.special.ndtri(u + 2.0**-33)
        parts = chance < self.probability
        turns = {"any": math.pi * (2.0 * u[:, 1] - 1.0), "quarter": (1.0 + (3.0 * u[:, 1]).floor()) * (0.5 * math.pi)}
        return torch.stack(
            [
                (chance[:, 0] < self.mirror).double(),
                (chance[:, 1] < 0.5 * self.probability).double() * self.flip,
                parts[:, 2] * z[:, 0] * bool(self.scale),
                parts[:, 3] * turns.get(self.rotation, torch.zeros(len(u))),
                parts[:, 4] * math.pi * (2.0 * u[:, 2] - 1.0) * bool(self.stretch),
                parts[:, 4] * z[:, 3] * bool(self.stretch),
                parts[:, 5] * z[:, 4] * bool(self.shift),
                parts[:, 5] * z[:, 5] * bool(self.shift),
            ],
            dim=1,
        )

    def training(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """What :meth:`alter` did to the samples of these draws."""
        return {"value": sent(encoded(self.drawn(draws)).to(x0.dtype), x0.device)}

    def alter(self, x0: Float[Tensor, "batch channels h w"], draws: Draws) -> Float[Tensor, "batch channels h w"]:
        a = self.drawn(draws)
        x0 = _some(x0, a[:, 0] > 0.0, lambda x: x.flip(-1))
        x0 = _some(x0, a[:, 1] > 0.0, lambda x: x.flip(-2))
        if self.rotation == "quarter":
            # scalings, which are next, are the same in all directions
            for turns in (1, 2, 3):
                angle = turns * (0.5 * math.pi)
                x0 = _some(x0, a[:, 3] == angle, lambda x, k=turns: x.rot90(k, (-2, -1)))
            a = a.index_fill(1, torch.tensor([3]), 0.0)
        left = (a[:, 2:] != 0.0).any(1)
        linear, offset = self._maps(a[left])
        return _some(x0, left, lambda x: warp(x, linear, offset * torch.tensor([x.shape[3], x.shape[2]])))

    def _maps(self, a: Float64[Tensor, "batch 8"]) -> tuple[Tensor, Tensor]:
        """The linear maps of scaling, rotation and stretch together; and the shifts, over the sides of the image."""
        b = 2.0 ** (self.stretch * a[:, 5])
        along = _rotation(a[:, 4])
        stretch = along @ torch.diag_embed(torch.stack([b, 1.0 / b], dim=1)) @ along.mT
        return stretch @ _rotation(-a[:, 3]) * (2.0 ** (self.scale * a[:, 2]))[:, None, None], self.shift * a[:, 6:]

    def build_encoder(self, shape: Sequence[int], width: int, tokens: int) -> nn.Module:
        if self.rotation == "quarter" and len({*shape[1:]}) > 1:
            raise InputError(f"Quarter turns need square images, not {tuple(shape)}; take the rotation any or none.")
        return super().build_encoder(shape, width, tokens)


class Told(nn.Module):
    """A linear map of what was done to images, in the slot ``vector``: zeros where nothing was."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(NUMBERS, width, bias=False)

    def forward(self, value: Float[Tensor, "batch numbers"]) -> dict[str, Float[Tensor, "batch width"]]:
        return {"vector": self.linear(without_null(value)[0].to(self.linear.weight.dtype))}


def check_columns(data: Data) -> None:
    """Check that there are no other images beside those that are altered."""
    pictures = [name for name, column in data.columns.items() if column.values.ndim == 4]
    if pictures:
        raise InputError(
            f"An augmentation would alter the images of {data.name}, not those of their column {pictures[0]!r}; train "
            "without it, or without the column."
        )


def encoded(a: Float64[Tensor, "batch 8"]) -> Float64[Tensor, "batch numbers"]:
    """What the network is conditioned on, of the parameters of transforms (see :class:`Augmentation`)."""
    turned = torch.stack([a[:, 3].cos() - 1.0, a[:, 3].sin()], dim=1)
    stretched = a[:, 5:6] * torch.stack([a[:, 4].cos(), a[:, 4].sin()], dim=1)
    return torch.cat([a[:, :3], turned, stretched, a[:, 6:]], dim=1)


def warp(
    images: Float[Tensor, "batch channels height width"],
    linear: Float64[Tensor, "batch 2 2"],
    offset: Float64[Tensor, "batch 2"],
) -> Float[Tensor, "batch channels height width"]:
    r"""Images in [-1, 1] whose point :math:`p` is moved to :math:`A p + b`, reflected at the edges.

    Points are :math:`(x, y)` in pixels from the centre, to the right and down. The images are interpolated bilinearly
    between twice as many pixels per side, which are bicubic ones of theirs.

    Args:
        images: the images.
        linear: the maps :math:`A`.
        offset: the shifts :math:`b`.
    """
    half = 0.5 * torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float64)
    # from points of the result to those of the image, in units of half the sides
    back = linear.inverse() / half[:, None] * half
    maps = torch.cat([back, -back @ (offset / half)[:, :, None]], dim=2)
    grid = functional.affine_grid(sent(maps.to(images.dtype), images.device), list(images.shape), align_corners=False)
    fine = functional.interpolate(images, scale_factor=2, mode="bicubic", antialias=True)
    return functional.grid_sample(fine, grid, padding_mode="reflection", align_corners=False).clamp(-1.0, 1.0)


def _rotation(angle: Float64[Tensor, "batch"]) -> Float64[Tensor, "batch 2 2"]:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)


def _some(x: Tensor, rows: Bool[Tensor, "batch"], change: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``change`` makes of the rows that are chosen, and the others as they are."""
    chosen = rows.nonzero()[:, 0]
    if not len(chosen):
        return x
    chosen = sent(chosen, x.device)
    return x.index_copy(0, chosen, change(x[chosen]))
