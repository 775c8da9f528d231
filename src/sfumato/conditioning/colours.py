"""Colours of training images that change places, which the network is told, so that samples have their own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from sfumato.conditioning.augmentation import Altering, check_columns
from sfumato.conditioning.base import Data
from sfumato.errors import InputError
from sfumato.random import Draws, sent

_ORDERS = torch.tensor(list(itertools.permutations(range(3))))


@dataclass(frozen=True)
class Colours(Altering):
    """The channels of RGB images are put into another order in training, and the network is told which.

    It learns forms whatever their colour then: without, a form that the data never have in red is not drawn in red,
    whatever a caption says. The network is conditioned, by a linear map, on the matrix of the permutation less the
    identity; samples, on zeros. (After the augmentation of Karras et al. 2022, app. F.2, which leaves colours alone.)

    Attributes:
        drop: 0: an image as it is, is conditioned on zeros.
        column: none: it is derived from the images.
        fraction: of the images whose channels are put into one of their six orders at random, from 0 to 1; 0 for images
            that have another number of channels.
    """

    drop: float = 0.0
    column: str | None = None
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if self.drop or self.column is not None:
            raise InputError("Colours are derived from the images, and never dropped: they have no drop and no column.")
        if not 0.0 <= self.fraction <= 1.0:
            raise InputError(f"The fraction of images whose colours change lies in [0, 1]; got {self.fraction:g}.")

    @property
    def summary(self) -> str:
        return f"other colours of {self.fraction:.0%} of the images, in training only"

    def describe(self, data: Data) -> Colours:
        """Checked against the data, whose images alone change; the fraction is 0 without three channels."""
        check_columns(data)
        is_rgb = len(data.shape) == 3 and data.shape[0] == 3
        return self if is_rgb else replace(self, fraction=0.0)

    def orders(self, draws: Draws) -> Int64[Tensor, "batch 3"]:
        """From which channel each channel is taken."""
        u = draws.uniform("orders", (2,))
        return _ORDERS[torch.where(u[:, 0] < self.fraction, (len(_ORDERS) * u[:, 1]).long(), 0)]

    def training(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """What :meth:`alter` did to the samples of these draws."""
        identity = torch.eye(3, dtype=x0.dtype)
        return {"value": sent((identity[self.orders(draws)] - identity).flatten(1), x0.device)}

    def alter(self, x0: Tensor, draws: Draws) -> Tensor:
        if not self.fraction:
            return x0
        orders = sent(self.orders(draws), x0.device)
        return x0.gather(1, orders[:, :, None, None].expand_as(x0))
