"""What papers say of their models, in the words of their authors' programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.config import ModelConfig, SamplingConfig
from sfumato.errors import InputError, nearest

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """A model of a paper.

    Attributes:
        model: schedule, parameterization and network.
        shape: ``(C, H, W)`` of its pictures.
        classes: number of classes that it is told.
        sampling: how its authors sample.
    """

    model: ModelConfig
    shape: tuple[int, ...]
    classes: int
    sampling: SamplingConfig


def to_the_end(features: int) -> float:
    """The period with which the last of the frequencies is 1 / 10,000, not the one after the last."""
    half = features // 2
    return 10_000.0 ** (half / (half - 1))


def numbers(value: Any) -> tuple[float, ...]:
    """Numbers that are written as one, as a list, or as a string with commas."""
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value
    try:
        return tuple(float(part) for part in parts if str(part).strip())
    except (TypeError, ValueError):
        raise InputError(f"Numbers between commas are expected; got {value!r}.") from None


def filled(settings: Settings, defaults: Mapping[str, Any], program: str) -> dict[str, Any]:
    """The settings with the defaults of those that are not given.

    Each is of the type of its default, also where it is written as on a command line: ``"32"``, ``"False"``.

    Raises:
        InputError: for one that the program does not know, or a value of another type.
    """
    for name in settings:
        if name not in defaults:
            raise InputError(f"{program} has no setting {name!r}{nearest(name, defaults)}")
    return {**defaults, **{name: _typed(name, value, defaults[name]) for name, value in settings.items()}}


_TRUTH = {"yes": True, "true": True, "t": True, "y": True, "no": False, "false": False, "f": False, "n": False}


def _typed(name: str, value: Any, default: Any) -> Any:
    """A value of the type of the default."""
    if isinstance(default, tuple):
        return numbers(value)
    if isinstance(default, str):
        # what a string lists may come as a list too
        return value
    found: Any = None
    if isinstance(default, bool):
        text = str(value).lower()
        found = _TRUTH.get(text, {"1": True, "0": False}.get(text))
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except ValueError:
            found = None
        if isinstance(default, int) and found is not None:
            found = int(found) if found.is_integer() else None
    if found is None:
        kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
        raise InputError(f"{name} is {value!r}; {kind} is expected.")
    return found


def levels(sides: tuple[float, ...], size: int, count: int) -> list[int]:
    """The indices of the resolutions with these sides."""
    occurring = [size // 2**level for level in range(count)]
    for side in sides:
        if side not in occurring:
            raise InputError(
                f"Attention is asked at a side of {side:g}, but the sides are {', '.join(map(str, occurring))}."
            )
    return [level for level, side in enumerate(occurring) if side in sides]
