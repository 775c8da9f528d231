"""What kind of value each setting of another program must have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.errors import InputError


@dataclass(frozen=True)
class Kind:
    """A kind of value: its name, and whether a value is of it."""

    name: str
    holds: Callable[[Any], bool]

    @property
    def or_none(self) -> Kind:
        return Kind(f"{self.name} or null", lambda value: value is None or self.holds(value))

    @property
    def several(self) -> Kind:
        def holds(value: Any) -> bool:
            return isinstance(value, list | tuple) and bool(value) and all(map(self.holds, value))  # pyright: ignore[reportUnknownArgumentType]

        return Kind(f"a list, each {self.name}", holds)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


NUMBER = Kind("a number", _number)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
WHOLE = Kind("a whole number from 1 on", lambda value: type(value) is int and value >= 1)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
WORD = Kind("a word", lambda value: isinstance(value, str))


def check_kinds(settings: Mapping[str, Any], kinds: Mapping[str, Kind], origin: str) -> None:
    """Check that each setting that is there is of its kind.

    Raises:
        InputError: if one is not.
    """
    for name, kind in kinds.items():
        if name in settings and not kind.holds(settings[name]):
            raise InputError(f"{name} is {settings[name]!r} in {origin}; {kind.name} is expected.")
