"""Texts in tensors: what a batch carries to the device has numbers only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from torch import Tensor


def packed(texts: Iterable[str]) -> UInt8[Tensor, "batch length"]:
    """Texts as the bytes of their UTF-8, each filled up with zeros to the longest of them."""
    words = [text.encode("utf-8", "replace") for text in texts]
    width = max(map(len, words), default=0)
    joined = bytearray(b"".join(word.ljust(width, b"\0") for word in words))
    values: Any = np.frombuffer(joined, dtype=np.uint8)
    return torch.from_numpy(values.reshape(len(words), width))


def unpacked(rows: Integer[Tensor, "batch length"]) -> list[str]:
    """The texts that :func:`packed` has put into a tensor, of any type of whole numbers and on any device."""
    values = rows.detach().cpu().to(torch.uint8).numpy()
    return [row.tobytes().rstrip(b"\0").decode("utf-8", "replace") for row in values]
