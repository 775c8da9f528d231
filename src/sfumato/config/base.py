"""What every group of settings is: frozen, validated, readable from files, explained when wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from sfumato.errors import InputError, nearest

C = TypeVar("C", bound="Component")


class Component(BaseModel):
    """A frozen group of settings that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parse(kind: type[C], values: Mapping[str, Any], *, origin: str = "the configuration") -> C:
    """A validated component from plain values.

    Raises:
        InputError: with one sentence that names the key, what is wrong and, for an unknown key, the nearest right one.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"In {origin}: {_sentence(kind, error)}") from None


def _sentence(kind: type[Component], error: ValidationError) -> str:
    parts: list[str] = []
    for problem in error.errors(include_url=False):
        # the name of a union's variant is part of pydantic's location, not of the key
        names = variants(kind)
        path = [str(place) for place in problem["loc"]]
        key = ".".join(p for i, p in enumerate(path) if ".".join(path[: i + 1]) not in names)
        if problem["type"] == "extra_forbidden":
            known = keys(kind)
            if key in known:
                parts.append(f"{key} is a setting of another kind of {key.rpartition('.')[0]}")
            else:
                parts.append(f"there is no setting {key!r}{nearest(key, known)}")
        elif problem["type"] == "union_tag_not_found":
            parts.append(f"{key}.kind must say which kind it is")
        elif problem["type"] == "union_tag_invalid":
            context = problem.get("ctx", {})
            tag, expected = str(context.get("tag", "nothing")), str(context.get("expected_tags", ""))
            parts.append(f"{key}.kind is {tag!r}{nearest(tag, [t.strip(chr(39) + ' ') for t in expected.split(',')])}")
        elif problem["type"] == "value_error":
            parts.append(problem["msg"].removeprefix("Value error, "))
        else:
            message = problem["msg"][:1].lower() + problem["msg"][1:]
            parts.append(f"{key} is {problem['input']!r}: {message}")
    sentence = "; ".join(dict.fromkeys(part.rstrip(".") for part in parts))
    return sentence if sentence.endswith("?") else sentence + "."


def choices(annotation: Any) -> tuple[type[Component], ...]:
    """The components that a field may hold: one, or the variants of a union."""
    options = (annotation, *get_args(annotation))
    return tuple(o for o in options if isinstance(o, type) and issubclass(o, Component))


def walk(kind: type[Component], prefix: str = "") -> Iterator[tuple[str, type[Component], str]]:
    """Every setting below a component: ``(dotted key, component that holds it, field)``, all variants included."""
    for name, field in kind.model_fields.items():
        inner = choices(field.annotation)
        if not inner:
            yield prefix + name, kind, name
        for option in inner:
            yield from walk(option, f"{prefix}{name}.")


def keys(kind: type[Component]) -> list[str]:
    """The dotted keys of every setting, once each."""
    return list(dict.fromkeys(key for key, _, _ in walk(kind)))


def variants(kind: type[Component], prefix: str = "") -> set[str]:
    """pydantic's locations of the variants of every union, such as ``model.schedule.linear``."""
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        inner = choices(field.annotation)
        for option in inner:
            place = f"{prefix}{name}."
            if len(inner) > 1:
                tag = str(option.model_fields["kind"].default)
                found.add(place + tag)
                found |= variants(option, f"{place}{tag}.")
            found |= variants(option, place)
    return found


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with those of ``over`` in place of those of ``base``.

    A group whose ``kind`` changes starts afresh: the settings of another kind mean nothing to it.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other = "kind" in value and value["kind"] != old.get("kind")
            merged[key] = dict(value) if other else merge(old, value)
        else:
            merged[key] = value
    return merged


def read_file(path: str | Path) -> dict[str, Any]:
    """The nested values of a configuration file, JSON or TOML by its name.

    The ``config.json`` of a run is such a file too: its ``config`` part is taken.

    Raises:
        InputError: if the file is missing or is neither.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".toml":
            import tomllib

            values: Any = tomllib.loads(text)
        else:
            values = json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else f"it is not valid {path.suffix[1:] or 'JSON'} ({error})"
        )
        raise InputError(f"Could not read the configuration file {path}: {reason}.") from None
    if not isinstance(values, dict):
        raise InputError(f"The configuration file {path} must hold groups of settings.")
    return values["config"] if "format" in values and "config" in values else values


def read_numbers(path: str | Path) -> list[float]:
    """The numbers of a file: a NumPy array, a JSON list, or text with numbers between spaces, commas or lines.

    Raises:
        InputError: if the file is missing or is none of these.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            import numpy as np

            return np.load(path, allow_pickle=False).astype(float).reshape(-1).tolist()
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return [float(number) for number in json.loads(text)]
        return [float(number) for number in text.replace(",", " ").split()]
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"Could not read numbers from {path} (.npy, .json or text): {reason}.") from None
