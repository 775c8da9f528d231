"""Attention: of positions and of tokens, to themselves and to the tokens of a condition."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.networks.cpu_kernels import attend
from sfumato.networks.layers import Norm, zero


def head_count(channels: int, heads: int, head_channels: int | None = None) -> int:
    """The number of attention heads for ``channels``: ``heads``, or with ``head_channels`` that many channels each."""
    parts = heads if head_channels is None else head_channels
    if parts < 1 or channels % parts:
        what = f"{heads} attention heads" if head_channels is None else f"Attention heads of {parts} channels"
        raise InputError(f"{what} do not divide {channels} channels.")
    return heads if head_channels is None else channels // parts


def multi_head(
    q: Float[Tensor, "batch queries width"],
    k: Float[Tensor, "batch keys width"],
    v: Float[Tensor, "batch keys width"],
    heads: int,
    mask: Bool[Tensor, "#batch 1 #queries keys"] | None = None,
) -> Float[Tensor, "batch queries width"]:
    """Attention in each of ``heads`` equal parts of the width.

    Keys whose ``mask`` is False, for all queries or for one, are not attended to.
    """
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return attend(q, k, v, mask).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    r"""Multi-head self-attention over all positions, as a residual branch that is zero at the start.

    With ``features``, each position attends to the tokens of a condition as well: with the queries :math:`q` of the
    positions, and keys and values of both,

    .. math::
        \operatorname{softmax}\left(q\, [k; k_\text{tokens}]^T / \sqrt d\right) [v; v_\text{tokens}]

    (Nichol et al. 2021, sec. 2). A sample without tokens, or whose tokens are all masked, has self-attention alone.

    Args:
        norm: what comes before it, which says how many channels there are.
        heads: number of heads.
        features: those of a token; None for self-attention alone.
        rescale: whether the sum of the branches is divided by :math:`\sqrt 2`.
    """

    def __init__(self, norm: Norm, heads: int, features: int | None = None, *, rescale: bool = False) -> None:
        super().__init__()
        channels = norm.num_channels
        self.heads, self.rescale, self.norm = heads, rescale, norm
        self.qkv = nn.Linear(channels, 3 * channels)
        self.kv = None if features is None else nn.Linear(features, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(
        self,
        x: Float[Tensor, "batch channels *space"],
        tokens: Float[Tensor, "batch length features"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch channels *space"]:
        """The output; tokens whose ``mask`` is False are not seen."""
        q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, dim=2)
        seen = None
        if self.kv is not None and tokens is not None:
            more_k, more_v = self.kv(tokens).chunk(2, dim=2)
            positions, k, v = k.shape[1], torch.cat([k, more_k], dim=1), torch.cat([v, more_v], dim=1)
            seen = None if mask is None else functional.pad(mask, (positions, 0), value=True)[:, None, None]
        out = x + self.out(multi_head(q, k, v, self.heads, seen)).transpose(1, 2).reshape(x.shape)
        return out * math.sqrt(0.5) if self.rescale else out


class CrossAttention(nn.Module):
    """Multi-head attention of all positions to the tokens of a condition, a residual branch that is zero at the start.

    One more key and value, both zero, can always be attended to, so that a sample whose tokens are all masked is
    defined, and equal to one without tokens. ``features`` are those of a token, the rest as in :class:`Attention`.
    """

    def __init__(self, norm: Norm, heads: int, features: int, *, rescale: bool = False) -> None:
        super().__init__()
        channels = norm.num_channels
        self.heads, self.rescale, self.norm = heads, rescale, norm
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(features, 2 * channels)
        self.out = zero(nn.Linear(channels, channels, bias=False))

    def forward(
        self,
        x: Float[Tensor, "batch channels *space"],
        tokens: Float[Tensor, "batch length features"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch channels *space"]:
        """The output; tokens whose ``mask`` is False are not seen."""
        if tokens is not None:
            q = self.q(self.norm(x).flatten(2).transpose(1, 2))
            k, v = functional.pad(self.kv(tokens), (0, 0, 0, 1)).chunk(2, dim=2)
            mask = None if mask is None else functional.pad(mask, (0, 1), value=True)[:, None, None]
            x = x + self.out(multi_head(q, k, v, self.heads, mask)).transpose(1, 2).reshape(x.shape)
        return x * math.sqrt(0.5) if self.rescale else x


class TokenAttention(nn.Module):
    """Multi-head attention of tokens to each other; the heads divide the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "#batch 1 #tokens tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(x).chunk(3, dim=2)
        return self.out(multi_head(q, k, v, self.heads, mask))


class TokenCrossAttention(nn.Module):
    """Multi-head attention of tokens to those of a condition of the same width, zero at the start."""

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
        k, v = self.kv(context).chunk(2, dim=2)
        return self.out(multi_head(self.q(self.norm(x)), k, v, self.heads, mask))
