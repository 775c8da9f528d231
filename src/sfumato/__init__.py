"""Sfumato: train, sample, evaluate and understand denoising diffusion models.

The names in ``__init__.pyi`` and the sub-modules are imported on first use, so that ``import sfumato`` costs almost
nothing.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

__version__ = "0.1.0"

# the stub lists each name once, for type checkers and for the lazy imports here
_STUB = (Path(__file__).parent / "__init__.pyi").read_text(encoding="utf-8")
_MODULES = set(re.findall(r"^from sfumato import (\w+)", _STUB, re.M)) | {"errors"}
_HOMES = {name: module for module, name in re.findall(r"^from sfumato\.([\w.]+) import (\w+)", _STUB, re.M)}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"sfumato.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sfumato.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
