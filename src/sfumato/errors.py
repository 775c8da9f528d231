"""Errors that a person can cause and fix: one sentence each, no traceback on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A wrong input. The message says what is wrong, what was expected and how to fix it."""


class SfumatoWarning(UserWarning):
    """Something that works but is probably not what was meant."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: ``"; did you mean 'digits'?"``, or the choices if none is similar."""
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}." if known else "."
