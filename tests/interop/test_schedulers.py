"""A pipeline of diffusers draws the same whole samples here, from the same noise; what it can't is said."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.diffusion.schedule import Karras, linear
from sfumato.errors import InputError, SfumatoWarning
from sfumato.interop import load_diffusers
from sfumato.models.model import Model
from sfumato.sampling.sample import seeded_noise
from sfumato.sampling.timesteps import timesteps

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'sfumato[dev]'")

# that tables leave a little signal at their end is warned of elsewhere
pytestmark = pytest.mark.filterwarnings("ignore:alpha_bar_T")

COUNT, SEED = 2, 3


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def loaded(folder: Path, network: Any, scheduler: Any) -> tuple[Model, str]:
    """The pipeline as a model, and what was warned of."""
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SfumatoWarning)
        model = load_diffusers(folder)
    return model, " ".join(str(w.message) for w in caught if "alpha_bar_T" not in str(w.message))


def theirs(network: Any, scheduler: Any, x: torch.Tensor, steps: int, patch: pytest.MonkeyPatch) -> torch.Tensor:
    """The samples of diffusers, with our noise in each step."""
    noise = seeded_noise(SEED)
    for module in ("ddpm", "dpmsolver_multistep"):
        patch.setattr(f"diffusers.schedulers.scheduling_{module}.randn_tensor", lambda *_, **__: noise(x))
    if not isinstance(steps, list):
        scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return x


def rms(model: Model, network: Any, scheduler: Any, patch: pytest.MonkeyPatch, steps: int | None = None) -> float:
    """The difference of whole samples, of those of the model's own number of steps unless given."""
    (batch,) = model.batches(COUNT, seed=SEED, steps=steps)
    expected = theirs(network, scheduler, batch.x.clone(), steps or model.config.sampling.steps, patch)
    # not the images, which are clipped in the end
    *_, last = batch.frames()
    found = last.x
    assert expected.std() > 0.1
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_clipping_schedulers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Any, kind: str, clip: bool, spacing: str, prediction: str
) -> None:
    scheduler = getattr(diffusers, kind)(clip_sample=clip, timestep_spacing=spacing, prediction_type=prediction)
    model, said = loaded(tmp_path, network, scheduler)
    if kind == "DDIMScheduler" and spacing == "linspace":
        # there, a step ends where the next one does not begin
        assert "where the next begins" in said
        return
    assert said == ""
    assert rms(model, network, scheduler, monkeypatch, steps=5) < 2e-5


SPACINGS, OUTPUTS = ("leading", "linspace", "trailing"), ("epsilon", "sample", "v_prediction")
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"


@pytest.mark.parametrize(
    ("kind", "settings", "spacing", "prediction"),
    [
        *itertools.product((DPM, UNIPC), ({},), SPACINGS, OUTPUTS),
        *(
            (kind, settings, *pair)
            for kind, settings in (
                (DPM, {"solver_order": 1, "thresholding": True}),
                (DPM, {"solver_type": "heun"}),
                (DPM, {"algorithm_type": "sde-dpmsolver++", "steps_offset": 1}),
                (UNIPC, {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}),
            )
            for pair in zip(SPACINGS, OUTPUTS, strict=True)
        ),
    ],
)
def test_multistep_schedulers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: Any,
    kind: str,
    settings: dict[str, Any],
    spacing: str,
    prediction: str,
) -> None:
    scheduler = getattr(diffusers, kind)(timestep_spacing=spacing, prediction_type=prediction, **settings)
    model, said = loaded(tmp_path, network, scheduler)
    assert said == ""
    assert rms(model, network, scheduler, monkeypatch, steps=6) < 2e-5


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param("DDPMScheduler", 1000, marks=pytest.mark.slow),
        ("DDIMScheduler", 50),
        ("DPMSolverMultistepScheduler", 20),
        ("UniPCMultistepScheduler", 20),
    ],
)
def test_schedulers_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Any, kind: str, steps: int
) -> None:
    """Nothing given here or there, the steps of the pipelines."""
    scheduler = getattr(diffusers, kind)()
    model, said = loaded(tmp_path, network, scheduler)
    assert said == "" and model.config.sampling.steps == steps
    # rounding alone adds up to 1.2e-4 in 50 steps, on a CPU with AVX-512
    assert rms(model, network, scheduler, monkeypatch) < 3e-4


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
        ("DDIMScheduler", {"set_alpha_to_one": False}),
        ("DDIMScheduler", {"clip_sample_range": 0.5}),
        ("DDIMScheduler", {"thresholding": True, "timestep_spacing": "trailing"}),
        ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("DDIMScheduler", {"beta_schedule": "scaled_linear", "num_train_timesteps": 300, "beta_end": 0.1}),
        (
            "DDIMScheduler",
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        ),
        ("DDPMScheduler", {"steps_offset": 1, "thresholding": True}),
        ("DDPMScheduler", {"variance_type": "fixed_large"}),
        ("DDPMScheduler", {"variance_type": "fixed_small_log", "beta_schedule": "sigmoid"}),
        ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
        (
            "UniPCMultistepScheduler",
            {"trained_betas": np.linspace(1e-4, 0.1, 200).tolist(), "num_train_timesteps": 200},
        ),
    ],
)
def test_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Any, kind: str, settings: dict[str, Any]
) -> None:
    scheduler = getattr(diffusers, kind)(**settings)
    model, said = loaded(tmp_path, network, scheduler)
    assert said == ""
    assert rms(model, network, scheduler, monkeypatch, steps=10) < 1e-4


