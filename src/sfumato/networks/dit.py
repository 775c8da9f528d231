"""The diffusion transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sfumato.errors import InputError
from sfumato.networks.embeddings import TimeEmbedding, TimeFeatures
from sfumato.networks.layers import attend, zero
from sfumato.networks.mlp import modulate
from sfumato.networks.slots import check_channels, check_tokens, check_vector

SIZES: dict[str, tuple[int, int, int]] = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
"""Width, depth and heads of the published sizes (Peebles and Xie 2023, table 1)."""


def patchify(x: Float[Tensor, "batch channels *space"], patch: int) -> Float[Tensor, "batch tokens features"]:
    """The patches of signals or images, row by row; the features of one are its positions, each with its channels."""
    batch, channels, *sides = x.shape
    split = x.reshape(batch, channels, *(n for side in sides for n in (side // patch, patch)))
    axes = range(2, split.ndim, 2)
    split = split.permute(0, *axes, *(axis + 1 for axis in axes), 1)
    return split.reshape(batch, math.prod(side // patch for side in sides), channels * patch ** len(sides))


def unpatchify(
    tokens: Float[Tensor, "batch tokens features"], patch: int, sides: Sequence[int]
) -> Float[Tensor, "batch channels *space"]:
    """The signals or images of these sides whose patches are given: the inverse of :func:`patchify`."""
    dims = len(sides)
    split = tokens.reshape(tokens.shape[0], *(side // patch for side in sides), *[patch] * dims, -1)
    order = [axis for d in range(dims) for axis in (1 + d, 1 + dims + d)]
    return split.permute(0, 2 * dims + 1, *order).reshape(tokens.shape[0], split.shape[-1], *sides)


def positions(grid: Sequence[int], width: int) -> Float[Tensor, "tokens width"]:
    r"""Sine-cosine features of the places of a grid, row by row.

    Each axis has an equal share of ``2 n`` features, the last axis first: of the coordinate :math:`k` they are
    :math:`\sin(\omega_i k)` and then :math:`\cos(\omega_i k)` with :math:`\omega_i = 10^{-4 i / n}`, :math:`i < n`
    (Vaswani et al. 2017, sec. 3.5; in two dimensions as of Peebles and Xie 2023).

    Raises:
        InputError: if the width does not divide into sines and cosines for every axis.
    """
    axes = len(grid)
    if width % (2 * axes):
        raise InputError(
            f"A width of {width} does not divide into sines and cosines of {axes} axes; take a multiple of {2 * axes}."
        )
    n = width // (2 * axes)
    frequencies = 10_000.0 ** (-torch.arange(n, dtype=torch.float64) / n)
    found: list[Tensor] = []
    for axis in reversed(range(axes)):
        angle = torch.arange(grid[axis], dtype=torch.float64)[:, None] * frequencies
        features = torch.cat([angle.sin(), angle.cos()], dim=1)
        shape = [grid[axis] if a == axis else 1 for a in range(axes)]
        found.append(features.reshape(*shape, 2 * n).expand(*grid, 2 * n))
    return torch.cat(found, dim=-1).reshape(-1, width).float()


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other.

    Args:
        width: width of the tokens.
        heads: attention heads, which divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch 1 1 tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """The attended values; tokens whose ``mask`` is False are not attended to."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = attend(q, k, v, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to those of a condition, zero at the start.

    Args:
        width: width of the tokens, and of those of the condition.
        heads: attention heads, which divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = zero(nn.Linear(width, width))

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch context width"],
        mask: Bool[Tensor, "batch 1 1 context"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The attended values; those whose ``mask`` is False are not attended to."""
        q = self.q(self.norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(q, k, v, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """Self-attention and a two-layer network, each normalized, scaled, shifted and gated by the embedding.

    The gates are zero at the start (adaLN-zero, Peebles and Xie 2023, sec. 3.2). Cross-attention, where there is any,
    stands between the two and is not modulated (Chen et al. 2024, PixArt-alpha).
    """

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.cross = CrossAttention(width, heads) if cross else None
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.first = nn.Linear(width, 4 * width)
        self.second = nn.Linear(4 * width, width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        embedding: Float[Tensor, "batch width"],
        context: Float[Tensor, "batch context width"] | None = None,
        mask: Bool[Tensor, "batch 1 1 attended"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The tokens after the block; ``mask`` is that of the context, or without one that of the tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        own = mask if context is None else None
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), own)
        if self.cross is not None:
            x = x + self.cross(x, context, mask)
        hidden = functional.gelu(self.first(modulate(self.norm2(x), shift2, scale2)), approximate="tanh")
        return x + gate2 * self.second(hidden)


class DiT(nn.Module):
    """A transformer over patches of signals or images (Peebles and Xie 2023).

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        size: length, or height and width, of the data.
        patch: side of a patch.
        width: width of the tokens, and of the embedding of time.
        depth: blocks.
        heads: attention heads.
        tokens: width of the tokens of a condition; None for a network that takes none.
        conditioning: how such tokens are taken in: ``"cross"``-attention in every block, with a learned token
            beside them that says nothing; or in ``"context"``, as more tokens of the sequence (sec. 3.2 there).
        concatenated: channels of a condition that are concatenated to those of the input.
        checkpointing: compute the blocks again in the backward pass in place of keeping their activations.
        time_features: number of time features, even.
        time_scale: the largest frequency of sinusoidal and learned time features, the standard deviation of random
            ones.
        time_kind: ``"sinusoidal"``, random ``"fourier"`` or ``"learned"`` features of time.

    Raises:
        InputError: if the settings contradict each other or the size.
    """

    positions: Float[Tensor, "tokens width"]

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Sequence[int],
        *,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        tokens: int | None = None,
        conditioning: Literal["cross", "context"] = "cross",
        concatenated: int = 0,
        checkpointing: bool = False,
        time_features: int = 256,
        time_scale: float = 1.0,
        time_kind: TimeFeatures = "sinusoidal",
    ) -> None:
        super().__init__()
        if min(patch, width, depth, heads) < 1 or time_features < 2 or time_features % 2:
            raise InputError(
                "A DiT needs a patch, a width, a depth and heads of at least 1, and an even number of time features; "
                f"got {patch}, {width}, {depth}, {heads} and {time_features}."
            )
        if width % heads:
            raise InputError(f"{heads} attention heads do not divide a width of {width}.")
        self.inputs, self.size, self.patch, self.width = inputs, tuple(size), patch, width
        self.checkpointing, self.concatenated = checkpointing, concatenated
        self.check((inputs, *size))
        dims, cross = len(self.size), tokens is not None and conditioning == "cross"
        grid = [side // patch for side in self.size]
        self.register_buffer("positions", positions(grid, width), persistent=False)
        self.time = TimeEmbedding(time_features, width, time_scale, time_kind)
        self.first = nn.Linear((inputs + concatenated) * patch**dims, width)
        self.tokens = None if tokens is None else nn.Linear(tokens, width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, width)) if cross else None
        self.blocks = nn.ModuleList(DiTBlock(width, heads, cross) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.last = zero(nn.Linear(width, outputs * patch**dims))
        self._initialize()

    def _initialize(self) -> None:
        """The published initialization: Glorot's for linear layers, a normal one for time; zeros stay."""
        kept = {module for name, module in self.named_modules() if name.endswith(("modulation", "last", "cross.out"))}
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in kept:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in (self.time.first, self.time.second):
            nn.init.normal_(module.weight, std=0.02)
        if self.nothing is not None:
            nn.init.normal_(self.nothing, std=0.02)

    def check(self, shape: Sequence[int]) -> None:
        """Check that inputs of shape ``(channels, *space)`` fit.

        Raises:
            InputError: for another number of channels, another size, or sides that the patch does not divide.
        """
        channels, *sides = shape
        if len(sides) not in (1, 2):
            raise InputError(f"A DiT takes signals (C, L) or images (C, H, W); got shape {tuple(shape)}.")
        if channels != self.inputs or tuple(sides) != self.size:
            raise InputError(
                f"This network takes {self.inputs} channels of {'x'.join(map(str, self.size))}; "
                f"got shape {tuple(shape)}."
            )
        if any(side % self.patch or side == 0 for side in sides):
            below = [max(1, side // self.patch) * self.patch for side in sides]
            above = [-(-side // self.patch) * self.patch for side in sides]
            fits = " or ".join("x".join(map(str, fit)) for fit in dict.fromkeys([tuple(below), tuple(above)]))
            raise InputError(
                f"A size of {'x'.join(map(str, sides))} is not divisible by the patch of {self.patch}; resize to "
                f"{fits}, or use another patch."
            )

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        vector: Float[Tensor, "batch width"] | None = None,
        tokens: Float[Tensor, "batch context features"] | None = None,
        mask: Bool[Tensor, "batch context"] | None = None,
        channels: Float[Tensor, "batch concatenated *space"] | None = None,
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output for ``x`` at ``time``.

        Args:
            x: the input.
            time: what stands for the noise level.
            vector: added to the time embedding.
            tokens: attended to, by a network that was built for tokens.
            mask: False for the tokens that are not to be seen.
            channels: concatenated to ``x``; zeros if they are missing.

        Raises:
            InputError: if the shape of ``x`` does not fit, or the network was not made for the condition or
                takes it in another shape.
        """
        self.check(x.shape[1:])
        check_vector(vector, x, self.width)
        embedding = self.time(time)
        if vector is not None:
            embedding = embedding + vector
        embedding = functional.silu(embedding)
        h = self.first(patchify(self._joined(x, channels), self.patch)) + self.positions
        count = h.shape[1]
        context, keep = self._context(x, tokens, mask)
        if context is not None and self.nothing is None:
            # in context: more tokens before those of the patches
            h, context = torch.cat([context.to(h.dtype), h], dim=1), None
            keep = None if keep is None else functional.pad(keep, (0, count), value=True)
        keep = None if keep is None else keep[:, None, None]
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, embedding, context, keep, use_reentrant=False, preserve_rng_state=False)
            else:
                h = block(h, embedding, context, keep)
        h = h[:, -count:]
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        return unpatchify(self.last(modulate(self.norm(h), shift, scale)), self.patch, self.size)

    def _joined(self, x: Tensor, channels: Tensor | None) -> Float[Tensor, "batch all *space"]:
        """The input with the channels of the condition behind its own."""
        if channels is None:
            return torch.cat([x, x.new_zeros(x.shape[0], self.concatenated, *self.size)], 1) if self.concatenated else x
        check_channels(channels, x, self.concatenated)
        return torch.cat([x, channels.to(x.dtype)], dim=1)

    def _context(
        self, x: Tensor, tokens: Tensor | None, mask: Tensor | None
    ) -> tuple[Float[Tensor, "batch context width"] | None, Bool[Tensor, "batch context"] | None]:
        """The tokens of the condition at the width of the network, and which of them are there."""
        check_tokens(tokens, mask, x, None if self.tokens is None else self.tokens.in_features)
        if tokens is None or self.tokens is None:
            return None if self.nothing is None else self.nothing.expand(x.shape[0], 1, -1), None
        context = self.tokens(tokens.to(x.dtype))
        if self.nothing is not None:
            context = torch.cat([self.nothing.expand(x.shape[0], 1, -1).to(context.dtype), context], dim=1)
            mask = None if mask is None else functional.pad(mask, (1, 0), value=True)
        return context, mask
