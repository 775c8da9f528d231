"""Folders with tiny random encoders of text and their tokenizers, as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = (
    "a",
    "the",
    "small",
    "large",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "left",
    "right",
    "of",
    "above",
    "two",
)
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = ("t5", "clip", "bert")


def tokenizer(kind: str) -> Tokenizer:
    """Words to numbers, with the marks that each kind puts at the start and the end."""
    marks = {"t5": ("", "</s>"), "clip": ("<|startoftext|>", "<|endoftext|>"), "bert": ("[CLS]", "[SEP]")}[kind]
    unknown, pad = ("[UNK]", "[PAD]") if kind == "bert" else ("<unk>", "<pad>")
    names = [pad, unknown, *(mark for mark in marks if mark), *WORDS]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([pad, unknown, *(mark for mark in marks if mark)])
    template = f"{marks[0]} $A {marks[1]}".strip()
    special = [(mark, names.index(mark)) for mark in marks if mark]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return made


def save(folder: Path, kind: str, *, seed: int = 0, most: int = 12) -> Path:
    """A folder with ``config.json``, ``model.safetensors`` and a tokenizer, which reads ``most`` tokens."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(kind)
    rows = made.get_vocab_size()
    library: Any = transformers
    if kind == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": rows}
        config = library.T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        maker = library.T5EncoderModel
    elif kind == "clip":
        config = library.CLIPTextConfig(
            **SIZES, vocab_size=rows, max_position_embeddings=most, bos_token_id=2, eos_token_id=3
        )
        maker = library.CLIPTextModel
    else:
        config = library.BertConfig(**SIZES, vocab_size=rows, max_position_embeddings=most)
        maker = library.BertModel
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = maker(config)
        for parameter in network.parameters():  # their own starts are so small that little would be tested
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    names = {"t5": {"eos_token": "</s>"}, "clip": {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": most, **names.get(kind, {})}
    settings |= {"pad_token": "[PAD]", "unk_token": "[UNK]"} if kind == "bert" else {"pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
