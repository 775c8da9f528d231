"""Signatures read from source, so that options, defaults and help stand once and ``--help`` imports no torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sfumato.errors import InputError

FACTS = frozenset({"inputs", "outputs", "sides", "shape", "dims", "tokens", "concatenated", "classes", "data_std"})
"""Parameters that the data decide: no options of this package's functions; those of other packages can set them."""

CONTEXT = FACTS | {
    *(
        "schedule",
        "parameterization",
        "denoiser",
        "classifier",
        "contrast",
        "plan",
        "previous",
        "module",
        "params",
        "conditions",
    ),
}
"""Parameters that the surroundings fill, by name. :data:`UNLESS_GIVEN` are so too without a default."""

UNLESS_GIVEN = frozenset({"steps", "levels", "gamma", "peak", "denoise", "x", "t", "s", "memory", "level"})

REQUIRED = object()
"""The default of a parameter that has none."""


class _Sequence:
    """``Sequence[int]`` as a tuple: settings are frozen, and equal to those that are read from the lists of JSON."""

    def __class_getitem__(cls, item: Any) -> Any:
        return tuple[item, ...]


_VARIANCE = Literal["small", "large", "learned", "analytic"]
_TYPES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str, tuple)},
    "Sequence": _Sequence,
    "Literal": Literal,
    "Annotated": Annotated,
    "None": None,
    "inf": math.inf,
    "math": math,
    # a reverse variance is a function, chosen by name
    "ReverseVariance": _VARIANCE,
}


@dataclass(frozen=True)
class Nested:
    """The annotation of an option that is a component itself, of the kinds of a slot, by default of this ``kind``."""

    slot: str
    kind: str


