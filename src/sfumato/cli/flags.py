"""Flags made from the configuration: tyro parses and explains them, pydantic judges the values."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from typing import Annotated, Any, Literal, TypeVar

import tyro

from sfumato.config.base import Component, choices, keys, merge
from sfumato.errors import InputError, nearest

T = TypeVar("T")


def described(text: str) -> Any:
    """The help of an option whose text says its default itself."""
    return tyro.conf.arg(help=text, help_behavior_hint="")


def option(kind: Any, text: str, default: Any) -> tuple[Any, Any]:
    """A flag of a command of its own: its annotated type and its dataclass field."""
    hint = "" if default is None or default is False else f"(default: {default})"
    return Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=hint)], dataclasses.field(default=default)


def parse(kind: type[T], arguments: list[str], *, prog: str, description: str) -> T:
    """Parse the flags of a dataclass; ``--help`` prints and exits.

    Raises:
        InputError: one sentence on what is wrong.
    """
    _check_names(kind, arguments, prog)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind, args=arguments, prog=prog, description=description, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise InputError(_plain(errors.getvalue(), prog)) from None


def _check_names(kind: type[Any], arguments: list[str], prog: str) -> None:
    """Refuse an unknown flag with the nearest right one, before anything else is said."""
    known = [f"--{name.replace('_', '-')}" for name in _names(kind)]
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        group, dot, last = flag.removeprefix("--").rpartition(".")
        positive = f"--{group}{dot}{last.removeprefix('no-')}"
        if argument.startswith("--") and flag not in (*known, "--help", "--") and positive not in known:
            near = nearest(flag, known)
            hint = near.replace("'", "") if near.startswith("; did") else "."
            raise InputError(f"There is no option {flag}{hint} See {_command(prog)} --help.")


def _names(kind: type[Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type) and isinstance(field.type, type):
            found += _names(field.type, f"{prefix}{field.name}.")
        else:
            # a field can't have the name of a keyword, an option can: from_
            found.append(prefix + field.name.rstrip("_"))
    return found


def _plain(box: str, prog: str) -> str:
    """The text of one of tyro's boxes as a sentence: what stands between its title and its next rule."""
    body: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip(" │|╰╯+")
        if text and not text.strip("─-"):
            if body:
                break
        elif text:
            body.append(text)
    said = " ".join(body).removeprefix("Error parsing ").rstrip(".") or "The options could not be read"
    return f"{said}. See {_command(prog)} --help."


def config_kinds(kind: type[Component], arguments: list[str]) -> dict[str, Any]:
    """The nested values of the ``--GROUP.kind NAME`` flags: they decide which further flags there are.

    Raises:
        InputError: for an unknown kind, with the nearest right one.
    """
    values: dict[str, Any] = {}
    known = {key for key in keys(kind) if key.endswith(".kind")}
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        key = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or key not in known:
            continue
        if not equals:
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
        names = _kinds_at(kind, key.split(".")[:-1])
        if value not in names:
            raise InputError(f"{key} is {value!r}{nearest(value, names)}")
        values = merge(values, _nested(key, value))
    return values


def _kinds_at(kind: type[Component], path: list[str]) -> list[str]:
    options: tuple[type[Component], ...] = (kind,)
    for place in path:
        options = tuple(
            o for k in options if place in k.model_fields for o in choices(k.model_fields[place].annotation)
        )
    return [str(option.model_fields["kind"].default) for option in options]


def _nested(key: str, value: Any) -> dict[str, Any]:
    for place in reversed(key.split(".")):
        value = {place: value}
    return value


def mirror(component: Component) -> type[Any]:
    """A dataclass with the fields of a component, its values as defaults, and nothing checked.

    Of a union it has the fields of the variant at hand, with all kinds as choices.
    """
    fields: list[tuple[str, Any, Any]] = []
    for name, info in type(component).model_fields.items():
        value = getattr(component, name)
        options = choices(info.annotation)
        if isinstance(value, Component):
            inner = mirror(value)
            if len(options) > 1:
                inner = _with_kinds(inner, [str(o.model_fields["kind"].default) for o in options], value)
            fields.append((name, inner, dataclasses.field(default_factory=inner)))
        elif name == "kind":
            # a lone kind is no choice
            continue
        else:
            described = Annotated[
                info.annotation, tyro.conf.arg(help=info.description, help_behavior_hint=_shown(value))
            ]
            fields.append((name, described, dataclasses.field(default=value)))
    made = dataclasses.make_dataclass(type(component).__name__, fields)
    made.__doc__ = type(component).__doc__
    return made


def _with_kinds(inner: type[Any], kinds: list[str], value: Component) -> type[Any]:
    choice = Annotated[Literal[tuple(kinds)], tyro.conf.arg(help="Which one; decides the options below.")]
    kind: Any = value.kind  # pyright: ignore[reportAttributeAccessIssue]
    made = dataclasses.make_dataclass(
        inner.__name__,
        [("kind", choice, dataclasses.field(default=kind))] + [(f.name, f.type, f) for f in dataclasses.fields(inner)],
    )
    made.__doc__ = inner.__doc__
    return made


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    return f"(default: {value})"


def _command(prog: str) -> str:
    return prog.partition(" [")[0]
