"""The configuration of a run: frozen, validated components with ``build()``, readable from files and changed by flags.

Importing it costs no torch: what computes is imported when something is built.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from sfumato.config.component import Component, Lazy, Made, Slot, component, trusting
from sfumato.config.evaluation import EvaluationConfig
from sfumato.config.groups import (
    Config,
    DataConfig,
    EmaConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from sfumato.config.kinds import KINDS, SOLVERS
from sfumato.config.sampling import GuidanceConfig, SamplingConfig, Variance, reverse_variance
from sfumato.errors import InputError, nearest
from sfumato.io.files import read_json

C = TypeVar("C", bound=Component)


def parse(kind: type[C], values: Mapping[str, Any], *, origin: str = "the configuration", trust: bool = False) -> C:
    """A validated component from plain values.

    Args:
        kind: :class:`Config`, or one of its groups.
        values: nested settings; what is missing has its default.
        origin: where they are from, for the error message.
        trust: whether kinds such as ``"package.module:Class"`` may name code of other packages, which is imported
            when the component is built.
    """
    try:
        with trusting(trust):
            return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"In {origin}: {_sentence(kind, values, error)}") from None


def slot_of(kind: type[Component], name: str) -> str | None:
    """The slot of a field, if it holds a component of one of several kinds."""
    field = kind.model_fields.get(name)
    if field is None:
        return None
    for part in (*field.metadata, *get_args(field.annotation)):
        for item in (part, *getattr(part, "__metadata__", ())):
            if isinstance(item, Slot):
                return item.name
    return None


def walk(kind: type[Component], values: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the field of every setting, with the kinds that ``values`` name or else the defaults."""
    for name, field in kind.model_fields.items():
        given = (values or {}).get(name)
        inner = _inside(kind, name, given)
        if inner is None:
            yield prefix + name, field
        elif isinstance(inner, dict):
            for key, settings in inner.items():
                yield from walk(settings, (given or {}).get(key), f"{prefix}{name}.{key}.")
        else:
            yield from walk(inner, given if isinstance(given, Mapping) else None, f"{prefix}{name}.")


def _inside(kind: type[Component], name: str, given: Any) -> Any:
    """The component that a field holds; a dictionary of them for the conditions; None for a plain setting."""
    slot, field = slot_of(kind, name), kind.model_fields[name]
    if name == "conditions":
        items: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        return {
            key: component("condition", str(v.get("kind", key)))
            for key, v in items.items()
            if _known("condition", v, key)
        }
    if slot is not None:
        named = given.get("kind") if isinstance(given, Mapping) else given
        if isinstance(named, str) and (named in KINDS[slot] or ":" in named):
            return component(slot, named)
        return type(field.get_default(call_default_factory=True))
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Component) else None


def _known(slot: str, value: Any, name: str) -> bool:
    kind = str(value.get("kind", name)) if isinstance(value, Mapping) else name
    return kind in KINDS[slot] or ":" in kind


def _sentence(kind: type[Component], values: Mapping[str, Any], error: ValidationError) -> str:
    parts: list[str] = []
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, problem["loc"]))
        message = problem["msg"]
        if problem["type"] == "extra_forbidden":
            parts.append(_unknown(kind, values, key))
        elif problem["type"] == "kind":
            parts.append(f"{key}.{message}" if message.startswith("kind is") else f"{key} {message}")
        elif problem["type"] == "value_error":
            parts.append(message.removeprefix("Value error, "))
        else:
            parts.append(f"{key} is {problem['input']!r}: {message[:1].lower()}{message[1:]}")
    sentence = "; ".join(dict.fromkeys(part.rstrip(".") for part in parts))
    return sentence if sentence.endswith("?") else sentence + "."


def _unknown(kind: type[Component], values: Mapping[str, Any], key: str) -> str:
    group, _, name = key.rpartition(".")
    for slot, kinds in KINDS.items():
        if group.rpartition(".")[2] in (slot, "method", "table") or group.startswith("conditions."):
            holders = [k for k in kinds if name in component(slot, k).model_fields]
            if holders and group:
                return f"{key} is a setting of another kind of {group} ({', '.join(holders)})"
    return f"there is no setting {key!r}{nearest(key, [known for known, _ in walk(kind, values)])}"


def nested(key: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` of the key ``"a.b"``."""
    for place in reversed(key.split(".")):
        value = {place: value}
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with those of ``over`` in place of those of ``base``; their keys may be dotted.

    A group whose ``kind`` changes starts from its defaults: the settings of another kind mean nothing to it.
    """
    merged = dict(base)
    for dotted, given in over.items():
        key, _, rest = dotted.partition(".")
        value = nested(rest, given) if rest else given
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
    """
    path = Path(path)
    if path.suffix == ".toml":
        try:
            values: Any = tomllib.loads(path.read_text("utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"it is not valid TOML ({error})"
            raise InputError(f"Could not read the configuration file {path}: {reason}.") from None
    else:
        values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"The configuration file {path} must hold groups of settings.")
    return values["config"] if "format" in values and "config" in values else values


__all__ = [
    "KINDS",
    "SOLVERS",
    "Component",
    "Config",
    "DataConfig",
    "EmaConfig",
    "EvaluationConfig",
    "GuidanceConfig",
    "Lazy",
    "Made",
    "ModelConfig",
    "OptimizerConfig",
    "SamplingConfig",
    "Slot",
    "TrainingConfig",
    "Variance",
    "component",
    "merge",
    "nested",
    "parse",
    "read_file",
    "reverse_variance",
    "slot_of",
    "trusting",
    "walk",
]
