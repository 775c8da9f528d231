"""Models as papers and other programs describe them, and the settings of these programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.errors import InputError, nearest

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """A model of a paper, in the layout of the configuration.

    Attributes:
        model: schedule, parameterization and network.
        shape: ``(C, H, W)`` of its images.
        classes: number of classes that it is conditioned on, 0 for none.
        sampling: how its authors sample.
        drop: the fraction of samples that were trained without their class.
    """

    model: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    sampling: dict[str, Any]
    drop: float = 0.0

    @property
    def conditions(self) -> dict[str, Any]:
        """Its conditions: the label, if it has classes; all are sampled equally often."""
        return {"label": {"kind": "label", "drop": self.drop, "draw": "uniform"}} if self.classes else {}


def sinusoid_period(features: int) -> float:
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


def by_name(settings: str | Settings, published: Mapping[str, Settings], program: str) -> Settings:
    """The settings of a published model by its name; settings as they are."""
    if not isinstance(settings, str):
        return settings
    if settings not in published:
        raise InputError(f"There is no published model {settings!r} of {program}{nearest(settings, published)}")
    return published[settings]


def with_defaults(settings: Settings, defaults: Settings, program: str) -> dict[str, Any]:
    """The settings with the defaults of those that are not given.

    Each gets the type of its default, also where it is written as on a command line: ``"32"``, ``"False"``.
    """
    for name in settings:
        if name not in defaults:
            raise InputError(f"{program} has no setting {name!r}{nearest(name, defaults)}")
    return {**defaults, **{name: _typed(name, value, defaults[name]) for name, value in settings.items()}}


_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def _typed(name: str, value: Any, default: Any) -> Any:
    """A value of the type of the default."""
    if isinstance(default, tuple):
        return numbers(value)
    if isinstance(default, str):
        # what a string lists may come as a list too
        return value
    typed: Any = None
    if isinstance(default, bool):
        word = str(value).lower()
        typed = word in _TRUE if word in _TRUE + _FALSE else None
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            typed = float(value)
        except ValueError:
            typed = None
        if isinstance(default, int) and typed is not None:
            typed = int(typed) if typed.is_integer() else None
    if typed is None:
        kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
        raise InputError(f"{name} is {value!r}; {kind} is expected.")
    return typed


def resolutions(sides: tuple[float, ...], size: int, count: int) -> tuple[int, ...]:
    """The indices of the resolutions with these sides, of ``count`` resolutions from ``size`` on."""
    known = [size // 2**level for level in range(count)]
    for side in sides:
        if side not in known:
            raise InputError(
                f"Attention at a side of {side:g} is not possible: sides are {', '.join(map(str, known))}."
            )
    return tuple(level for level, side in enumerate(known) if side in sides)
