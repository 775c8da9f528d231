"""The causal transformer of DALL-E 2's prior, for embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sfumato.errors import InputError
from sfumato.networks.attention import TokenAttention
from sfumato.networks.dit import positions
from sfumato.networks.embeddings import TimeEmbedding
from sfumato.networks.layers import zero
from sfumato.networks.slots import check_tokens


class _Block(nn.Module):
    """Self-attention and a two-layer network, each normalized before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = TokenAttention(width, heads)
        self.first = nn.Linear(width, 4 * width)
        self.second = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.second(functional.gelu(self.first(self.norm2(x))))


class Prior(nn.Module):
    """A causal transformer that denoises a vector, such as the embedding of an image (Ramesh et al. 2022, sec. 2.2).

    Its sequence is that of the tokens of the conditions, such as the words of a caption and its embedding; then the
    time, with the vectors of the conditions added; the noisy vector; and a learned query. What becomes of the query is
    the output. Each attends to itself and to what comes before it.

    Args:
        tokens: features of a token of the slot ``tokens``; None for a network without it.
        width: width of the transformer, even.
        depth: number of blocks.
        heads: attention heads, which divide the width.
        checkpointing: compute the blocks again in the backward pass, which saves memory and costs time.
        time_features: number of time features, even.
        time_scale: largest frequency of sinusoidal and learned time features, standard deviation of random ones.
        time_kind: features of time: sinusoidal, random Fourier ones, or learned.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        tokens: int | None = None,
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        checkpointing: bool = False,
        time_features: int = 64,
        time_scale: float = 1.0,
        time_kind: Literal["sinusoidal", "fourier", "learned"] = "sinusoidal",
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width, depth, heads) < 1 or width % heads:
            raise InputError(
                "A prior needs inputs, outputs, a width, a depth and heads of at least 1, and heads that divide its "
                f"width; got {inputs}, {outputs}, {width}, {depth} and {heads}."
            )
        self.inputs, self.width, self.tokens, self.checkpointing = inputs, width, tokens, checkpointing
        self.time = TimeEmbedding(time_features, width, time_scale, time_kind)
        self.projection = None if tokens is None else nn.Linear(tokens, width)
        self.first = nn.Linear(inputs, width)
        self.places = nn.Parameter(torch.randn(3, width) * 0.02)  # of time, vector and query
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = zero(nn.Linear(width, outputs))

    def check(self, shape: Sequence[int]) -> None:
        """Check that inputs of shape ``(channels,)`` fit."""
        if tuple(shape) != (self.inputs,):
            raise InputError(f"This network takes vectors of length {self.inputs}; got shape {tuple(shape)}.")

    def forward(
        self,
        x: Float[Tensor, "batch inputs"],
        time: Float[Tensor, "batch"],
        vector: Float[Tensor, "batch width"] | None = None,
        tokens: Float[Tensor, "batch context features"] | None = None,
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch outputs"]:
        """The output for ``x`` at ``time`` (see :mod:`sfumato.networks` for the slots)."""
        self.check(x.shape[1:])
        check_tokens(tokens, mask, x, self.tokens)
        vectors = self.time.activated(time, vector), self.first(x)
        h = torch.stack([*vectors, torch.zeros_like(vectors[1])], dim=1) + self.places
        if tokens is not None and self.projection is not None:
            context = self.projection(tokens.to(h.dtype))
            h = torch.cat([context + positions([context.shape[1]], self.width).to(h), h], dim=1)
        length = h.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=h.device).tril()
        seen = before[None, None]
        if mask is not None:
            # each position sees itself, also one without a word
            itself = torch.eye(length, dtype=torch.bool, device=h.device)
            seen = seen & functional.pad(mask, (0, 3), value=True)[:, None, None] | itself
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, seen, use_reentrant=False, preserve_rng_state=False)
            else:
                h = block(h, seen)
        return self.last(self.norm(h[:, -1]))
