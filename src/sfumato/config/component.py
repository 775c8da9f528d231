"""Components: frozen, validated groups of settings, most of them made from the signature of what they configure."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from sfumato.config.kinds import KINDS, SOLVERS
from sfumato.config.signature import CONTEXT, REQUIRED, Nested, Parameter, imported, signature
from sfumato.errors import InputError, nearest
from sfumato.io.files import read_numbers

C = TypeVar("C", bound="Component")

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusting(trust: bool = True) -> Generator[None]:
    """Within the context, kinds such as ``"package.module:function"`` are accepted; they are imported when built."""
    token = _trusted.set(trust or _trusted.get())
    try:
        yield
    finally:
        _trusted.reset(token)


class Component(BaseModel):
    """A frozen group of settings that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if TYPE_CHECKING:
        # settings that are read from signatures are not known before the program runs
        def __getattr__(self, name: str) -> Any: ...

    def override(self: C, changes: Mapping[str, Any] | None = None, **groups: Any) -> C:
        """A copy with other settings: ``config.override({"training.steps": 500})`` or ``override(steps=500)``.

        Keys are dotted or nested. A component whose ``kind`` changes starts from the defaults of the new kind.
        """
        from sfumato.config import merge, nested, parse

        values = self.model_dump()
        for key, value in {**(changes or {}), **groups}.items():
            values = merge(values, nested(key, value))
        with trusting():
            return parse(type(self), values, origin="the changes")


@dataclass(frozen=True)
class Lazy:
    """A value of the context that is only computed, or found missing, where something takes it."""

    make: Callable[[], Any]


class Built(Component):
    """A component made from a signature: its settings are the options, and :meth:`build` calls what has them."""

    targets: ClassVar[tuple[str, ...]]

    def build(self, **context: Any) -> Any:
        """Call the function or class with these settings, and with what it takes from the context by name.

        A function with other arguments, such as a solver's ``x`` and ``t``, is returned with these bound.

        Args:
            context: values by the names of :data:`sfumato.config.signature.CONTEXT`; :class:`Lazy` ones are computed
                where they are taken.
        """
        values: dict[str, Any] = {}
        open_arguments: list[str] = []
        for parameter in _parameters(self.targets):
            name = parameter.name
            if name in type(self).model_fields and not (parameter.surroundings and getattr(self, name) is None):
                values[name] = self._value(name, context)
            elif name in context and (context[name] is not None or parameter.default is REQUIRED):
                value = context[name]
                values[name] = value.make() if isinstance(value, Lazy) else value
            elif parameter.default is REQUIRED:
                open_arguments.append(name)
        function = imported(self.targets[0])
        if missing := [name for name in open_arguments if name in CONTEXT]:
            raise InputError(f"{self.targets[0]} needs {', '.join(missing)}, which nothing gives it here.")
        if not open_arguments:
            return function(**values)
        return functools.partial(function, **values) if values else function

    def _value(self, name: str, context: Mapping[str, Any]) -> Any:
        value = getattr(self, name)
        if isinstance(value, Made):
            return value.build(**context)
        if value is None and name in ("sigma_data", "scale"):
            return context.get("data_std")
        return context["variances"](value) if name == "variance" and "variances" in context else value


@functools.cache
def _parameters(targets: tuple[str, ...]) -> tuple[Parameter, ...]:
    """The parameters of the targets: of what is called, and of what describes its further options."""
    found: dict[str, Parameter] = {}
    for target in targets:
        found |= {p.name: p for p in signature(target).parameters if p.name not in found}
    return tuple(found.values())


def fields_of(*targets: str) -> dict[str, Any]:
    """pydantic's fields for the options of a function or class, for :func:`pydantic.create_model`."""
    fields: dict[str, Any] = {}
    for parameter in _parameters(targets):
        if parameter.option:
            default = parameter.default
            annotation: Any = parameter.annotation
            if isinstance(annotation, Nested):
                field = slot(annotation.slot, annotation.kind, parameter.help)
                fields[parameter.name] = (Annotated[Component, Slot(annotation.slot)], field)
                continue
            more = None if parameter.surroundings else ... if default is REQUIRED else default
            fields[parameter.name] = (annotation, Field(more, description=parameter.help))
    return fields