_NESTED = {
    "Discrete": Nested("schedule", "cosine"),
    "Times": Nested("times", "uniform"),
    "Weight": Nested("weight", "simple"),
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function: an option, or filled by its surroundings, or either (:attr:`surroundings`)."""

    name: str
    annotation: Any
    default: Any
    help: str
    option: bool
    surroundings: bool = False


@dataclass(frozen=True)
class Signature:
    """What a function or class says of itself."""

    summary: str
    parameters: tuple[Parameter, ...]

    @property
    def options(self) -> tuple[Parameter, ...]:
        return tuple(parameter for parameter in self.parameters if parameter.option)


@functools.cache
def signature(target: str) -> Signature:
    """The signature of ``"package.module:name"``, a function, a class or a dataclass.

    That of this package is read from source; code of other packages is imported, which only who trusts it asks for.
    """
    module, _, name = target.partition(":")
    if not module.startswith("sfumato."):
        return _inspected(imported(target))
    node = _definition(module, name)
    if isinstance(node, ast.ClassDef):
        call = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        text = ast.get_docstring(node) or ""
        text += "\n\n" + (ast.get_docstring(call) or "" if call is not None else "")
        found = _arguments(call)[1:] if call is not None else list(_fields(module, node).values())
    else:
        text, found = ast.get_docstring(node) or "", _arguments(node)
    helps = _helps(text)
    parameters = [_parameter(module, *argument, helps.get(argument[0], "")) for argument in found]
    return Signature(_plain(text.partition("\n\n")[0]), tuple(parameters))


def imported(target: str) -> Any:
    """The function or class ``"package.module:name"``, of a package or of the current folder."""
    module, _, name = target.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"Could not import {module}, of {target}: {error}.") from None
    except Exception as error:  # the module is anybody's
        raise InputError(f"Importing {module}, of {target}, failed: {type(error).__name__}: {error}.") from None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputError(f"The module {module} defines no function or class {name!r}.")
    return found


def _inspected(function: Any) -> Signature:
    """The signature of a function or class of another package."""
    text = inspect.getdoc(function) or ""
    helps = _helps(f"{text}\n\n{inspect.getdoc(function.__init__) or ''}" if inspect.isclass(function) else text)
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:
        raise InputError(f"Python does not know the arguments of {function}; write a function that calls it.") from None
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    except Exception:  # names that only type checkers import
        hints = {}
    parameters: list[Parameter] = []
    for one in found:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        name, required = one.name, one.default is one.empty
        default, text_of = REQUIRED if required else None, helps.get(one.name, "")
        nested = re.search(rf"\b({'|'.join(_NESTED)})\b", str(one.annotation))
        if name in CONTEXT - FACTS or (name in UNLESS_GIVEN and required):
            parameters.append(Parameter(name, Any, default, text_of, option=False, surroundings=True))
        elif nested:
            parameters.append(Parameter(name, _NESTED[nested[1]], default, text_of, option=True))
        elif name in FACTS:
            kind = _plain_type(hints.get(name, Any))
            parameters.append(Parameter(name, kind | None, default, text_of, option=True, surroundings=True))
        else:
            plain = required or isinstance(one.default, _PLAIN)
            value = REQUIRED if required else one.default if plain else None
            parameters.append(Parameter(name, _plain_type(hints.get(name, Any)), value, text_of, option=plain))
    return Signature(_plain(text.partition("\n\n")[0]), tuple(parameters))


_PLAIN = (bool, int, float, str, tuple, list, type(None))


def _plain_type(kind: Any) -> Any:
    """A type of plain values as it is, any other as Any."""
    parts = (kind, *get_args(kind))
    origins = {get_origin(part) or part for part in parts}
    plain = {*_PLAIN, Literal, Any, Union, UnionType, Ellipsis}
    return kind if all(o in plain or isinstance(o, str | int | float | bool) for o in origins) else Any


def _parameter(module: str, name: str, annotation: ast.expr | None, default: ast.expr | None, text: str) -> Parameter:
    if name in CONTEXT or (name in UNLESS_GIVEN and default is None):
        return Parameter(name, Any, REQUIRED if default is None else None, text, option=False, surroundings=True)
    parts = [] if annotation is None else [part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)]
    if nested := next((_NESTED[part] for part in parts if part in _NESTED), None):
        return Parameter(name, nested, REQUIRED if default is None else None, text, option=True)
    kind = Any if annotation is None else _evaluated(module, annotation)
    value = REQUIRED if default is None else _evaluated(module, default, kind is _VARIANCE)
    if value is Any:
        # a default that the source does not state as a plain value: left to the function
        return Parameter(name, kind, None, text, option=False)
    return Parameter(name, kind, value, text, option=True)


def _arguments(node: ast.FunctionDef) -> list[tuple[str, ast.expr | None, ast.expr | None]]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults))
    defaults += [*node.args.defaults, *node.args.kw_defaults]
    return [(a.arg, a.annotation, d) for a, d in zip([*positional, *node.args.kwonlyargs], defaults, strict=True)]


def _fields(module: str, node: ast.ClassDef) -> dict[str, tuple[str, ast.expr | None, ast.expr | None]]:
    """The fields of a dataclass, after those of its bases."""
    fields: dict[str, tuple[str, ast.expr | None, ast.expr | None]] = {}
    for base in node.bases:
        home, definition = _home(module, base.id) if isinstance(base, ast.Name) else (module, None)
        if isinstance(definition, ast.ClassDef):
            fields |= _fields(home, definition)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            fields[item.target.id] = (item.target.id, item.annotation, item.value)
    return fields


def _home(module: str, name: str) -> tuple[str, ast.stmt | None]:
    """The module of this package that defines what a name means in a module, and the definition."""
    node = _tree(module).get(name)
    while isinstance(node, ast.ImportFrom):
        name = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
        module = _absolute(module, node)
        node = _tree(module).get(name) if module.startswith("sfumato") else None
    return module, node


@functools.cache
def _tree(module: str) -> Mapping[str, ast.stmt]:
    """The definitions, assignments and imports of a module by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(_file(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found


def _file(module: str) -> Path:
    """The source of a module of this package, without importing the rooms that hold it."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    name, _, method = name.partition(".")
    node = _tree(module).get(name)
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        return _definition(_absolute(module, node), name)
    found = _method(module, node, method) if isinstance(node, ast.ClassDef) and method else node
    if not isinstance(found, ast.FunctionDef | ast.ClassDef):
        wanted = f"{name}.{method}" if method else name
        raise InputError(f"The module {module} defines no function or class {wanted!r}.")
    return found


def _method(module: str, node: ast.ClassDef, method: str) -> ast.FunctionDef | None:
    """The method of a class, or that of the first of its bases that has one."""
    own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == method), None)
    homes = [_home(module, base.id) for base in node.bases if isinstance(base, ast.Name)]
    inherited = (_method(home, found, method) for home, found in homes if isinstance(found, ast.ClassDef))
    return own or next((found for found in inherited if found), None)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    return importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])


def _evaluated(module: str, node: ast.expr, by_name: bool = False) -> Any:
    """The value of an annotation or a default, whose names may be constants of this or another module."""
    if by_name and isinstance(node, ast.Name):
        return node.id
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    scope = {name: _named(module, name) for name in names}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        # a quoted annotation, or a string
        return node.value
    try:
        return eval(compile(ast.Expression(node), module, "eval"), {"__builtins__": {}}, scope)
    except Exception:
        return Any


def _named(module: str, name: str) -> Any:
    if name in _TYPES:
        return _TYPES[name]
    node = _tree(module).get(name)
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        return _evaluated(module, node.value)
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sfumato"):
        original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
        return _named(_absolute(module, node), original)
    return Any


_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*)$")


def _helps(text: str) -> dict[str, str]:
    """The texts of the ``Args:`` and ``Attributes:`` sections of a docstring, by name."""
    helps: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith(" ") and line.strip():
            inside, names = line.strip() in ("Args:", "Attributes:"), []
        elif inside and (entry := _ENTRY.match(line)):
            names = entry[1].split(", ")
            helps |= dict.fromkeys(names, entry[2].strip())
        elif inside and line.strip():
            helps |= {name: f"{helps[name]} {line.strip()}" for name in names}
        else:
            names = []
    return {name: _sentence(_plain(words)) for name, words in helps.items()}


def _plain(text: str) -> str:
    """A docstring without its mark-up, its formulas as one types them."""
    text = re.sub(r":math:`([^`]*)`", lambda formula: _typed(formula[1]), text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]*)`", r"\1", text.replace("``", ""))
    return " ".join(text.replace('"', "").split())


_TYPED = (
    (r"\\(?:text|mathrm|mathcal|mathbb)\s*\{?(\w+)\}?", r"\1"),
    (r"\\(?:left|right|,|;|quad|!)", " "),
    (r"\\(max|min|log|ln|exp)\b", r"\1"),
    (r"\\t?frac(\d)(\d)", r"\1/\2 "),
    (r"\\t?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2"),
    (r"\\hat\s*\\?(\w+)", r"\1_hat"),
    (r"\\tilde\s*\\?(\w+)", r"\1_tilde"),
    (r"\\bar\s*\\?(\w+)", r"\1_bar"),
    (r"\\sqrt\{((?:[^{}]|\{[^{}]*\})*)\}", r"sqrt(\1)"),
    (r"\\lfloor (.*?) \\rfloor", r"floor(\1)"),
    (r"\\sim\b", "~"),
    (r"\\propto\b", "proportional to"),
    (r"\\dots\b", "..."),
    (r"\\varsigma\b", "sigmoid"),
    (r"\\le\b", "<="),
    (r"\\ge\b", ">="),
    (r"([_^])\{([\w-]*)\}", r"\1\2"),
    (r"([_^])\{([^{}]*)\}", r"\1(\2)"),
    (r"[{}\\]", ""),
)
"""What stands for the commands of LaTeX in a line of text, in this order."""


def _typed(formula: str) -> str:
    for command, plain in _TYPED:
        formula = re.sub(command, plain, formula)
    return formula


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."
