"""Tensors in files: our own are safetensors; of those of others nothing but tensors is read."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.io import files
from sfumato.io.files import atomic_write, json_object

_LARGE = 1 << 24  # bytes of a file from which on its sha256 is kept between processes


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"sfumato": json.dumps(dict(meta))}

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode
        safetensors.torch.save_file(ready, temporary, metadata=metadata)
        temporary.chmod(mode)  # that library would let nobody else read it

    atomic_write(path, write)


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
            meta = json_object(text)
    except (safetensors.SafetensorError, OSError) as error:
        head = b""
        with contextlib.suppress(OSError), path.open("rb") as file:
            head = file.read(4)
        if head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):  # torch.save's zip
            raise InputError(f"{path} is a pickle, which can run any code; only safetensors are read.") from None
        raise InputError(f"{path} is truncated or not a safetensors file ({error}).") from None
    if meta is None:
        raise InputError(f"{path} was not written by Sfumato: its metadata is no JSON object.")
    return tensors, meta


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of a file written by :func:`write_tensors`, without its tensors; nothing if it can't be read."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return json_object((file.metadata() or {}).get("sfumato", "")) or {}
    except (safetensors.SafetensorError, OSError):
        return {}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file: safetensors, or a state dict that torch saved, of which nothing but tensors is read."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file of weights {path}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        values: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # what is no pickle fails in ways that nobody lists
        if not isinstance(error, UnpicklingError) or not zipfile.is_zipfile(path):
            raise InputError(f"{path} is truncated or no file of weights ({type(error).__name__}).") from None
        raise InputError(
            f"{path} holds more than tensors, and what else a pickle holds can run any code; save its state dict alone."
        ) from None
    return check_state(values, str(path))


def check_state(values: Any, origin: str) -> dict[str, Tensor]:
    """The values if they are a state dict, a mapping from names to tensors; ``origin`` is what they are called."""
    if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
        raise InputError(f"{origin} is no state dict: a mapping from names to tensors is expected.")
    return {str(name): value for name, value in values.items()}


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_sha256(path: Path) -> str:
    """:func:`sha256_of` a file, which is not read again as long as its size and its time of change are the same.

    It is kept in the user's cache, since a second passes for each GB or so.
    """
    state = path.stat()
    return _kept_sha256(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _kept_sha256(path: Path, size: int, changed: int) -> str:
    if size < _LARGE:
        return sha256_of(path)
    name = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    note = files.cache_folder() / "sha256" / f"{name}.json"
    known = {"path": str(path), "size": size, "changed": changed}
    with contextlib.suppress(InputError, TypeError, AttributeError):
        stored = dict(files.read_json(note))
        if isinstance(digest := stored.pop("sha256", None), str) and stored == known:
            return digest
    digest = sha256_of(path)
    with contextlib.suppress(files.SaveError):
        files.write_json(note, {**known, "sha256": digest})
    return digest


def require_sha256(path: Path, expected: str, *, kept: bool = False) -> str:
    """The sha256 of a file, which is the expected one; else an InputError. ``kept`` as for :func:`kept_sha256`."""
    if not path.is_file():
        raise InputError(f"There is no file of weights {path}.")
    if (found := (kept_sha256 if kept else sha256_of)(path)) != expected:
        raise InputError(
            f"{path} does not hold the published weights: its sha256 is {found[:12]}... and not {expected[:12]}...; "
            "delete it and fetch or install it again."
        )
    return found