class Made(Built):
    """A component of one of several kinds."""

    kind: str


def group(name: str, text: str, target: str, *, base: type[Built] = Built, leave: tuple[str, ...] = ()) -> type[Built]:
    """A group of settings that are the options of one function, but for those it should ``leave`` out."""
    fields = {option: field for option, field in fields_of(target).items() if option not in leave}
    made = create_model(name, __base__=base, __doc__=text, **fields)
    made.targets = (target,)
    return made


@functools.cache
def component(slot: str, kind: str) -> type[Made]:
    """The component of a kind of a slot: ``component("schedule", "cosine")``."""
    targets = tuple(f"sfumato.{target}" for target in KINDS[slot].get(kind, "").split()) or (kind,)
    fields: dict[str, Any] = {"kind": (Literal[kind], kind), **fields_of(*targets)}  # pyright: ignore[reportInvalidTypeForm]
    made = create_model(kind, __base__=Made, __doc__=signature(targets[0]).summary, **fields)
    made.targets = targets
    return made


class Slot:
    """The place of a component in a configuration: which kinds it may be of, and which it is unless said."""

    def __init__(self, name: str, usual: str | None = None) -> None:
        self.name, self.usual = name, usual

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: value.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dump)

    def validate(self, value: Any) -> Component:
        """A component from its settings, from the name of its kind alone, or from an object that is one of its kind."""
        if isinstance(value, Made):
            return value
        if not isinstance(value, str | Mapping):
            try:
                settings: Any = settings_of(value, self.name)
            except InputError as error:
                raise PydanticCustomError("kind", "{why}", {"why": str(error)}) from None
            with trusting():
                return self.of(settings["kind"]).model_validate(settings)
        settings = {"kind": value} if isinstance(value, str) else value
        kind = settings.get("kind", self.usual)
        if self.name == "sampler" and kind in SOLVERS:
            settings = {**SOLVERS[kind], **{name: value for name, value in settings.items() if name != "kind"}}
            kind = settings["kind"]
        if not isinstance(kind, str):
            raise PydanticCustomError("kind", "needs a kind, one of {kinds}", {"kinds": ", ".join(KINDS[self.name])})
        made = self.of(kind).model_validate(dict(settings))
        return _with_betas(made) if kind == "table" else made

    def of(self, kind: str) -> type[Made]:
        """The component of a kind, of this package or ``"package.module:name"``."""
        if ":" in kind:
            if not _trusted.get() and not kind.startswith("sfumato."):
                raise PydanticCustomError(
                    "kind",
                    "{kind} is Python code of another package, which is only imported if you trust it: trust=True, or "
                    "--trust on the command line",
                    {"kind": kind},
                )
            try:
                return component(self.name, kind)
            except InputError as error:
                raise PydanticCustomError("kind", "{why}", {"why": str(error)}) from None
        if kind not in KINDS[self.name]:
            hint = nearest(kind, [*KINDS[self.name], *(SOLVERS if self.name == "sampler" else ())])
            raise PydanticCustomError("kind", "kind is {kind}{hint}", {"kind": repr(kind), "hint": hint})
        return component(self.name, kind)


