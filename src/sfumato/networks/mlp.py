"""A multilayer perceptron for vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.embeddings import TimeEmbedding, TimeFeatures
from sfumato.networks.layers import zero
from sfumato.networks.slots import check_vector


def modulate(
    x: Float[Tensor, "batch *tokens width"], shift: Float[Tensor, "batch *one width"], scale: Tensor
) -> Float[Tensor, "batch *tokens width"]:
    r"""Normalized activations, scaled and shifted: :math:`(1 + s)\, x + b` (Peebles and Xie 2023, sec. 3.2)."""
    return torch.addcmul(shift, x, scale + 1.0)


class ModulatedBlock(nn.Module):
    r"""A residual branch that the embedding scales, shifts and gates, closed at the start (adaLN-zero).

    .. math:: x + g \odot W_2\, \mathrm{SiLU}(W_1 ((1 + s) \odot \mathrm{LN}(x) + b)), \quad (b, s, g) = W e

    with :math:`W = 0` at the start (Peebles and Xie 2023, sec. 3.2, there of transformers).
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(embedding, 3 * width))
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch width"], embedding: Float[Tensor, "batch embedding"]
    ) -> Float[Tensor, "batch width"]:
        shift, scale, gate = self.modulation(embedding).chunk(3, dim=1)
        return x + gate * self.second(functional.silu(self.first(modulate(self.norm(x), shift, scale))))


class MLP(nn.Module):
    """Residual blocks of linear layers, for data without space: vectors, points of the plane.

    Args:
        inputs: the length of the input.
        outputs: the length of the output.
        width: the width of every layer.
        depth: residual blocks, of two layers each.
        embedding: width of the time embedding; by default that of the layers.
        time_features: number of time features, even.
        time_scale: the largest frequency of sinusoidal and learned time features, the standard deviation of random
            ones.
        time_kind: ``"sinusoidal"``, random ``"fourier"`` or ``"learned"`` features of time.

    Raises:
        InputError: if a number is not positive, or that of the time features is odd.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 128,
        depth: int = 3,
        embedding: int | None = None,
        time_features: int = 64,
        time_scale: float = 1.0,
        time_kind: TimeFeatures = "sinusoidal",
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width, depth) < 1 or time_features < 2 or time_features % 2:
            raise InputError(
                "An MLP needs inputs, outputs, a width and a depth of at least 1, and an even number of time features; "
                f"got {inputs}, {outputs}, {width}, {depth} and {time_features}."
            )
        self.inputs = inputs
        self.width = embedding or width
        self.time = TimeEmbedding(time_features, self.width, time_scale, time_kind)
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, self.width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(self.width, 2 * width))
        self.last = zero(nn.Linear(width, outputs))

    def check(self, shape: Sequence[int]) -> None:
        """Check that inputs of shape ``(channels,)`` fit.

        Raises:
            InputError: for another length, or data with space.
        """
        if tuple(shape) != (self.inputs,):
            raise InputError(f"This network takes vectors of length {self.inputs}; got shape {tuple(shape)}.")

    def forward(
        self,
        x: Float[Tensor, "batch inputs"],
        time: Float[Tensor, "batch"],
        vector: Float[Tensor, "batch embedding"] | None = None,
    ) -> Float[Tensor, "batch outputs"]:
        """The output for ``x`` at ``time``; ``vector`` is added to the time embedding.

        Raises:
            InputError: if ``x`` or ``vector`` is of another length.
        """
        self.check(x.shape[1:])
        check_vector(vector, x, self.width)
        embedding = self.time(time)
        if vector is not None:
            embedding = embedding + vector
        embedding = functional.silu(embedding)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, embedding)
        shift, scale = self.modulation(embedding).chunk(2, dim=1)
        return self.last(modulate(self.norm(x), shift, scale))
