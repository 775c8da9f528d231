"""The recipe of super-resolution: residual and as published, its regression baseline, on crops of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.conditioning.low_resolution import scale_down
from sfumato.config import Config, merge, parse
from sfumato.errors import InputError
from sfumato.recipes import RECIPES, named


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    coarse = generator.random((24, 5, 5, 3))
    smooth = np.kron(coarse, np.ones((1, 5, 5, 1)))[:, :24, :24]
    np.savez(tmp_path / "pictures.npz", images=(smooth * 255).astype(np.uint8))
    return tmp_path / "pictures.npz"


def settings(pictures: Path, **changes: Any) -> Config:
    over: dict[str, Any] = {
        "data": {"random_crop": 16, "holdout": 4},
        "model": {"network": {"channels": [8, 8], "embedding": 8, "time_features": 8}},
        "training": {"steps": 3, "batch_size": 8, "sample_count": 4, "sample_every": 3},
        "evaluation": {"samples": 4, "measures": ("pairs",)},
    }
    return parse(Config, merge(merge(named(None, str(pictures), task="upscale"), over), changes))


def test_a_run_learns_what_the_scaled_up_image_lacks(tmp_path: Path, pictures: Path) -> None:
    model = sfumato.train(settings(pictures), run=tmp_path / "run")
    assert model.denoiser.base is not None and model.info.std < 0.5
    x0 = torch.rand(2, 3, 16, 16) * 2.0 - 1.0
    low = scale_down(x0, 4)
    found = model.sample(2, seed=1, low_resolution=low)
    # 3 steps teach nothing: the samples are the scaled-up images with noise of the residual's size
    up = torch.nn.functional.interpolate(low, (16, 16), mode="bicubic").clamp(-1.0, 1.0)
    assert 0.0 < float((found - up).square().mean().sqrt()) < 3.0 * model.info.std
    again = sfumato.load(tmp_path / "run")
    assert torch.equal(again.sample(2, seed=1, low_resolution=low), found)
    # any size: the picture is the conditions', the network follows
    wide = torch.rand(1, 3, 6, 10)
    level = model.denoiser.schedule(0.7)
    cond = {"low_resolution": wide, "low_resolution_level": torch.zeros(1)}
    assert again.denoiser(torch.zeros(1, 3, 24, 40), level, **cond).x0.shape == (1, 3, 24, 40)


def test_the_published_form_and_regression_are_a_flag_each(tmp_path: Path, pictures: Path) -> None:
    published = {
        "model": {
            "residual": False,
            "schedule": {"kind": "linear"},
            "parameterization": {"kind": "eps"},
            "time": "gamma",
        },
        "objective": {"weight": {"kind": "simple"}, "times": {"kind": "between_steps"}, "power": 1},
    }
    model = sfumato.train(settings(pictures, **published), run=tmp_path / "sr3")
    low = torch.zeros(2, 3, 4, 4)
    assert bool(torch.isfinite(model.sample(2, low_resolution=low)).all())
    flag = {"model": {"parameterization": {"kind": "regression"}}}
    model = sfumato.train(settings(pictures, **flag), run=tmp_path / "regression")
    one, other = (model.sample(1, seed=seed, steps=steps, low_resolution=low[:1]) for seed, steps in ((0, 1), (5, 4)))
    # time is told to the network, the noise is not
    assert torch.allclose(one, model.sample(1, seed=9, steps=1, low_resolution=low[:1]), atol=1e-6)
    assert one.shape == other.shape


def test_a_residual_needs_its_image(pictures: Path, tmp_path: Path) -> None:
    config = parse(Config, settings(pictures).model_dump() | {"conditions": {}}, trust=True)
    with pytest.raises(InputError, match="low_resolution"):
        sfumato.train(config, run=tmp_path / "run")


def test_arrays_are_not_cut_and_tasks_have_one_recipe() -> None:
    assert "tile" in named(None, "folder", task="upscale")["data"]
    assert "tile" not in named(None, "x.npz:images", task="upscale")["data"]
    with pytest.raises(InputError, match="small is not of the task upscale"):
        named("small", None, task="upscale")
    with pytest.raises(InputError, match="did you mean 'upscale'"):
        named(None, None, task="upscal")
    assert RECIPES["upscale"]()["model"]["residual"]


def test_what_needs_pure_noise_is_refused_of_a_residual_model(tmp_path: Path, pictures: Path) -> None:
    model = sfumato.train(settings(pictures), run=tmp_path / "run")
    low = torch.zeros(3, 4, 4)
    with pytest.raises(InputError, match="residual"):
        sfumato.interpolate(model, 0, 1, 4, low_resolution=low)
    with pytest.raises(InputError, match="residual"):
        sfumato.bits_per_dim(model, torch.zeros(2, 3, 16, 16), low_resolution=low)
    # a figure of the reverse process starts where sampling does
    from sfumato.cli import main

    with pytest.raises(SystemExit) as done:
        main(["explain", "reverse", str(tmp_path / "run"), "--out", str(tmp_path / "figures")])
    assert done.value.code == 0 and list((tmp_path / "figures").glob("*.png"))


def test_a_grid_is_fitted_to_trajectories_that_start_around_the_picture(tmp_path: Path, pictures: Path) -> None:
    from sfumato.sampling import fitting

    model = sfumato.train(settings(pictures), run=tmp_path / "run")
    seen: list[torch.Tensor] = []
    usual = fitting.examples

    def watched(denoise: Any, schedule: Any, noise: torch.Tensor, **more: Any) -> Any:
        seen.append(noise)
        return usual(denoise, schedule, noise, evaluations=8, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "examples", watched)
        patch.setattr(fitting, "most_iterations", lambda coefficients: 2)
        sfumato.tune(model, steps=2, noises=16, progress=False)
        assert 2 in model.fitted.solvers
        model.denoiser.base = None
        sfumato.tune(model, steps=2, noises=16, progress=False)
    around, plain = seen
    # what is added to the noise is pictures
    known = (around - plain) * model.denoiser.schedule.sigma_max
    assert float(known.abs().max()) < 2.0 and float(known.std()) > 0.2
