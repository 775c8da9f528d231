"""Errors that a person can cause and fix: one sentence each, no traceback on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A wrong input. The message says what is wrong, what was expected and how to fix it."""


class Terminated(KeyboardInterrupt):
    """The system asked the process to end, by SIGTERM or SIGHUP."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class SfumatoWarning(UserWarning):
    """Something that works but is probably not what was meant."""


def require_memory(values: int, what: str, lower: str) -> None:
    """Refuse what cannot fit: ``values`` numbers of 4 bytes, in more than all memory of the machine.

    Args:
        values: how many there are at once, at least.
        what: what they are, for the message.
        lower: which setting makes them fewer.
    """
    import psutil

    most = psutil.virtual_memory().total
    if 4 * values > most:
        gib = 2.0**30
        raise InputError(
            f"{what} need at least {4 * values / gib:,.1f} GiB, and this machine has {most / gib:.1f} GiB of memory; "
            f"lower {lower}."
        )


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: ``"; did you mean 'digits'?"``, or the choices if none is similar."""
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}." if known else "."
