"""Tensors in safetensors files; pickles are never read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.io.files import atomic_write


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"sfumato": json.dumps(dict(meta))}
    atomic_write(path, lambda temporary: safetensors.torch.save_file(ready, temporary, metadata=metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and metadata of a file written by :func:`write_tensors`."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("sfumato")
            if text is None:
                raise InputError(f"{path} is a safetensors file, but not one that Sfumato wrote: it has no metadata.")
            # copies: the tensors of an open file are views of it, and the file may go
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            meta = json.loads(text)
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        head = b""
        with contextlib.suppress(OSError), path.open("rb") as file:
            head = file.read(4)
        if head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):  # torch.save's zip
            raise InputError(f"{path} is a pickle, which can run any code; only safetensors are read.") from None
        raise InputError(f"{path} is truncated or not a safetensors file ({error}).") from None
    if not isinstance(meta, dict):
        raise InputError(f"{path} was not written by Sfumato: its metadata is no JSON object.")
    return tensors, meta
