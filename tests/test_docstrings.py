"""Every example in a docstring is run, on a model small enough for a test."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.interop import export, save_run
from sfumato.models.data import read_data
from tests.interop.engines.models import random_model
from tests.painters import painted
from tests.training.tiny import LABELLED, tiny

SOURCE = Path(sfumato.__file__).parent


def examples() -> list[Any]:
    """The code after a ``::`` in the docstrings of the package."""
    found: list[Any] = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            blocks = re.findall(r"^::\n\n((?: {4}.*\n?|\n)+)", ast.get_docstring(node) or "", re.M)
            name = f"{path.relative_to(SOURCE).with_suffix('')}:{getattr(node, 'name', 'module')}"
            # a fit takes long
            marks = [pytest.mark.slow] if name == "models/calibrate:tune" else []
            found += [pytest.param(textwrap.dedent(block), id=name, marks=marks) for block in blocks]
    return found


class MyNetwork(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("docstrings")
    label = {"label": {**LABELLED["label"], "drop": 0.1}}
    sfumato.train(tiny(conditions=label, training={"steps": 4}), run=place / "runs/digits")
    save_run(random_model(), place / "runs/images")
    return place


def test_there_are_examples() -> None:
    assert len(examples()) >= 10


@pytest.mark.parametrize("code", examples())
def test_an_example_runs(code: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("openvino", "diffusers"):
        if package in code:
            pytest.importorskip(package, reason=f"{package} is not installed")
    if "onnx" in code:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    if "load_guided_" in code:
        pytest.skip("needs a published file; tests load small ones")
    monkeypatch.chdir(place)
    if "ddpm-cifar10-32" in code:
        export(random_model(), "diffusers", place / "ddpm-cifar10-32")
    if "runs/painter" in code:
        painted(place / "runs/painter", 8)
    model = sfumato.load("runs/digits")
    digits = read_data(model.config)[1].subset(range(2))
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (40, 1, 8, 8)).astype(np.float32))
    names: dict[str, Any] = {"sfumato": sfumato, "model": model, "digits": digits, "images": images}
    names["MyNetwork"] = MyNetwork
    # a fit takes long; a small one shows that the example runs
    code = code.replace("tune(model, steps=10)", "tune(model, steps=10, noises=16, coefficients=False)")
    shorter = code.replace('"bf16"', '"fp32"').replace("10_000}", '2, "batch_size": 4, "sample_count": 0}')
    exec(shorter.replace('run="runs/mine"', f"run={str(tmp_path / 'mine')!r}"), names)
