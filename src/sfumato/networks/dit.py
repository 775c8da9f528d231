"""The diffusion transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sfumato.errors import InputError
from sfumato.networks.attention import TokenAttention, TokenCrossAttention
from sfumato.networks.embeddings import TimeEmbedding
from sfumato.networks.layers import check_divisible, concatenate, from_patches, modulate, to_patches, zero
from sfumato.networks.slots import check_tokens


def patchify(x: Float[Tensor, "batch channels *space"], patch: int) -> Float[Tensor, "batch tokens features"]:
    """The patches of signals or images, row by row; the features of one are its positions, each with its channels."""
    split = to_patches(x, patch).unflatten(1, (x.shape[1], -1))
    return split.flatten(3).permute(0, 3, 2, 1).flatten(2)


def unpatchify(
    tokens: Float[Tensor, "batch tokens features"], patch: int, sides: Sequence[int]
) -> Float[Tensor, "batch channels *space"]:
    """The signals or images of these sides whose patches are given: the inverse of :func:`patchify`."""
    split = tokens.unflatten(2, (patch ** len(sides), -1)).permute(0, 3, 2, 1).flatten(1, 2)
    return from_patches(split.unflatten(2, [side // patch for side in sides]), patch)


def positions(grid: Sequence[int], width: int) -> Float[Tensor, "tokens width"]:
    r"""Sine-cosine features of the places of a grid, row by row.

    Each axis has an equal share of ``2 n`` features, the last axis first: of the coordinate :math:`k` they are
    :math:`\sin(\omega_i k)` and then :math:`\cos(\omega_i k)` with :math:`\omega_i = 10^{-4 i / n}`, :math:`i < n`
    (Vaswani et al. 2017, sec. 3.5; in two dimensions as of Peebles and Xie 2023).
    """
    axes = len(grid)
    if width % (2 * axes):
        raise InputError(
            f"A width of {width} does not divide into sines and cosines of {axes} axes; take a multiple of {2 * axes}."
        )
    n = width // (2 * axes)
    frequencies = 10_000.0 ** (-torch.arange(n, dtype=torch.float64) / n)
    places = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in reversed(places)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


class DiTBlock(nn.Module):
    """Self-attention and a two-layer network, each normalized, scaled, shifted and gated by the embedding.

    The gates are zero at the start (adaLN-zero, Peebles and Xie 2023, sec. 3.2). Cross-attention, where there is any,
    stands between the two and is not modulated (Chen et al. 2024, PixArt-alpha).
    """

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = TokenAttention(width, heads)
        self.cross = TokenCrossAttention(width, heads) if cross else None
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
        token_mask = mask if context is None else None
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), token_mask)
        if self.cross is not None:
            x = x + self.cross(x, context, mask)
        hidden = functional.gelu(self.first(modulate(self.norm2(x), shift2, scale2)), approximate="tanh")
        return x + gate2 * self.second(hidden)


_SIZES: dict[str, tuple[int, int, int]] = {
    "DiT-S": (384, 12, 6),
    "DiT-B": (768, 12, 12),
    "DiT-L": (1024, 24, 16),
    "DiT-XL": (1152, 28, 16),
}
"""Width, depth and heads of the published sizes (Peebles and Xie 2023, table 1)."""


class DiT(nn.Module):
    """A transformer over patches of signals or images (DiT; Peebles and Xie 2023).

    Args:
        sides: length, or height and width, of the data.
        tokens: features of a token of the slot ``tokens``; None for a network without it.
        concatenated: channels of the slot ``channels``.
        preset: the published size, with its patch, that the numbers below are of where they are not given.
        patch: side of a patch; by default that of the preset.
        width: width of the tokens and of the time embedding; by default that of the preset.
        depth: number of blocks; by default that of the preset.
        heads: attention heads; by default those of the preset.
        conditioning: how tokens of a condition are taken in: by cross-attention in every block, with a learned token
            that stands for nothing, or in context, as more tokens of the sequence.
        checkpointing: compute the blocks again in the backward pass, which saves memory and costs time.
        time_features: number of time features, even.
        time_scale: largest frequency of sinusoidal and learned time features, standard deviation of random ones.
        time_kind: features of time: sinusoidal, random Fourier ones, or learned.
    """

    positions: Float[Tensor, "tokens width"]

    def __init__(
        self,
        inputs: int,
        outputs: int,
        sides: Sequence[int],
        *,
        tokens: int | None = None,
        concatenated: int = 0,
        preset: Literal[
            "DiT-S/2", "DiT-S/4", "DiT-S/8", "DiT-B/2", "DiT-B/4", "DiT-B/8",
            "DiT-L/2", "DiT-L/4", "DiT-L/8", "DiT-XL/2", "DiT-XL/4", "DiT-XL/8",
        ] = "DiT-S/2",
        patch: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        conditioning: Literal["cross", "context"] = "cross",
        checkpointing: bool = False,
        time_features: int = 256,
        time_scale: float = 1.0,
        time_kind: Literal["sinusoidal", "fourier", "learned"] = "sinusoidal",
    ) -> None:  # fmt: skip
        super().__init__()
        size, _, side = preset.partition("/")
        if size not in _SIZES or not side.isdigit():
            raise InputError(f"There is no preset {preset!r}; there are {', '.join(f'{name}/2' for name in _SIZES)}.")
        given = zip((patch, width, depth, heads), (int(side), *_SIZES[size]), strict=True)
        patch, width, depth, heads = (default if value is None else value for value, default in given)
        if min(patch, width, depth, heads) < 1:
            raise InputError("A DiT needs a patch, a width, a depth and heads of at least 1.")
        if width % heads:
            raise InputError(f"{heads} attention heads do not divide a width of {width}.")
        self.inputs, self.sides, self.patch, self.width = inputs, tuple(sides), patch, width
        self.tokens, self.concatenated, self.checkpointing = tokens, concatenated, checkpointing
        self.check((inputs, *sides))
        features, cross = patch ** len(self.sides), tokens is not None and conditioning == "cross"
        grid = [side // patch for side in self.sides]
        self.register_buffer("positions", positions(grid, width), persistent=False)
        self.time = TimeEmbedding(time_features, width, time_scale, time_kind)
        self.first = nn.Linear((inputs + concatenated) * features, width)
        self.projection = None if tokens is None else nn.Linear(tokens, width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, width)) if cross else None
        self.blocks = nn.ModuleList(DiTBlock(width, heads, cross) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.last = zero(nn.Linear(width, outputs * features))
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
        """Check that inputs of shape ``(channels, *space)`` fit."""
        channels, *sides = shape
        if len(sides) not in (1, 2):
            raise InputError(f"A DiT takes signals (C, L) or images (C, H, W); got shape {tuple(shape)}.")
        if channels != self.inputs or tuple(sides) != self.sides:
            takes = f"{self.inputs} channels of {'x'.join(map(str, self.sides))}"
            raise InputError(f"This network takes {takes}; got shape {tuple(shape)}.")
        check_divisible(sides, self.patch, "patch", "another patch")

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        vector: Float[Tensor, "batch width"] | None = None,
        tokens: Float[Tensor, "batch context features"] | None = None,
        mask: Bool[Tensor, "batch context"] | None = None,
        channels: Float[Tensor, "batch concatenated *space"] | None = None,
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output for ``x`` at ``time`` (see :mod:`sfumato.networks` for the slots)."""
        self.check(x.shape[1:])
        embedding = self.time.activated(time, vector)
        h = self.first(patchify(concatenate(x, channels, self.concatenated), self.patch)) + self.positions
        count = h.shape[1]
        context, mask = self._context(x, tokens, mask)
        if context is not None and self.nothing is None:
            # in context: more tokens before those of the patches
            h, context = torch.cat([context.to(h.dtype), h], dim=1), None
            mask = None if mask is None else functional.pad(mask, (0, count), value=True)
        attended = None if mask is None else mask[:, None, None]
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, embedding, context, attended, use_reentrant=False, preserve_rng_state=False)
            else:
                h = block(h, embedding, context, attended)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        return unpatchify(self.last(modulate(self.norm(h[:, -count:]), shift, scale)), self.patch, self.sides)

    def _context(
        self, x: Tensor, tokens: Tensor | None, mask: Tensor | None
    ) -> tuple[Float[Tensor, "batch context width"] | None, Bool[Tensor, "batch context"] | None]:
        """The tokens of the condition at the width of the network, and which of them are there."""
        check_tokens(tokens, mask, x, self.tokens)
        if tokens is None or self.projection is None:
            return None if self.nothing is None else self.nothing.expand(x.shape[0], 1, -1), None
        context = self.projection(tokens.to(x.dtype))
        if self.nothing is not None:
            context = torch.cat([self.nothing.expand(x.shape[0], 1, -1).to(context.dtype), context], dim=1)
            mask = None if mask is None else functional.pad(mask, (1, 0), value=True)
        return context, mask