def test_the_grid_of_ddim_with_linspace_is_that_of_consistent_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Any
) -> None:
    """DPM-Solver++ of order 1 is DDIM, and there it can be given any levels."""
    model, said = loaded(tmp_path, network, diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="linspace"))
    assert "where the next begins" in said
    consistent = diffusers.DPMSolverMultistepScheduler(solver_order=1)
    consistent.set_timesteps(timesteps=np.linspace(0, 999, 10).round()[::-1].astype(int).tolist())
    monkeypatch.setattr(consistent, "set_timesteps", lambda steps: None)
    assert rms(model, network, consistent, monkeypatch, steps=10) < 2e-5


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (
            "DDIMScheduler",
            {"timestep_spacing": "trailing", "num_train_timesteps": 70, "beta_end": 0.3},
            "where the next begins",
        ),
        ("DDIMScheduler", {"thresholding": True, "sample_max_value": 3.0}, "thresholded estimate"),
        ("DDPMScheduler", {"clip_sample_range": 2.0}, "clip_sample_range 2"),
        (
            "DDPMScheduler",
            {"variance_type": "fixed_large", "timestep_spacing": "leading", "steps_offset": 1},
            "noise after the last step",
        ),
        ("PNDMScheduler", {}, "pseudo-numerical"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order 3"),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type.* 0.01, is removed"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "nearest step"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "nearest step"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            "midpoint of algorithm_type dpmsolver",
        ),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "lower_order_final"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type bh1.*not a number there"),
        *(
            (kind, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "starts without signal")
            for kind in (DPM, UNIPC)
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_not_carried_over_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Any, kind: str, settings: dict[str, Any], words: str
) -> None:
    scheduler = getattr(diffusers, kind)(**settings)
    model, _ = loaded(tmp_path, network, scheduler)
    with pytest.warns(SfumatoWarning, match=f"Not all of this scheduler is carried over.*{words}"):
        load_diffusers(tmp_path)
    # what is taken in its place samples, and not at all like the scheduler only where it is another solver
    assert model.sample(COUNT, steps=10).isfinite().all()


@pytest.mark.parametrize(("order", "b"), [(1, "bh2"), (2, "bh1")])
def test_nothing_is_said_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Any, order: int, b: str
) -> None:
    """Samples of bh1 are no numbers there, and those of other solvers are ours where nothing is said."""
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=order, solver_type=b)
    model, said = loaded(tmp_path, network, scheduler)
    (batch,) = model.batches(COUNT, seed=SEED, steps=6)
    finite = bool(theirs(network, scheduler, batch.x.clone(), 6, monkeypatch).isfinite().all())
    assert finite == ("bh1" not in said)


def test_settings_that_nobody_knows_are_named(tmp_path: Path, network: Any) -> None:
    scheduler = diffusers.DDIMScheduler()
    scheduler.register_to_config(future_setting=0.5, skip_prk_steps=True)
    _, said = loaded(tmp_path, network, scheduler)
    assert "future_setting, which is not known" in said and "skip_prk_steps" not in said


@pytest.mark.parametrize("steps", [2, 7, 48, 100])
@pytest.mark.parametrize("table", [1000, 100, 101])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_the_indices_of_every_grid(kind: str, spacing: str, table: int, steps: int) -> None:
    before_last = kind.startswith("DPM")
    scheduler = getattr(diffusers, kind)(num_train_timesteps=table, timestep_spacing=spacing)

    def ours() -> list[float]:
        levels = timesteps(linear(table), steps, spacing, before_last=before_last)  # pyright: ignore[reportArgumentType]
        return (torch.as_tensor(levels.t)[:-1] * table - 1.0).tolist()

    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps.tolist()
    if len(set(expected)) < steps:
        with pytest.raises(InputError, match="another number of steps"):
            ours()
    else:
        assert ours() == pytest.approx(expected, abs=1e-9)


def test_grids_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="offset of 600 does not fit"):
        timesteps(linear(), 2, offset=600)
    with pytest.raises(InputError, match="noisiest is 1001"):
        timesteps(linear(), 2, noisiest=1001)
    with pytest.raises(InputError, match="table of betas"):
        timesteps(Karras(), 2)
    assert math.isclose(float(torch.as_tensor(timesteps(linear(), 1, "linspace").t)[0]), 1.0)
