"""Flags made from the configuration: tyro parses and explains them, the configuration judges the values."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tyro
from pydantic import BaseModel, ConfigDict, Field, create_model

from sfumato.config import KINDS, SOLVERS, Component, component, merge, nested, slot_of, walk
from sfumato.config.evaluation import FEATURES, MEASURES
from sfumato.config.signature import signature
from sfumato.errors import InputError, nearest

T = TypeVar("T")

Fields = Mapping[str, tuple[Any, Any]]
"""Options by name: the type and pydantic's field of each."""


SEVERAL: Any = tuple[str, ...] | None
"""The type of an option that takes words of any kind, up to the next flag or a run."""


def option(kind: Any, text: str, default: Any = None, *, positional: str = "") -> tuple[Any, Any]:
    """An option of a command; a ``positional`` one stands without its name and is shown by this word."""
    hint = "" if default is False or default in (None, (), ...) else f"(default: {_shown(default)})"
    markers = [tyro.conf.arg(help=text, help_behavior_hint=hint, metavar=positional or None)]
    if positional:
        markers.append(tyro.conf.Positional)
    return Annotated[kind, *markers], Field(default, description=text)


def is_positional(kind: Any) -> bool:
    """Whether an option of this type stands without its name."""
    return tyro.conf.Positional in getattr(kind, "__metadata__", ())


def options_of(target: str, *names: str, **defaults: Any) -> dict[str, tuple[Any, Any]]:
    """The options of these names of a function, with the defaults, the types and the texts that it gives them."""
    known = {parameter.name: parameter for parameter in signature(target).parameters}
    fields: dict[str, tuple[Any, Any]] = {}
    for name in names:
        parameter = known[name]
        fields[name] = option(parameter.annotation, parameter.help, defaults.get(name, parameter.default))
    return fields


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def flag_fields(settings: Component) -> dict[str, tuple[Any, Any]]:
    """The settings of a component as options, with its values as defaults; nothing is checked yet."""
    fields: dict[str, tuple[Any, Any]] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Component):
            fields[name] = group(value, slot_of(type(settings), name))
        elif name == "conditions":
            inner = {key: group(condition, "condition") for key, condition in value.items()}
            if inner:
                fields[name] = _nest("conditions", inner, "What the network is given besides the noise level.")
        elif name != "kind":
            fields[name] = option(field.annotation, field.description or "", value)
    return fields


def group(value: Component, slot: str | None = None, leave: Collection[str] = ()) -> tuple[Any, Any]:
    """The settings of a component as a group of options, but for those it should ``leave`` out.

    Of a ``slot``, the kind is one of them.
    """
    fields = {name: field for name, field in flag_fields(value).items() if name not in leave}
    if slot is not None:
        usual = SOLVERS if slot == "sampler" else ()
        kinds = tuple(dict.fromkeys([*(kind for kind in KINDS[slot] if kind != "given"), *usual, value.kind]))
        text = "Which kind; the other options here are its own. Also package.module:name."
        fields = {"kind": option(Literal[kinds], text, value.kind), **fields}  # pyright: ignore[reportInvalidTypeForm]
    return _nest(type(value).__name__, fields, type(value).__doc__ or "")


def _nest(name: str, fields: Fields, text: str) -> tuple[Any, Any]:
    model = _model(name, text, fields)
    return model, Field(default_factory=model.model_construct, description=text)


def _model(name: str, text: str, fields: Fields) -> type[BaseModel]:
    with warnings.catch_warnings():
        # an option such as json has the name of a method of pydantic's, which nobody calls here
        warnings.simplefilter("ignore", UserWarning)
        options: dict[str, Any] = dict(fields)
        # of a short module: tyro looks for the source of a class in its module, which takes time
        config = ConfigDict(arbitrary_types_allowed=True, defer_build=True)
        return create_model(name, __doc__=text, __module__="sfumato", __config__=config, **options)


@dataclasses.dataclass(frozen=True)
class Scanned:
    """A command line read once, before it is known which options there are.

    Attributes:
        arguments: with ``--sampler unipc`` written out as ``--sampler.kind unipc``.
        options: the same without the words.
        words: what stands without a flag.
        values: the values after each flag, by its name with underscores.
        kinds: the nested kinds of components that flags name; they decide which options there are.
    """

    arguments: list[str]
    options: list[str]
    words: list[str]
    values: dict[str, list[str]]
    kinds: dict[str, Any]

    @property
    def helping(self) -> bool:
        return "h" in self.values or "help" in self.values

    def value(self, name: str) -> str | None:
        found = self.values.get(name)
        return found[-1] if found else None


