"""Errors that users can cause and fix: one sentence each, without a traceback on the command line."""

from __future__ import annotations

import difflib
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """An invalid input. The message says what is wrong, what was expected and how to fix it."""


class Terminated(KeyboardInterrupt):
    """The system asked the process to end, by SIGTERM or SIGHUP."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class SfumatoWarning(UserWarning):
    """Something that works, but is probably not what the user meant."""


def require_memory(values: int, what: str, lower: str, device: Any = None) -> None:
    """Raise if ``values`` numbers of 4 bytes cannot fit into the memory of the machine or of a GPU.

    Args:
        values: the least number of values held at once.
        what: what the values are, for the message.
        lower: the setting to lower, for the message.
        device: the torch device they are on, if it is a GPU.
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
            f"{what} need at least {4 * values / gib:,.1f} GiB, but there are only {most / gib:.1f} GiB; lower {lower}."
        )


def require_device(device: Any) -> None:
    """Raise if torch can't use the device here."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError):
        raise InputError(f"There is no device {device!r} here that torch can use; cpu always works.") from None


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise if an argument does not have the plain type of its annotation in a function or of a field in a class.

    Public functions call it first, with ``locals()``: Python itself accepts anything, and fails later with an unrelated
    message.
    """
    for name, annotation in function.__annotations__.items():
        parts = annotation.split(" | ") if isinstance(annotation, str) else [""]
        if name not in given or not all(part in _PLAIN for part in parts):
            continue
        if not any(_PLAIN[part][1](given[name]) for part in parts):
            wanted = " or ".join(_PLAIN[part][0] for part in parts)
            raise InputError(f"{name} is {shown(given[name])}; expected {wanted}.")


def shown(value: Any) -> str:
    """A value as shown in a message: on one line, and shortened if it is long."""
    return " ".join(repr(value).split())[:60]


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)  # works for a bool too
    except Exception:  # tensors and arrays raise any kind
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


_SHOWN = 60  # the most choices that a message lists


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: ``"; did you mean 'digits'?"``, or the list of choices if none is similar."""
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(known) - _SHOWN} others" if len(known) > _SHOWN else ""
    return f"; known are {', '.join(known[:_SHOWN])}{more}." if known else "."
