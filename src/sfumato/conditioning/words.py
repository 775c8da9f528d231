"""A small text encoder that is trained with the model: words of a vocabulary, and a transformer over them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sfumato.networks.attention import TokenAttention


def _marks() -> str:
    """The marks of all scripts, such as accents and the vowel signs of Hindi, and joiners, as ranges of a pattern."""
    marks = {code for code in range(0x10000) if unicodedata.category(chr(code))[0] == "M"} | {0x200C, 0x200D}
    starts = sorted(code for code in marks if code - 1 not in marks)
    ends = sorted(code for code in marks if code + 1 not in marks)
    return "".join(rf"\u{start:04x}-\u{end:04x}" for start, end in zip(starts, ends, strict=True))


_MARK = f"[{_marks()}]"
_SINGLE = r"[\u3040-\u30ff\u3400-\u9fff]"  # of writings without spaces
_LETTER = rf"(?:(?!{_SINGLE})[^\W_]{_MARK}*)"
WORD = re.compile(rf"{_SINGLE}|{_LETTER}+(?:['’]{_LETTER}+)*|[^\w\s]{_MARK}*|_")
"""A word with its apostrophes, one sign of a writing without spaces, or any other sign, such as an emoji."""

UNKNOWN, PAD = 0, -1


def split(text: str) -> list[str]:
    """The words and signs of a text, in lower case; an accent may be part of its letter or follow it."""
    return WORD.findall(unicodedata.normalize("NFC", text.lower()))


def vocabulary(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """The words of texts, the most frequent first, at most that many."""
    counts = Counter(word for text in texts for word in split(text))
    return tuple(word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])


def numbered(texts: Sequence[Sequence[str]], numbers: dict[str, int]) -> Int[Tensor, "batch length"]:
    """The numbers of words, from 1 on; 0 for an unknown word and -1 behind the last one. A row has a place at least."""
    length = max((len(words) for words in texts), default=0)
    rows = torch.full((len(texts), max(length, 1)), PAD, dtype=torch.long)
    for row, words in zip(rows, texts, strict=True):
        row[: len(words)] = torch.tensor([numbers.get(word, UNKNOWN) for word in words], dtype=torch.long)
    return rows


FAR = 3
"""Words that are further apart than this are all alike far."""


class _Attention(TokenAttention):
    r"""Self-attention that knows words by their distance, and not by where in the text they stand.

    A head adds a learned number of the distance :math:`j - i`, within :math:`\pm` FAR, to the score of word :math:`i`
    with word :math:`j` (Raffel et al. 2020, sec. 2.1), so which words belong together does not depend on where in the
    text they stand.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.distances = nn.Parameter(torch.randn(heads, 2 * FAR + 1) * 0.5)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch 1 1 tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        place = torch.arange(x.shape[1], device=x.device)
        distance = (place - place[:, None]).clamp(-FAR, FAR) + FAR
        scores = (q * q.shape[-1] ** -0.5) @ k.mT + self.distances[:, distance]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return self.out((torch.softmax(scores, dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Self-attention and a two-layer network, each normalized before.

    Not zero at the start, as branches elsewhere are: nothing could learn from how words stand to each other then.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.first = nn.Linear(width, 4 * width)
        self.second = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.second(functional.gelu(self.first(self.norm2(x))))


class Words(nn.Module):
    """A transformer over the words of texts, which knows how far apart two words are and which comes first.

    Args:
        count: of the words of the vocabulary.
        width: features of a word.
        layers: blocks of self-attention and a two-layer network.
        heads: attention heads, which divide the width.
    """

    def __init__(self, count: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count + 1, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, numbers: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """The features of words by their numbers; negative ones are places without a word, which none attends to."""
        # where there are no words at all, something has to be attended to
        seen = (numbers != PAD) | (numbers == PAD).all(1, keepdim=True)
        x = self.alone(numbers)
        for block in self.blocks:
            x = block(x, seen[:, None, None])
        return x

    def alone(self, numbers: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """The features of words by themselves, whatever stands around them."""
        return self.table(numbers.clamp(min=0))
