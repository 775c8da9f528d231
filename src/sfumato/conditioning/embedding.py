"""Embeddings: one of fixed length, such as that of an image by CLIP, or the sequence of those of a caption's words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sfumato.conditioning.base import Condition, Data, Filled, Null, numbers_of, rows_of, take, without_null
from sfumato.errors import InputError
from sfumato.random import Draws

TOKEN_FEATURES = 128  # of the extra tokens, where no other condition decides them


@dataclass(frozen=True)
class Embedding(Condition):
    r"""A vector of numbers: added to the time embedding, and attended to as extra tokens (Ramesh et al. 2022).

    Every number is standardized by the mean and the standard deviation it has in the training data.

    Attributes:
        drop: the fraction of samples that are trained without it, from 0 to below 1.
        column: the column of the data that holds it, one number or a vector per image.
        extra_tokens: how many tokens it is also projected to; DALL-E 2 has 4.
        mean: the mean of each number, taken from the data.
        std: the standard deviation of each number, taken from the data.
        identity: what tells the model that made them from all others, taken from the data.
    """

    column: str = "embedding"
    extra_tokens: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    identity: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extra_tokens < 0 or len(self.mean) != len(self.std):
            raise InputError("An embedding needs extra_tokens >= 0, and as many means as standard deviations.")

    @property
    def meaning(self) -> tuple[str, ...]:
        made = (f"those of the model {self.identity[:12]}...",) if self.identity else ()
        return (f"vectors of {len(self.mean)} numbers", *made)

    def describe(self, data: Data) -> Embedding:
        """With the mean and the standard deviation of each number."""
        column = take(data.columns, self.column, data.name)
        values = column.values
        if values.dtype.kind not in "iufb":
            raise InputError(f"{data.name}: the column {self.column!r} holds texts, not embeddings of them.")
        values = np.asarray(values, dtype=np.float64)
        if values.ndim > 2 or not values.size or not np.isfinite(values).all():
            held = f"the column {self.column!r} of shape {values.shape} holds no embeddings"
            raise InputError(f"{data.name}: {held}, (N,) or (N, features) of finite numbers.")
        values = values.reshape(len(values), -1)
        std = values.std(0)
        # what never changes says nothing, however it is scaled
        std = np.where(std > 0.0, std, 1.0)
        return replace(self, mean=tuple(values.mean(0).tolist()), std=tuple(std.tolist()), identity=column.identity)

    def training(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        values = take(columns, self.column).float()
        return {"value": values[:, None] if values.ndim == 1 else values}

    def given(self, value: Any, count: int, *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """A vector, or a number where it is one, for all samples or one for each: numbers, or an .npy file."""
        features, what = len(self.mean), f"The embedding {self.column!r}"
        value = numbers_of(value, what)
        if features == 1 and value.ndim < 2:
            value = value.reshape(-1, 1)
            value = value[0] if len(value) == 1 else value
        return {"value": rows_of(value, count, (features,), what)}

    def missing(self, count: int) -> dict[str, Tensor]:
        return {"value": torch.full((count, len(self.mean)), torch.nan)}

    def slots(self, shape: Sequence[int]) -> Filled:
        return Filled(vector=True, tokens=TOKEN_FEATURES if self.extra_tokens else None)

    def build_encoder(self, shape: Sequence[int], width: int, tokens: int) -> nn.Module:
        return EmbeddingEncoder(self, width, tokens)


class EmbeddingEncoder(nn.Module):
    """Two linear layers to the vector, and one to the extra tokens."""

    mean: Tensor
    std: Tensor

    def __init__(self, condition: Embedding, width: int, tokens: int) -> None:
        super().__init__()
        features, extra = len(condition.mean), condition.extra_tokens
        if not features:
            raise InputError(f"The embedding {condition.column!r} is not described; its length is that of the data.")
        self.register_buffer("mean", torch.tensor(condition.mean), persistent=False)
        self.register_buffer("std", torch.tensor(condition.std), persistent=False)
        self.vector = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.null = Null((width,), condition.drop)
        self.tokens = nn.Linear(features, extra * tokens) if extra else None
        self.null_tokens = Null((extra, tokens), condition.drop) if extra else None

    def forward(self, value: Float[Tensor, "batch features"]) -> dict[str, Tensor]:
        value, null = without_null(value)
        value = (value - self.mean) / self.std
        slots = {"vector": self.null(self.vector(value), null)}
        if self.tokens is not None and self.null_tokens is not None:
            tokens = self.tokens(value)
            slots["tokens"] = self.null_tokens(tokens.unflatten(1, self.null_tokens.value.shape), null)
        return slots


@dataclass(frozen=True)
class Tokens(Condition):
    """Tokens that are attended to, and their pooled vector added to the time embedding (Saharia et al. 2022).

    Attributes:
        drop: the fraction of samples that are trained without them, from 0 to below 1.
        column: the column of the data that holds them, (length, features) per image.
        mask_column: the column that is True for the tokens there are and False for padding; without one all are.
        pooling: how the vector comes from the tokens: by attention with a learned query, as their mean, or not at all.
        features: the features of a token, taken from the data.
    """

    column: str = "tokens"
    mask_column: str | None = None
    pooling: Literal["attention", "mean", "none"] = "attention"
    features: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        return ("value", "mask")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.mask_column is None else (self.column, self.mask_column)

    def describe(self, data: Data) -> Tokens:
        """With the features of a token."""
        super().describe(data)
        shape = tuple(data.columns[self.column].values.shape)
        if len(shape) != 3:
            raise InputError(f"{data.name}: {self.column!r} has shape {shape}; expected (N, length, features).")
        return replace(self, features=int(shape[2]))

    def training(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        tokens = take(columns, self.column).float()
        if self.mask_column is None:
            return {"value": tokens, "mask": tokens.new_ones(tokens.shape[:2], dtype=torch.bool)}
        return {"value": tokens, "mask": take(columns, self.mask_column).bool()}

    def given(self, value: Any, count: int, *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """Tokens ``(length, features)`` for all samples or one for each, or a pair of these and a mask; a .npy."""
        tokens, mask = value if isinstance(value, tuple) else (value, None)
        tokens = rows_of(tokens, count, (None, self.features), f"The condition {self.column!r}")
        mask = torch.ones(tokens.shape[1]) if mask is None else mask
        return {"value": tokens, "mask": rows_of(mask, count, (tokens.shape[1],), "The mask of the tokens").bool()}

    def missing(self, count: int) -> dict[str, Tensor]:
        mask = torch.zeros(count, 1, dtype=torch.bool)
        return {"value": torch.full((count, 1, self.features), torch.nan), "mask": mask}

    def null_rows(self, parts: Mapping[str, Tensor]) -> Bool[Tensor, "batch"]:
        # where data have masks, some of their images may have no token at all
        return ~parts["mask"].any(1) if self.mask_column is None else super().null_rows(parts)

    def slots(self, shape: Sequence[int]) -> Filled:
        return Filled(vector=self.pooling != "none", tokens=self.features)

    def build_encoder(self, shape: Sequence[int], width: int, tokens: int) -> nn.Module:
        if not self.features:
            raise InputError(f"The tokens {self.column!r} are not described; the data say their features.")
        return TokensEncoder(self.features, width, tokens, drop=self.drop, pooling=self.pooling)


class TokensEncoder(nn.Module):
    """Normalized and projected tokens, and a vector that is pooled from them; a learned token stands for none.

    Args:
        features: of a token, as it comes in.
        width: of the slot ``vector``.
        tokens: features of a token of the slot; 0 for the vector alone.
        drop: the fraction of samples that are trained without any.
        pooling: as of :class:`Tokens`.
        norm: whether tokens and vector are normalized (LayerNorm).
    """

    def __init__(
        self,
        features: int,
        width: int,
        tokens: int,
        *,
        drop: float,
        pooling: Literal["attention", "mean", "none"] = "attention",
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.norm = nn.LayerNorm(features) if norm else nn.Identity()
        self.project = nn.Linear(features, tokens) if tokens else None
        self.null_token = Null((tokens,), drop if tokens else 0.0)
        self.query = nn.Parameter(torch.randn(features) / math.sqrt(features)) if pooling == "attention" else None
        if pooling != "none":
            self.vector = nn.Sequential(nn.LayerNorm(features) if norm else nn.Identity(), nn.Linear(features, width))
            self.null = Null((width,), drop)

    def forward(
        self, value: Float[Tensor, "batch length features"], mask: Bool[Tensor, "batch length"]
    ) -> dict[str, Tensor]:
        """Tokens, their mask and their vector; a sample of which no token is seen has the learned stand-ins."""
        value, _ = without_null(value)
        null = ~mask.any(1)
        tokens = self.norm(value)
        # where nothing is seen, the first place holds the null token
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        seen = mask | (null[:, None] & first)
        slots: dict[str, Tensor] = {}
        if self.project is not None:
            projected = self.project(tokens)
            placed = torch.where(null[:, None, None], self.null_token.value.to(projected.dtype), projected)
            slots = {"tokens": placed, "mask": seen}
        if self.pooling != "none":
            score = tokens @ self.query if self.query is not None else tokens.new_zeros(mask.shape)
            share = score.masked_fill(~seen, -torch.inf).softmax(1).to(tokens.dtype)
            slots["vector"] = self.null(self.vector((share[..., None] * tokens).sum(1)), null)
        return slots