def settings_of(thing: Any, slot: str) -> dict[str, Any]:
    """How an object is made again: its kind, ``"package.module:name"`` where it has no other, and its arguments.

    They are those of a ``functools.partial``, or the attributes that have the names of the arguments.

    Args:
        thing: an object, or a class, a function or a ``functools.partial`` that makes it.
        slot: what it is for.
    """
    is_maker = inspect.isclass(thing) or inspect.isfunction(thing) or isinstance(thing, functools.partial)
    maker: Any = getattr(thing, "func", thing) if is_maker else type(thing)
    where = f"{maker.__module__}:{maker.__qualname__}"
    if where == "sfumato.diffusion.schedule:Discrete":
        table: Any = thing
        return {"kind": "table", "betas": tuple(table.betas.tolist())}
    hint = "give its kind and its settings, such as {'kind': 'package.module:Class', 'width': 8}"
    if maker.__module__ == "__main__" or not _is_imported_as(maker):
        raise InputError(f"The {slot} {where} can't be imported again; define it in a module, or {hint}.")
    if isinstance(thing, functools.partial):
        try:
            bound = inspect.signature(maker).bind_partial(*thing.args, **thing.keywords)
            given: dict[str, Any] = {**dict(zip(bound.arguments, bound.args, strict=False)), **bound.kwargs}
        except TypeError as error:
            raise InputError(f"The {slot} {where} can't be made so: {error}.") from None
    else:
        try:
            names = () if is_maker else inspect.signature(maker).parameters
        except ValueError:
            raise InputError(f"A {where} is no {slot}; {hint}.") from None
        given = {name: getattr(thing, name, _UNKNOWN) for name in names}
    kinds = {f"sfumato.{target.partition(' ')[0]}": kind for kind, target in KINDS[slot].items()}
    values: dict[str, Any] = {"kind": kinds.get(where, where)}
    if not is_maker:
        _require_the_same(
            thing, maker, given, InputError(f"The arguments of the {slot} {where} are not known; {hint}.")
        )
    for name, value in given.items():
        plain = value is None or isinstance(value, bool | int | float | str | tuple | list)
        if name in CONTEXT and (where in kinds or not plain):
            # such as the schedule of a distribution of noise levels: the surroundings fill it again
            continue
        if not plain:
            raise InputError(f"The argument {name!r} of the {slot} {where} is not known; {hint}.")
        values[name] = value
    return values


_UNKNOWN = object()


def _is_imported_as(maker: Any) -> bool:
    """Whether a function or class is what its module and name say."""
    found: Any = sys.modules.get(maker.__module__)
    for part in maker.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is maker


def _require_the_same(thing: Any, maker: Any, given: Mapping[str, Any], error: InputError) -> None:
    """An error if the attributes are no arguments: what is made of them must have the same, and weights like these."""
    arguments = {name: value for name, value in given.items() if value is not _UNKNOWN}
    try:
        with _without_memory(thing):
            again = maker(**arguments)
    except Exception:  # such as a missing argument
        return
    for name, value in arguments.items():
        if name not in CONTEXT and getattr(again, name, _UNKNOWN) != value:
            raise error
    if hasattr(thing, "state_dict"):
        weights = [{name: tuple(t.shape) for name, t in one.state_dict().items()} for one in (thing, again)]
        if weights[0] != weights[1]:
            raise error


@contextmanager
def _without_memory(thing: Any) -> Generator[None]:
    """Within the context, a module like ``thing`` is made without memory and random numbers, if it has weights."""
    if next(iter(getattr(thing, "parameters", lambda: ())()), None) is None:
        yield
        return
    import torch

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        yield


def _with_betas(table: Made) -> Made:
    """A beta table with the numbers of its file, so that a run needs the file no longer."""
    if table.file is None:
        return table
    try:
        return table.model_copy(update={"betas": tuple(read_numbers(table.file)), "file": None})
    except InputError as error:
        raise PydanticCustomError("value_error", "{why}", {"why": str(error)}) from None


def slot(name: str, kind: str, description: str = "") -> Any:
    """A field for a component of a slot, by default of this kind."""
    return Field(default_factory=lambda: component(name, kind)(), description=description)  # pyright: ignore[reportCallIssue]


def _named_kinds(values: Any) -> Any:
    """Conditions by name, each of the kind of its name unless it says another."""
    if not isinstance(values, Mapping):
        return values
    return {
        name: {"kind": name, **settings} if isinstance(settings, Mapping) else settings
        for name, settings in values.items()
        if settings is not None
    }


Conditions = Annotated[dict[str, Annotated[Component, Slot("condition")]], BeforeValidator(_named_kinds)]
"""Conditions by name. A name that is None is left out, so that a condition of a recipe can be taken away."""
