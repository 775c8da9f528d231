"""Files: written whole or not at all; JSON and safetensors, never pickles."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sfumato.errors import InputError


class SaveError(OSError):
    """A file could not be written; what stood there before is untouched."""


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it: a crash leaves the old file whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the rename itself must reach the disk
            os.close(folder)
    except (OSError, safetensors.SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full or "code: 28" in str(error) else str(error)
        raise SaveError(f"Could not write {path}: {reason}. What was saved before is untouched.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    text = json.dumps(value, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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


def read_numbers(path: str | Path) -> list[float]:
    """The numbers of a file: a NumPy array, a JSON list, or text with numbers between spaces, commas or lines."""
    path = Path(path)
    try:
        if path.suffix == ".npy":
            import numpy as np

            return np.load(path, allow_pickle=False).astype(float).reshape(-1).tolist()
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return [float(number) for number in json.loads(text)]
        return [float(number) for number in text.replace(",", " ").split()]
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"Could not read numbers from {path} (.npy, .json or text): {reason}.") from None
