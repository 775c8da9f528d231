"""Files: written whole or not at all; JSON and numbers. Importing it costs no torch."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors

from sfumato.errors import InputError


def cache_folder() -> Path:
    """What can be computed again is kept here: ``sfumato`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    # the specification of base directories says to pass over a relative one
    return (Path(stated) if Path(stated).is_absolute() else Path("~/.cache").expanduser()) / "sfumato"


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


def sweep(folder: Path) -> None:
    """Delete what :func:`atomic_write` leaves in a folder, and in those within, when its process is killed."""
    for path in folder.rglob(".*.tmp"):
        if re.fullmatch(r"\..*\.\d+-\d+\.tmp", path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def json_object(text: str) -> dict[str, Any] | None:
    """The object that is a text of JSON, None of any other text, as a line that a crash cut off; it may hold NaN."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_json(path: Path) -> Any:
    """The value of a JSON file, whose numbers are finite; an InputError says what is wrong with it."""

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:20]} is no finite number")
        return value

    def whole(text: str) -> int:
        number(text)
        return int(text)

    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, parse_float=number, parse_int=whole, parse_constant=number)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"it is not valid JSON ({error})"
        raise InputError(f"Could not read {path}: {reason}.") from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    text = json.dumps(value, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_npy(path: Path) -> Any:
    """The NumPy array of an .npy file, which holds no objects."""
    # the help of commands reads no arrays
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file makes NumPy raise errors of any kind
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"Could not read {path}: {reason or type(error).__name__}.") from None


def read_numbers(path: str | Path) -> list[float]:
    """The numbers of a file: a NumPy array, a JSON list, or text with numbers between spaces, commas or lines."""
    path = Path(path)
    try:
        if path.suffix == ".npy":
            return read_npy(path).astype(float).reshape(-1).tolist()
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return [float(number) for number in read_json(path)]
        return [float(number) for number in text.replace(",", " ").split()]
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"Could not read numbers from {path} (.npy, .json or text): {reason}.") from None
