"""Images and what describes them, embedded in one space (CLIP)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.conditioning.base import Condition
from sfumato.conditioning.layout import CHANNELS, SIDE
from sfumato.diffusion.level import Data
from sfumato.errors import InputError
from sfumato.networks.layers import zero

IMAGE, CAPTION = "image_embedding", "caption_embedding"
"""The columns of data that hold embeddings by a contrastive model (``data.embedder``)."""

_STEEPEST = math.log(100.0)  # the paper's bound on the scale, against instability


def same_descriptions(columns: Sequence[Tensor], count: int) -> Bool[Tensor, "batch batch"]:
    """Which of ``count`` images have the same description, by the columns of it; without columns, each its own."""
    if not columns:
        return torch.eye(count, dtype=torch.bool)
    kinds = [torch.unique(column[:, None].flatten(1), dim=0, return_inverse=True)[1] for column in columns]
    return torch.stack([kind[:, None] == kind for kind in kinds]).all(0)


class Contrast(nn.Module):
    r"""Embeddings of unit length of images and of one of their conditions (CLIP; Radford et al. 2021).

    How well the two go together is their dot product, the cosine of their angle; times the learned :attr:`scale` it is
    a logit.

    Args:
        network: called as ``network(x, time)`` with times of 0, gives features of an image.
        condition: what describes an image, such as its caption.
        encoder: the encoder of the condition, whose slot ``vector`` has as many features.
        data_std: the standard deviation of the data; the network sees images of unit variance.
        temperature: the inverse of the scale at the start, positive.
        resizes: whether the network takes images of any size.
        layout: features of the embedding, if the encoder also fills the slot ``channels``, such as with the layout of a
            caption: a linear map of its 8x8 cells is added to the vector. Without it, which thing is left of which is
            not learned.
    """

    def __init__(
        self,
        network: nn.Module,
        condition: Condition,
        encoder: nn.Module,
        *,
        data_std: float = 1.0,
        temperature: float = 0.07,
        resizes: bool = False,
        layout: int | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0.0:
            raise InputError(f"The temperature of a contrastive model must be positive; got {temperature}.")
        self.network, self.condition, self.encoder, self.data_std = network, condition, encoder, data_std
        self.resizes = resizes
        self.layout = None if layout is None else zero(nn.Linear(CHANNELS * SIDE**2, layout))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The inverse temperature, at most 100."""
        return self.log_scale.clamp(max=_STEEPEST).exp()

    def images(self, x: Data) -> Float[Tensor, "batch features"]:
        """The embeddings of images."""
        return functional.normalize(self.network(x / self.data_std, x.new_zeros(len(x))).float(), dim=1)

    def texts(self, **parts: Tensor) -> Float[Tensor, "batch features"]:
        """The embeddings of what describes them, from the parts of the condition by name."""
        slots = self.encoder(**parts)
        vector = slots["vector"].float()
        if self.layout is not None:
            cells = functional.adaptive_avg_pool2d(slots["channels"], (SIDE, SIDE))
            vector = vector + self.layout(cells.flatten(1)).float()
        return functional.normalize(vector, dim=1)
