"""Models that leave for diffusers give there what they give here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.errors import InputError
from sfumato.interop import export, load_diffusers
from sfumato.models.model import Model
from sfumato.sampling.sample import seeded_noise
from tests.interop.engines.models import random_model

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'sfumato[dev]'")


def deviation(network: Any, model: Model, label: torch.Tensor | None = None) -> float:
    x = torch.randn(2, *model.info.shape, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([3, 987])
    with torch.no_grad():
        theirs = network(x, time, class_labels=label).sample
        ours = model.denoiser.network(x, time.float(), **({} if label is None else {"label": label}))
    assert theirs.std() > 0.1
    return float((theirs - ours).abs().max())


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"modulation": "additive", "resample": "asymmetric", "eps": 1e-6, "time_period": 20_000.0},
        {"resample": "block", "head_channels": 8, "attention": (0, 1), "embedding": 48},
        {"middle_attention": False, "heads": 1, "attention": ()},
        {"channels": (16, 32, 32), "blocks": (2, 2, 2), "attention": (2,), "dropout": 0.1},
    ],
)
def test_the_network_is_the_same(tmp_path: Path, network: dict[str, Any]) -> None:
    model = random_model(model={"network": network})
    export(model, "diffusers", tmp_path / "out")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet").eval()
    assert deviation(theirs, model) < 1e-5
    # and it comes back as it left
    again = load_diffusers(tmp_path / "out")
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([5.0, 500.0])
    assert torch.allclose(model.denoiser.network(x, time), again.denoiser.network(x, time), atol=1e-5)
    assert again.config.model.schedule == model.config.model.schedule


def test_labels_and_the_one_for_none(tmp_path: Path) -> None:
    model = random_model(classes=3)
    notes = export(model, "diffusers", tmp_path / "out")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet").eval()
    assert deviation(theirs, model, torch.tensor([0, 2])) < 1e-5
    x, time = torch.randn(1, 3, 8, 8), torch.tensor([5.0])
    with torch.no_grad():
        none = theirs(x, time, class_labels=torch.tensor([3])).sample
        assert torch.allclose(none, model.denoiser.network(x, time), atol=1e-5)
    assert any("3 is none" in note for note in notes)


@pytest.mark.parametrize(
    ("schedule", "prediction", "clip"),
    [
        ({"kind": "linear"}, "eps", True),
        ({"kind": "linear", "steps": 200}, "eps", False),
        ({"kind": "cosine"}, "v", None),
        ({"kind": "sigmoid", "steps": 100}, "x0", None),
        ({"kind": "zero_terminal_snr", "table": {"kind": "linear", "steps": 500}}, "v", None),
    ],
)
@pytest.mark.parametrize("sampler", [{"kind": "ddim"}, {"kind": "ancestral"}])
# that tables leave a little signal at their end is warned of elsewhere
@pytest.mark.filterwarnings("ignore:alpha_bar_T")
def test_the_pipeline_draws_the_same_images(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: dict[str, Any],
    prediction: str,
    clip: bool | None,
    sampler: dict[str, Any],
) -> None:
    """From the same noise, on the same grid of 10 steps."""
    model = random_model(
        model={"schedule": schedule, "parameterization": {"kind": prediction}},
        sampling={"sampler": sampler, "steps": 10, "clip": clip},
        objective={"weight": {"kind": "output"}},
    )
    # their tables are float32, and of an estimate that is not clipped the first error is 1 / alpha = 150 times as large
    assert drawn_alike(model, tmp_path, monkeypatch) < (1e-3 if clip is False else 1e-4)


def test_the_large_variance_on_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(
        model={"schedule": {"kind": "sigmoid", "steps": 10}, "parameterization": {"kind": "v"}},
        sampling={"sampler": {"kind": "ancestral", "variance": "large"}, "steps": 10},
    )
    assert drawn_alike(model, tmp_path, monkeypatch) < 1e-4


def drawn_alike(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """The largest difference of an image of the pipeline from ours."""
    export(model, "diffusers", tmp_path / "out")
    expected = model.sample(1, seed=3)
    (batch,) = model.batches(1, seed=3)
    start, noise = batch.x, seeded_noise(3)
    for name in ("ddpm.pipeline_ddpm", "ddim.pipeline_ddim"):
        monkeypatch.setattr(f"diffusers.pipelines.{name}.randn_tensor", lambda *_, **__: start.float().clone())
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise(torch.empty(1, 3, 8, 8))
    )
    ancestral = model.config.sampling.sampler.kind == "ancestral"
    kind = diffusers.DDPMPipeline if ancestral else diffusers.DDIMPipeline
    pipeline = kind.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    more = {} if ancestral else {"use_clipped_model_output": True}
    images = pipeline(num_inference_steps=10, output_type="np", **more).images
    assert expected.std() > 0.1
    return float((torch.from_numpy(images).movedim(3, 1) * 2.0 - 1.0 - expected).abs().max())


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(
    "grid", [{"kind": "uniform"}, {"kind": "timesteps", "spacing": "linspace", "before_last": True}]
)
@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        ({"kind": "dpm_solver", "final_order": 1}, "DPMSolverMultistepScheduler"),
        ({"kind": "dpm_solver", "order": 1}, "DPMSolverMultistepScheduler"),
        ({"kind": "unipc", "order": 2, "final_order": 1}, "UniPCMultistepScheduler"),
    ],
)
def test_multistep_samplers_draw_the_same_images(
    tmp_path: Path, sampler: dict[str, Any], kind: str, grid: dict[str, Any], prediction: str
) -> None:
    """Theirs from our noise, and what comes back from there samples as what left."""
    model = random_model(
        model={"parameterization": {"kind": prediction}},
        sampling={"sampler": sampler, "grid": grid, "steps": 10},
        objective={"weight": {"kind": "output"}},
    )
    notes = " ".join(export(model, "diffusers", tmp_path / "out"))
    assert "generator" in notes if kind.startswith("UniPC") else notes == ""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    unet, scheduler = pipeline.unet, pipeline.scheduler
    assert type(scheduler).__name__ == kind
    (batch,) = model.batches(2, seed=3)
    x = batch.x.clone()
    scheduler.set_timesteps(10)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    expected = model.sample(2, seed=3)
    assert expected.std() > 0.1
    assert (x.clamp(-1.0, 1.0) - expected).abs().max() < 1e-4
    again = load_diffusers(tmp_path / "out")
    assert again.config.sampling.sampler.kind == sampler["kind"]
    assert (again.sample(2, seed=3, steps=10) - expected).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:alpha_bar_T")
def test_the_pipeline_of_dpm_solver_runs(tmp_path: Path) -> None:
    model = random_model(
        model={"schedule": {"kind": "zero_terminal_snr"}, "parameterization": {"kind": "v"}},
        sampling={"sampler": {"kind": "dpm_solver"}, "grid": {"kind": "karras"}},
        objective={"weight": {"kind": "output"}},
    )
    notes = " ".join(export(model, "diffusers", tmp_path / "out"))
    assert all(words in notes for words in ("last step has order 1", "alpha_bar 2^-24", "grid karras"))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = torch.from_numpy(pipeline(num_inference_steps=5, output_type="np").images)
    assert images.isfinite().all() and images.std() > 0.02


@pytest.mark.parametrize("sampler", [{"kind": "ddim"}, {"kind": "ancestral"}])
def test_either_pipeline_loads_and_samples(tmp_path: Path, sampler: dict[str, Any]) -> None:
    export(random_model(sampling={"sampler": sampler}), "diffusers", tmp_path / "out")
    for kind in (diffusers.DDPMPipeline, diffusers.DDIMPipeline, diffusers.DiffusionPipeline):
        pipeline = kind.from_pretrained(tmp_path / "out")
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


def test_a_learned_variance_leaves_and_comes_back(tmp_path: Path) -> None:
    sampling = {"sampler": {"kind": "ancestral", "variance": "learned"}, "steps": 10}
    model = random_model(model={"learned_variance": True}, sampling=sampling)
    export(model, "diffusers", tmp_path / "out")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.scheduler.config.variance_type == "learned_range"
    again = load_diffusers(tmp_path / "out")
    assert again.denoiser.learned_variance
    asked = model.config.sampling.override({"grid": "best", "steps": 4})
    assert torch.allclose(again.sample(2, sampling=asked), model.sample(2, sampling=asked), atol=1e-4)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"schedule": {"kind": "edm"}, "parameterization": {"kind": "edm"}}, "schedule edm is no table"),
        ({"schedule": {"kind": "flow"}, "parameterization": {"kind": "velocity"}}, "schedule flow is no table"),
        ({"parameterization": {"kind": "score"}}, "predicts score"),
        ({"time": "log_snr"}, "log_snr"),
        ({"network": {"time_kind": "fourier"}}, "time_kind is fourier, and only sinusoidal has"),
        ({"network": {"skips": "blocks"}}, "skips is blocks, and only all has"),
        ({"network": {"rescale": True}}, "rescale is True, and only False has"),
        ({"network": {"residual_input": True, "resample": "projected"}}, "resample"),
        ({"network": {"channels": (12, 32)}}, "groups"),
        ({"network": {"attention": (0, 1)}}, "8 and 16 channels"),
        ({"network": {"middle": 1}}, "middle is 1, and only 2 has"),
        ({"network": {"time_scale": 2.0}}, "time_scale"),
        ({"network": {"first": 8}}, "first is 8, and only None or 16 has"),
        ({"network": {"coordinates": True}}, "coordinates is True, and only False has"),
        ({"network": {"blocks": (1, 2)}}, r"blocks is \(1, 2\), and only"),
        ({"network": {"patch": 2}}, "patch is 2, and only 1 has an equivalent"),
    ],
)
def test_what_cannot_be_expressed_is_said(tmp_path: Path, over: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"can't express.*{words}"):
        export(random_model(model=over), "diffusers", tmp_path / "out")
    # and nothing is left behind
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "condition", "words"),
    [
        ("text", {"kind": "tokens", "features": 4}, "attends to tokens"),
        ("label", {"kind": "label", "slot": "tokens", "names": ["a", "b"]}, "attends to tokens"),
        ("low", {"kind": "low_resolution"}, "takes channels of a condition"),
        ("style", {"kind": "embedding", "mean": [0.0], "std": [1.0]}, "condition 'style'"),
        ("label", {"kind": "embedding", "mean": [0.0], "std": [1.0]}, "condition 'label'"),
    ],
)
def test_conditions_that_cannot_be_expressed_are_said(
    tmp_path: Path, name: str, condition: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=f"can't express.*{words}"):
        export(random_model(conditions={name: condition}), "diffusers", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_networks_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of the kind dit"):
        export(
            random_model(model={"network": {"kind": "dit", "depth": 1, "width": 32, "heads": 2}}),
            "diffusers",
            tmp_path / "o",
        )
    with pytest.raises(InputError, match="signals"):
        export(random_model(shape=(3, 8)), "diffusers", tmp_path / "o")


def test_what_differs_is_said(tmp_path: Path) -> None:
    model = random_model(sampling={"sampler": {"kind": "heun"}})
    notes = " ".join(export(model, "diffusers", tmp_path / "out"))
    assert "sampler heun is left" in notes and "use_clipped_model_output" in notes
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == "DDIMPipeline"
