"""``sfumato export`` and ``--engine``: what they write, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sfumato import load
from sfumato.io.tensors import read_tensors
from sfumato.runs.train import train
from tests.cli.command import run
from tests.training.tiny import tiny

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(training={"steps": 4}), run=folder)
    return str(folder)


def test_safetensors(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "x.safetensors"
    assert run("export", trained, str(out), "--to", "safetensors") == 0
    tensors, facts = read_tensors(out)
    model = load(trained)
    assert {n: t.tolist() for n, t in tensors.items()} == {n: p.tolist() for n, p in model.denoiser.named_parameters()}
    assert facts["config"] == model.config.model_dump(mode="json") and facts["step"] == 4
    assert run("export", trained, str(out), "--to", "safetensors") == 2
    assert "already exists" in capsys.readouterr().err
    assert run("export", trained, str(out), "--to", "safetensors", "--overwrite") == 0
    assert [path.name for path in out.parent.iterdir()] == ["x.safetensors"]


def test_without_a_place_it_is_written_into_the_run(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", trained, "--to", "safetensors") == 0
    written = Path(trained) / "export" / "safetensors.safetensors"
    assert written.is_file() and str(written) in capsys.readouterr().out
    assert run("export", trained, "--to", "safetensors") == 2
    assert f"{written} already exists" in capsys.readouterr().err
    assert run("export", trained, "--to", "safetensor") == 2
    assert "did you mean 'safetensors'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("x.onnx", "--to", "onx"), "no target 'onx'; did you mean 'onnx'?"),
        (("x.bin", "--to", "onnx"), "written as a file *.onnx"),
        (("x", "--to", "diffusers"), "skips is blocks"),
        (("x", "--to", "diffusers", "--precision", "int8"), "int8 is for onnx and openvino"),
        (("x.onnx", "--to", "onnx", "--precision", "bf16"), "fp32 or int8, not 'bf16'"),
        (("kept", "--to", "diffusers", "--overwrite"), "other things than a pipeline"),
        (("x.onnx",), "--to"),
    ],
)
def test_what_is_refused(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...], words: str
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("all of it")
    assert run("export", trained, str(tmp_path / asked[0]), *asked[1:]) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("sfumato: ")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and len(list((tmp_path / "kept").iterdir())) == 1


def test_samples_of_an_engine(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'sfumato[dev]'")
    plain, fast = str(tmp_path / "plain.npz"), str(tmp_path / "fast.npz")
    assert run("sample", trained, "--count", "4", "--out", plain) == 0
    assert run("sample", trained, "--count", "4", "--out", fast, "--engine", "onnxruntime") == 0
    assert "onnxruntime in fp32, against fp32 in torch: output" in capsys.readouterr().err
    assert np.abs(np.load(plain)["images"] - np.load(fast)["images"]).max() < 1e-4
    assert run("evaluate", trained, "--samples", "20", "--engine", "onnxruntime", "--json") == 0
    assert json.loads(capsys.readouterr().out)
    # the evaluation of the run is that of its network in torch
    assert not (Path(trained) / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--engine", "tensorrt"), "no engine 'tensorrt'"),
        (("--engine-precision", "int8"), "name one with --engine"),
        (("--engine", "onnxruntime", "--engine-precision", "bf16"), "openvino does"),
        (("--engine", "onnxruntime", "--device", "meta"), "leave --device meta out"),
    ],
)
def test_wrong_engines(trained: str, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...], words: str) -> None:
    assert run("sample", trained, *asked) == 2
    assert words in capsys.readouterr().err
