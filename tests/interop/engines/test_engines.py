"""Networks in engines and in files give what they give in torch."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.errors import InputError, SfumatoWarning
from sfumato.interop import engines, export
from sfumato.interop.engines.deviation import record
from sfumato.interop.model import description
from sfumato.models.inference import LEAST_MACS
from sfumato.models.model import Model
from tests.interop.engines.models import random_model

pytestmark = pytest.mark.usefixtures("unchecked")

KINDS: dict[str, dict[str, Any]] = {
    "unet": {"shape": (3, 8, 8), "classes": 3},
    "additive": {
        "shape": (1, 16),
        "model": {"network": {"modulation": "additive", "dropout": 0.1, "coordinates": True}},
    },
    "ncsnpp": {
        "shape": (3, 8, 8),
        "model": {
            "schedule": {"kind": "edm"},
            "parameterization": {"kind": "edm"},
            "network": {
                "time_kind": "fourier",
                "residual_input": True,
                "resample": "projected",
                "taps": (1, 3, 3, 1),
                "rescale": True,
            },
        },
    },
    "dit": {
        "shape": (3, 8, 8),
        "classes": 3,
        "model": {"network": {"kind": "dit", "depth": 1, "width": 32, "heads": 2}},
    },
    "mlp": {"shape": (2,), "model": {"network": {"kind": "mlp"}}},
}

# to write a network out takes some seconds
FAMILIES = [pytest.param(kind, marks=pytest.mark.slow) if kind in ("additive", "ncsnpp") else kind for kind in KINDS]


def of_kind(kind: str) -> Model:
    return random_model(**KINDS[kind])


@cache
def in_engine(engine: str) -> Model:
    """The U-Net in an engine, which takes seconds to compile."""
    return engines.compile(of_kind("unet"), engine)


def inputs(model: Model, count: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, *model.info.shape, generator=generator)
    time = 5.0 * torch.rand(count, generator=generator)
    return x, time, {"label": torch.arange(count) % 4 - 1} if model.conditions else {}


def packages(*names: str) -> None:
    for name in names:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'sfumato[dev]'")


@pytest.mark.parametrize("kind", FAMILIES)
def test_onnx_at_any_batch_size(tmp_path: Path, kind: str) -> None:
    packages("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    model = of_kind(kind)
    export(model, "onnx", tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["sfumato"])
    assert facts["config"] == model.config.model_dump(mode="json") and facts["data"]["shape"] == list(model.info.shape)
    for count in (1, 2, 5):
        x, time, cond = inputs(model, count)
        given = {name: value.numpy() for name, value in {"x": x, "time": time, **cond}.items()}
        with torch.no_grad():
            expected = model.denoiser.network(x, time, **cond).numpy()
        assert expected.std() > 0.05
        assert np.abs(session.run(["output"], given)[0] - expected).max() < 1e-5 * max(1.0, expected.std())


@pytest.mark.parametrize("kind", FAMILIES)
def test_openvino_at_any_batch_size(tmp_path: Path, kind: str) -> None:
    packages("openvino", "onnx", "onnxscript")
    import openvino

    model = of_kind(kind)
    export(model, "openvino", tmp_path / "net.xml")
    core = openvino.Core()
    read = core.read_model(tmp_path / "net.xml")
    assert json.loads(read.get_rt_info(["sfumato"]).value)["step"] == 0
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 3):
        x, time, cond = inputs(model, count)
        given = {name: value.numpy() for name, value in {"x": x, "time": time, **cond}.items()}
        with torch.no_grad():
            expected = model.denoiser.network(x, time, **cond).numpy()
        assert np.abs(compiled(given)["output"] - expected).max() < 2e-5 * max(1.0, expected.std())


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_a_model_in_an_engine_samples_the_same(engine: str) -> None:
    packages(engine, "onnx", "onnxscript")
    model = of_kind("unet")
    fast = in_engine(engine)
    assert fast.denoiser.data_std == model.denoiser.data_std != 1.0
    assert torch.allclose(fast.sample(5, seed=1, batch_size=3), model.sample(5, seed=1), atol=1e-4)
    guided = model.config.sampling.override({"guidance.scale": 2.0})
    assert torch.allclose(fast.sample(2, sampling=guided), model.sample(2, sampling=guided), atol=1e-4)
    # no condition is the null condition
    x, time, _ = inputs(model, 2)
    assert torch.allclose(fast.denoiser.network(x, time), model.denoiser.network(x, time), atol=1e-4)
    # outputs are not overwritten by the next call, and take the type of what was given
    first = fast.denoiser.network(x, time)
    kept = first.clone()
    fast.denoiser.network(x + 1.0, time)
    assert torch.equal(first, kept)
    assert fast.denoiser.network(x.double(), time).dtype == torch.float64
    deviation = engines.deviation(model, fast, 2)
    assert deviation.rms < 1e-5 and deviation.images_largest < 1e-4
    with pytest.raises(InputError, match="no condition 'lable'; did you mean 'label'"):
        fast.denoiser.network(x, time, lable=torch.zeros(2))
    with pytest.raises(InputError, match="no gradients"):
        fast.denoiser.network(x.requires_grad_(), time)
    with pytest.raises(InputError, match="in an engine already"):
        engines.compile(fast, engine)


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_tokens_of_any_number(engine: str) -> None:
    packages(engine, "onnx", "onnxscript")
    model = random_model(
        shape=(1, 8),
        conditions={"text": {"kind": "tokens", "features": 4}},
        model={"network": {"kind": "dit", "depth": 1, "width": 32, "heads": 2}},
    )
    fast = engines.compile(model, engine)
    for count, length in ((1, 1), (2, 5), (2, 3)):
        x, time, _ = inputs(model, count)
        tokens, mask = torch.randn(count, length, 4), torch.rand(count, length) > 0.3
        expected = model.denoiser.network(x, time, text=tokens, text_mask=mask)
        assert torch.allclose(fast.denoiser.network(x, time, text=tokens, text_mask=mask), expected, atol=1e-4)
    assert torch.allclose(fast.denoiser.network(x, time), model.denoiser.network(x, time), atol=1e-4)
    with pytest.raises(InputError, match=r"text of shape \(2, any, 4\) here, and got \(2, 3, 5\)"):
        fast.denoiser.network(x, time, text=torch.randn(2, 3, 5), text_mask=mask)
    with pytest.raises(InputError, match="text and text_mask must be of as many tokens; give both"):
        fast.denoiser.network(x, time, text=tokens)


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_captions_of_any_length(engine: str) -> None:
    packages(engine, "onnx", "onnxscript")
    text = {"kind": "text", "words": ("a", "red", "circle"), "width": 8, "heads": 2, "layers": 1, "uses": "both"}
    model = random_model(conditions={"text": text}, model={"network": {"channels": (8, 8), "attention": (1,)}})
    fast = engines.compile(model, engine)
    for captions in (["a"], ["a red circle", "red"], ["a red circle a a a a", ""]):
        given = model.conditions["text"].given(captions, len(captions))["value"]
        x, time, _ = inputs(model, len(captions))
        expected = model.denoiser.network(x, time, text=given)
        assert torch.allclose(fast.denoiser.network(x, time, text=given), expected, atol=1e-4)
        assert not torch.allclose(model.denoiser.network(x, time), expected, atol=1e-2)


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_low_resolutions_of_any_size(engine: str) -> None:
    packages(engine, "onnx", "onnxscript")
    low = {"kind": "low_resolution", "factor": 2, "drop": 0.1, "noise": 0.3}
    model = random_model(conditions={"low": low})
    fast = engines.compile(model, engine)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0])
    for sides in ((4, 4), (3, 5), (1, 1)):
        cond = {"low": torch.randn(2, 3, *sides), "low_level": torch.tensor([0.0, 0.2])}
        with torch.no_grad():
            expected, found = model.denoiser.network(x, time, **cond), fast.denoiser.network(x, time, **cond)
        assert torch.allclose(found, expected, atol=1e-4), sides
    with torch.no_grad():
        assert torch.allclose(fast.denoiser.network(x, time), model.denoiser.network(x, time), atol=1e-4)
    image = torch.rand(3, 4, 4) * 2.0 - 1.0
    images = model.sample(2, steps=2, low=image)
    # a solver amplifies the rounding of random weights
    assert torch.allclose(fast.sample(2, steps=2, low=image), images, atol=5e-3)
    assert not torch.allclose(model.sample(2, steps=2), images, atol=1e-2)
    with pytest.raises(InputError, match=r"low of shape \(2, 3, any, any\)"):
        fast.denoiser.network(x, time, low=torch.randn(2, 1, 4, 4))


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_labels_and_shapes_that_do_not_fit(engine: str) -> None:
    model = of_kind("unet")
    if engine != "torch":
        packages(engine, "onnx", "onnxscript")
        model = in_engine(engine)
    network = model.denoiser.network
    x, time, _ = inputs(model, 2)
    for label in (3, -2):
        with pytest.raises(InputError, match="from 0 to 2, or -1"):
            network(x, time, label=torch.tensor([0, label]))
    if engine != "torch":
        for wrong in (
            (x[:, :2], time, {}),
            (x[..., :4], time, {}),
            (x, time[:1], {}),
            (x[0], time, {}),
            (x[..., None], time, {}),
        ):
            with pytest.raises(InputError, match=r"of shape .* here, and got"):
                network(wrong[0], wrong[1], **wrong[2])
        with pytest.raises(InputError, match=r"label of shape \(2,\) here, and got \(3,\)"):
            network(x, time, label=torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "the index of the step"),
        ({"time": "thousand"}, "1000 t"),
        ({"schedule": {"kind": "edm"}, "parameterization": {"kind": "edm"}}, "log(sigma / alpha) / 4"),
        ({"schedule": {"kind": "flow"}, "parameterization": {"kind": "velocity"}}, "1000 t"),
        ({"time": "log_snr"}, "log(alpha^2 / sigma^2) / 4"),
    ],
)
def test_a_file_says_how_its_network_is_given_the_level(settings: dict[str, Any], words: str) -> None:
    """And it is what the denoiser tells it."""
    model = random_model(shape=(2,), model={"network": {"kind": "mlp"}, **settings})
    assert words in json.loads(description(model))["inputs"]["time"]
    level = model.denoiser.schedule(torch.tensor([0.25]))
    ratio = level.log_snr
    told = {
        "the index of the step": 249.0,
        "1000 t": 250.0,
        "log(sigma / alpha) / 4": -float(ratio) / 8,
        "log(alpha^2 / sigma^2) / 4": float(ratio) / 4,
    }[words]
    assert float(model.denoiser.embed(level)) == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("onnxruntime", "fp32"),
        pytest.param("onnxruntime", "int8", marks=pytest.mark.slow),
        pytest.param("openvino", "fp32", marks=pytest.mark.slow),
    ],
)
def test_weights_that_no_file_of_protobuf_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, precision: str
) -> None:
    """They lie beside the graph; a limit of a kibibyte stands for that of 2 GiB."""
    packages(engine, "onnx", "onnxscript")
    from sfumato.interop.engines import onnx

    monkeypatch.setattr(onnx, "LARGEST", 1024)
    model = of_kind("mlp")
    fast = engines.compile(model, engine, precision)
    x, time, cond = inputs(model, 2)
    expected = model.denoiser.network(x, time, **cond)
    tolerance = 1e-4 if precision == "fp32" else 0.2 * float(expected.detach().std())
    assert torch.allclose(fast.denoiser.network(x, time, **cond), expected, atol=tolerance)
    if engine == "onnxruntime":
        import onnxruntime

        export(model, "onnx", tmp_path / "net.onnx", precision=precision)
        # the weights in int8 are loaded as they are, and may be small enough again
        assert precision == "int8" or {path.name for path in tmp_path.iterdir()} == {"net.onnx", "net.onnx.data"}
        session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
        (found,) = session.run(None, {"x": x.numpy(), "time": time.numpy()})
        assert torch.allclose(torch.from_numpy(found), expected, atol=tolerance)
        (tmp_path / "net.onnx").unlink()
        if precision == "fp32":
            with pytest.raises(InputError, match=r"net\.onnx\.data already exists"):
                export(model, "onnx", tmp_path / "net.onnx")


def test_an_engine_has_no_weights_to_write(tmp_path: Path) -> None:
    packages("onnx", "onnxscript", "onnxruntime")
    fast = engines.compile(of_kind("mlp"), "onnxruntime")
    for to, name in (("safetensors", "x.safetensors"), ("onnx", "x.onnx"), ("diffusers", "x")):
        with pytest.raises(InputError, match="runs in an engine already"):
            export(fast, to, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_weights_beside_a_graph_are_not_overwritten(tmp_path: Path) -> None:
    packages("openvino", "onnx", "onnxscript")
    (tmp_path / "net.bin").write_text("the work of a year")
    with pytest.raises(InputError, match=r"net\.bin already exists"):
        export(of_kind("mlp"), "openvino", tmp_path / "net.xml")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the work of a year"]
    export(of_kind("mlp"), "openvino", tmp_path / "net.xml", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"net.xml", "net.bin"}
    (tmp_path / "net.bin").unlink()
    (tmp_path / "net.bin").mkdir()
    with pytest.raises(InputError, match=r"net\.bin is a folder"):
        export(of_kind("mlp"), "openvino", tmp_path / "net.xml", overwrite=True)


def test_bf16_and_its_deviation() -> None:
    packages("openvino", "onnx", "onnxscript")
    import openvino

    from sfumato.interop.engines.openvino import has_bf16

    model = of_kind("unet")
    if not has_bf16(openvino.Core()):
        pytest.skip("this processor has no instructions for bf16")
    deviation = engines.deviation(model, engines.compile(model, "openvino", "bf16"), 2)
    # bf16 rounds to 2^-9 of a number
    assert 1e-4 < deviation.rms < 0.1 and "RMS" in str(deviation)


def test_a_cpu_without_bf16_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    packages("openvino", "onnx", "onnxscript")
    from sfumato.interop.engines import openvino

    monkeypatch.setattr(openvino, "has_bf16", lambda core: False)
    model = of_kind("mlp")
    with pytest.warns(SfumatoWarning, match="no instructions for bf16"):
        fast = engines.compile(model, "openvino", "bf16")
    assert engines.deviation(model, fast, 2).rms < 1e-5


@pytest.mark.parametrize(
    ("engine", "package"),
    [("onnxruntime", "onnxruntime"), pytest.param("openvino", "nncf", marks=pytest.mark.slow)],
)
def test_int8_is_calibrated_on_trajectories(engine: str, package: str) -> None:
    packages(engine, "onnx", "onnxscript", package)
    model = of_kind("unet")
    calls = engines.calibration(model)
    # 5 steps, from pure noise at the last index to the first of a uniform grid
    assert [float(call.time[0]) for call in calls] == [999.0, 799.0, 599.0, 399.0, 199.0]
    assert calls[0].x.std() == pytest.approx(1.0, abs=0.1) and calls[0].cond["label"].shape == (8,)
    deviation = engines.deviation(model, engines.compile(model, engine, "int8"), 4)
    assert 1e-3 < deviation.rms < 0.3


def test_deviation_against_a_network_that_is_off_by_a_known_amount() -> None:
    model, other = of_kind("mlp"), of_kind("mlp")
    assert engines.deviation(model, other, 4).rms == 0.0
    with torch.no_grad():
        for parameter in list(other.denoiser.network.parameters())[-2:]:
            parameter *= 1.01
    found = engines.deviation(model, other, 4)
    # the last layer is linear: all outputs grow by a hundredth
    assert found.rms == pytest.approx(0.01, rel=1e-3)
    assert found.largest > found.rms and found.images_rms > 0.0


def test_networks_that_sample_in_bf16_by_themselves_are_recorded_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those above the threshold of the sampling are counted and copied by it, of which nothing must be recorded."""
    monkeypatch.setattr("sfumato.models.inference.supports_bf16", lambda device: True)
    model = random_model(shape=(3, 32, 32))
    parameters = sum(p.numel() for p in model.denoiser.network.parameters())
    assert parameters * 32 * 32 >= LEAST_MACS
    short = model.config.sampling.model_copy(update={"steps": 2})
    exact = model.sample(2, seed=5, sampling=short.model_copy(update={"precision": "fp32"}))
    for asked in (short, short.model_copy(update={"precision": "bf16", "compile": True})):
        calls, images = record(model, 2, 5, asked)
        assert [call.x.device.type for call in calls] == ["cpu", "cpu"]
        assert torch.equal(images, exact)
    found = engines.deviation(model, random_model(shape=(3, 32, 32)), 2, sampling=short)
    assert found.rms == 0.0 and found.images_rms == 0.0


def test_unknown_engines_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no engine 'openvin'; did you mean 'openvino'"):
        engines.check("openvin", "fp32")
    with pytest.raises(InputError, match="onnxruntime does not compute in bf16, but in fp32 or int8; openvino does"):
        engines.check("onnxruntime", "bf16")
    with pytest.raises(InputError, match="does not compute in fp8"):
        engines.check("openvino", "fp8")

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r'needs openvino; install it with: pip install "sfumato\[openvino\]"'):
        engines.check("openvino", "fp32")
