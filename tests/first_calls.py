"""Types and shapes are checked in the first calls of each test: what loops repeat would cost more than all the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from beartype import beartype
from jaxtyping import config

CALLS = 2000
P, R = ParamSpec("P"), TypeVar("R")
_left = CALLS


def begin() -> None:
    """The next calls are those of another test."""
    global _left
    _left = CALLS
    config.update("jaxtyping_disable", False)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """``beartype``, which switches the checks off after its last call of a test."""
    strict = beartype(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        global _left
        _left -= 1
        if _left <= 0:
            config.update("jaxtyping_disable", True)
        return strict(*args, **kwargs)

    return call
