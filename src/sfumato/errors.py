"""Errors that a person can cause and fix: one sentence each, no traceback on the command line."""

from __future__ import annotations

import difflib
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """A wrong input. The message says what is wrong, what was expected and how to fix it."""


class Terminated(KeyboardInterrupt):
    """The system asked the process to end, by SIGTERM or SIGHUP."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class SfumatoWarning(UserWarning):
    """Something that works but is probably not what was meant."""


def require_memory(values: int, what: str, lower: str, device: Any = None) -> None:
    """Refuse what cannot fit: ``values`` numbers of 4 bytes, in more than all memory of the machine or of a GPU.

    Args:
        values: how many there are at once, at least.
        what: what they are, for the message.
        lower: which setting makes them fewer.
        device: the torch device that they are on, if it is a GPU.
    """
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        most: int = torch.cuda.get_device_properties(device).total_memory
    else:
        import psutil

        most = psutil.virtual_memory().total
    if 4 * values > most:
        gib = 2.0**30
        raise InputError(
            f"{what} need at least {4 * values / gib:,.1f} GiB, and there are {most / gib:.1f} GiB here; lower {lower}."
        )


def require_device(device: Any) -> None:
    """Refuse a device that torch can't use here."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError):
        raise InputError(f"There is no device {device!r} here that torch can use; cpu always works.") from None


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse arguments that are not of the plain types that a function, or the fields of a class, are annotated with.

    It is the first line of a public function, with ``locals()``: Python takes anything, and fails later in other words.
    """
    for name, annotation in function.__annotations__.items():
        parts = annotation.split(" | ") if isinstance(annotation, str) else [""]
        if name not in given or not all(part in _PLAIN for part in parts):
            continue
        if not any(_PLAIN[part][1](given[name]) for part in parts):
            wanted = " or ".join(_PLAIN[part][0] for part in parts)
            raise InputError(f"{name} is {shown(given[name])}; expected {wanted}.")


def shown(value: Any) -> str:
    """A value in a message: on one line, and not all of a large one."""
    return " ".join(repr(value).split())[:60]


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)  # a bool has one too
    except Exception:  # of tensors and arrays: any
        return False
    return True


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except Exception:
        return False
    return not isinstance(value, str | bytes)


def _is_a(name: str) -> Callable[[Any], bool]:
    return lambda value: any(kind.__name__ == name for kind in type(value).__mro__)


_PLAIN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _is_whole),
    "float": ("a number", _is_number),
    "str": ("a string", lambda value: isinstance(value, str | os.PathLike)),
    "Path": ("a path", lambda value: isinstance(value, os.PathLike)),
    "bool": (
        "True or False",
        lambda value: isinstance(value, numbers.Integral) or type(value).__name__ in ("bool", "bool_"),
    ),
    "None": ("None", lambda value: value is None),
    "Sequence[int]": (
        "sizes such as (16, 1, 8, 8)",
        lambda value: isinstance(value, tuple | list) and len(value) > 0 and all(map(_is_whole, value)),
    ),
    "tuple[int, int]": (
        "two of them",
        lambda value: isinstance(value, tuple | list) and all(map(_is_whole, value)),
    ),
    **{name: (f"a {name}", _is_a(name)) for name in ("Dataset", "Model", "SamplingConfig")},
}


_SHOWN = 60  # choices that a message lists at most


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: ``"; did you mean 'digits'?"``, or the choices if none is similar."""
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(known) - _SHOWN} others" if len(known) > _SHOWN else ""
    return f"; known are {', '.join(known[:_SHOWN])}{more}." if known else "."
