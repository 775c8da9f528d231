"""Models as papers and other programs describe them, and the settings of these programs."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sfumato.errors import InputError, nearest

Settings = Mapping[str, Any]

LARGEST = 2**31
"""What no number that describes a network is above."""

PUBLISHED: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("published.toml").read_text(encoding="utf-8")
)
"""The published models by name: their settings by the name of a program, their size and their training."""


def settings_of(program: str) -> dict[str, Settings]:
    """The settings of those published models that a program describes."""
    return {name: entry[program] for name, entry in PUBLISHED.items() if program in entry}


@dataclass(frozen=True)
class Published:
    """A model of a paper, in the layout of the configuration.

    Attributes:
        model: schedule, parameterization and network.
        shape: ``(C, H, W)`` of its images, or ``(C,)`` of its vectors.
        classes: number of classes that it is conditioned on, 0 for none.
        sampling: how its authors sample.
        drop: the fraction of samples that were trained without their class.
        others: its conditions besides the class, by name.
        features: those of a token of its text.
        embedding: length of the embedding that it is conditioned on.
        crop: side of the random crops that it was trained on, 0 for whole images.
    """

    model: dict[str, Any]
    shape: tuple[int, ...]
    classes: int
    sampling: dict[str, Any]
    drop: float = 0.0
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    features: int = 0
    embedding: int = 0
    crop: int = 0

    @property
    def conditions(self) -> dict[str, Any]:
        """Its conditions: the label, if it has classes, all of which are sampled equally often; and the others."""
        label = {"kind": "label", "drop": self.drop, "draw": "uniform"}
        return {**({"label": label} if self.classes else {}), **self.others}

    @property
    def described(self) -> dict[str, Any]:
        """Its conditions with what they would know of its data."""
        names = tuple(map(str, range(self.classes)))
        facts: dict[str, dict[str, Any]] = {
            "label": {"names": names, "frequencies": (1.0 / max(self.classes, 1),) * self.classes},
            "low_resolution": {"channels": self.shape[0]},
            "tokens": {"features": self.features},
            "embedding": {"mean": (0.0,) * self.embedding, "std": (1.0,) * self.embedding},
        }
        return {name: {**settings, **facts.get(settings["kind"], {})} for name, settings in self.conditions.items()}


@dataclass(frozen=True)
class PublishedClassifier:
    """A classifier of noisy images of a paper.

    Attributes:
        network: ``channels`` and further options of :class:`~sfumato.networks.classifier.Classifier`.
        shape: ``(C, H, W)`` of its images.
        classes: number of classes.
    """

    network: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int


def numbers(value: Any) -> tuple[float, ...]:
    """Numbers that are written as one, as a list, or as a string with commas."""
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value
    try:
        found = tuple(math.nan if isinstance(part, bool) else float(part) for part in parts if str(part).strip())
    except (TypeError, ValueError, OverflowError):
        found = (math.nan,)
    if not all(abs(number) <= LARGEST for number in found):
        raise InputError(f"Numbers between commas are expected, none above 2^31; got {_shown(value)}.")
    return found


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


def _typed(name: str, value: Any, default: Any) -> Any:
    """A value of the type of the default."""
    if isinstance(default, tuple):
        return numbers(value)
    if isinstance(default, str):
        # what a string lists may come as a list too
        return value
    kind = type(default)
    try:
        typed: Any = TypeAdapter(kind).validate_python(value)
        # True is a whole number to Python; and no size is above this
        if kind is bool or (not isinstance(value, bool) and abs(typed) <= LARGEST):
            return typed
    except (ValidationError, OverflowError):
        pass
    expected = {bool: "true or false", int: "a whole number up to 2^31"}.get(kind, "a number")
    raise InputError(f"{name} is {_shown(value)}; {expected} is expected.") from None


def _shown(value: Any) -> str:
    """A value as a message shows it."""
    # Python writes no number of thousands of digits out
    huge = isinstance(value, int) and abs(value) >= 10**60
    text = "a number of more than 60 digits" if huge else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def resolutions(sides: tuple[int | float, ...], size: int, count: int) -> tuple[int, ...]:
    """The indices of the resolutions with these sides, of ``count`` resolutions from ``size`` on."""
    known = [size // 2**level for level in range(count)]
    for side in sides:
        if side not in known:
            raise InputError(
                f"Attention at a side of {side:g} is not possible: sides are {', '.join(map(str, known))}."
            )
    return tuple(level for level, side in enumerate(known) if side in sides)
