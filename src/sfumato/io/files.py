"""Files: written whole or not at all, JSON and safetensors, read with suspicion."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sfumato.errors import InputError


class SaveError(OSError):
    """A file could not be written; what stood there before is untouched."""


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it: a crash leaves the old file whole.

    Raises:
        SaveError: if it can't be written, a full disk for example; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":
            # the rename itself must reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
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
    atomic_write(path, lambda temporary: _write_text(temporary, json.dumps(value, indent=2) + "\n"))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able facts about them as one safetensors file, whole or not at all."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {"sfumato": json.dumps(dict(meta))}
    atomic_write(path, lambda temporary: safetensors.torch.save_file(ready, temporary, metadata=facts))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file written by :func:`write_tensors`.

    Raises:
        InputError: if the file is missing, truncated, a pickle, or not written by this package.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = (file.metadata() or {}).get("sfumato")
            if facts is None:
                raise InputError(f"{path} is a safetensors file, but not one that Sfumato wrote: it has no facts.")
            # copies: the tensors of an open file are views of it, and the file may go
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            meta = json.loads(facts)
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        if _is_pickle(path):
            raise InputError(
                f"{path} is a pickle, which can run any code when it is loaded; only safetensors files are read."
            ) from None
        raise InputError(f"{path} is truncated or not a safetensors file ({error}).") from None
    if not isinstance(meta, dict):
        raise InputError(f"{path} was not written by Sfumato: its facts are not facts.")
    return tensors, meta


def _is_pickle(path: Path) -> bool:
    """Whether a file that is no safetensors file begins like a pickle, or like the zip archive of torch.save."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(4)
        return head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")
    return False
