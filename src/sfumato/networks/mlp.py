"""A multilayer perceptron for vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.embeddings import TimeEmbedding
from sfumato.networks.layers import modulate, zero


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

    def forward(self, x: Float[Tensor, "batch width"], embedding: Tensor) -> Float[Tensor, "batch width"]:
        shift, scale, gate = self.modulation(embedding).chunk(3, dim=1)
        return x + gate * self.second(functional.silu(self.first(modulate(self.norm(x), shift, scale))))


class MLP(nn.Module):
    """Residual blocks of linear layers, for data without space: vectors, points of the plane.

    Args:
        width: width of the layers.
        depth: residual blocks, of two layers each.
        embedding: width of the time embedding; by default that of the layers.
        time_features: number of time features, even.
        time_scale: largest frequency of sinusoidal and learned time features, standard deviation of random ones.
        time_kind: features of time: sinusoidal, random Fourier ones, or learned.
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
        time_kind: Literal["sinusoidal", "fourier", "learned"] = "sinusoidal",
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width, depth) < 1:
            raise InputError("An MLP needs inputs, outputs, a width and a depth of at least 1.")
        self.inputs = inputs
        self.width = width if embedding is None else embedding
        self.time = TimeEmbedding(time_features, self.width, time_scale, time_kind)
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, self.width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(self.width, 2 * width))
        self.last = zero(nn.Linear(width, outputs))

    def check(self, shape: Sequence[int]) -> None:
        """Check that inputs of shape ``(channels,)`` fit."""
        if tuple(shape) != (self.inputs,):
            raise InputError(f"This network takes vectors of length {self.inputs}; got shape {tuple(shape)}.")

    def forward(
        self,
        x: Float[Tensor, "batch inputs"],
        time: Float[Tensor, "batch"],
        vector: Float[Tensor, "batch embedding"] | None = None,
    ) -> Float[Tensor, "batch outputs"]:
        """The output for ``x`` at ``time``; ``vector`` is added to the time embedding."""
        self.check(x.shape[1:])
        embedding = self.time.activated(time, vector)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, embedding)
        shift, scale = self.modulation(embedding).chunk(2, dim=1)
        return self.last(modulate(self.norm(x), shift, scale))
