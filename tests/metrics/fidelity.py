"""The arithmetic of torch-fidelity, without the package: importing that needs torchvision."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class _Anything(ModuleType):
    """A module in which every name exists: what reads images and weights, which arithmetic does not call."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def fidelity(name: str) -> ModuleType:
    """The module ``torch_fidelity.name``; the test is skipped where torch-fidelity is not installed."""
    found = importlib.util.find_spec("torch_fidelity")
    if found is None or found.origin is None:
        pytest.skip("torch-fidelity is not installed (pip install --no-deps torch-fidelity==0.4.0)")
    folder = Path(found.origin).parent
    package = ModuleType("torch_fidelity")
    package.__path__ = [str(folder)]
    stubs = {"torch_fidelity": package, "torch_fidelity.utils": _Anything("torch_fidelity.utils")}
    with pytest.MonkeyPatch.context() as patch:
        for key, module in stubs.items():
            patch.setitem(sys.modules, key, module)
        for key in ("helpers", "defaults", "deprecations", name):
            patch.delitem(sys.modules, f"torch_fidelity.{key}", raising=False)
        return importlib.import_module(f"torch_fidelity.{name}")