def scan(
    arguments: list[str], fields: Fields, settings: type[Component], named: Mapping[str, Any] | None = None
) -> Scanned:
    """Read a command line that has these options and settings; an unknown flag is taken to have one value.

    Which settings there are is known by the kinds that the nested values ``named`` have.
    """
    known = {**dict(_flat(fields)), **{key: field.annotation for key, field in walk(settings, named)}}
    rewritten: list[str] = []
    options: list[str] = []
    words: list[str] = []
    values: dict[str, list[str]] = {}
    kinds: dict[str, Any] = {}
    current: str | None = None
    latest: list[str] = []
    for argument in arguments:
        if re.match(r"-{1,2}[A-Za-z]", argument):
            flag, equals, value = argument.partition("=")
            current = flag.lstrip("-").replace("-", "_")
            if f"{current}.kind" in known:
                # a component by the name of its kind alone
                current, argument = f"{current}.kind", f"{flag}.kind{equals}{value}"
            # a flag that is repeated adds to its values
            values.setdefault(current, []).extend([value] if equals else [])
            latest = []
            group, dot, last = current.rpartition(".")
            positive = f"{group}{dot}{last.removeprefix('no_')}"
            current = None if equals or known.get(current, known.get(positive)) is bool else current
        elif current is not None and _takes(known.get(current), latest, argument):
            latest.append(argument)
            values[current].append(argument)
        else:
            words.append(argument)
            current = None
            rewritten.append(argument)
            continue
        rewritten.append(argument)
        options.append(argument)
    for key, given in values.items():
        if key.endswith(".kind") and given:
            kinds = merge(kinds, nested(key, given[-1]))
    return Scanned(rewritten, options, words, values, kinds)


def _takes(kind: Any, before: list[str], argument: str) -> bool:
    """Whether a flag of this type, with these values before, takes one more."""
    if not before:
        return True
    if kind == SEVERAL:
        return not _is_run(argument)
    if kind == tuple[str, ...]:
        return argument in (*KINDS["condition"], "none", *FEATURES, *MEASURES)
    several = any(part is tuple or str(part).startswith("tuple") for part in (kind, *get_args(kind)))
    return several and re.fullmatch(r"-?[\d.]+(e-?\d+)?", argument) is not None


def _is_run(word: str) -> bool:
    try:
        return any((Path(word) / name).is_file() for name in ("config.json", "system.json"))
    except OSError:
        # of a word that is too long for the name of a file
        return False


def _flat(fields: Fields, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names of options, each with its type."""
    for name, (kind, field) in fields.items():
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = {n: (f.annotation, f) for n, f in kind.model_fields.items()}
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            # a field can't have the name of a keyword, an option can: from_
            plain = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
            yield prefix + name.rstrip("_"), plain
        del field


def parse(fields: Fields, arguments: list[str], *, prog: str, description: str) -> Any:
    """Parse options into an object that has them as attributes; ``--help`` prints and exits."""
    _check_names(fields, arguments, prog)
    model: Any = _model("Options", description, fields)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                model, args=arguments, prog=prog, description=description, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise InputError(_plain(errors.getvalue(), prog)) from None


def settings(options: Any, kind: type[Component]) -> dict[str, Any]:
    """The nested values of the settings among parsed options."""
    values = options.model_dump()
    return {name: values[name] for name in kind.model_fields if name in values}


def _check_names(fields: Fields, arguments: list[str], prog: str) -> None:
    """Refuse an unknown flag with the nearest right one, before anything else is said."""
    known = [f"--{name.replace('_', '-')}" for name, _ in _flat(fields)]
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        group, dot, last = flag.removeprefix("--").rpartition(".")
        positive = f"--{group}{dot}{last.removeprefix('no-')}"
        if argument.startswith("--") and flag not in (*known, "--help", "--") and positive not in known:
            hint = _other_kind(group, last) or nearest(flag, known)
            hint = hint.replace("'", "") if hint.startswith("; ") and "known are" not in hint else "."
            raise InputError(f"There is no option {flag}{hint} See {_command(prog)} --help.")


def _other_kind(group: str, name: str) -> str:
    """A hint for an option that belongs to another kind than the one at hand."""
    slot = {"method": "optimizer"}.get(group.rpartition(".")[2], group.rpartition(".")[2])
    kinds = KINDS.get(slot, {})
    holders = [kind for kind in kinds if name.replace("-", "_") in component(slot, kind).model_fields]
    return f"; it belongs to --{group}.kind {' or '.join(holders)}." if holders else ""


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


def _command(prog: str) -> str:
    return prog.partition(" [")[0]
