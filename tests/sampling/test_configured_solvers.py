"""Every solver of the configuration, on every kind of schedule, end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.tiny import tiny

from sfumato.config import KINDS, SamplingConfig, parse
from sfumato.errors import InputError
from sfumato.models.model import Model
from sfumato.models.storage import Info

SCHEDULES: dict[str, Any] = {
    "table": {"schedule": {"kind": "linear", "steps": 100}, "parameterization": {"kind": "eps"}},
    "edm": {"schedule": {"kind": "edm"}, "parameterization": {"kind": "edm"}},
    "flow": {"schedule": {"kind": "flow"}, "parameterization": {"kind": "velocity"}},
}
INFO = Info(shape=(1, 8, 8), std=0.7, train=10, heldout=2)


def model(name: str) -> Model:
    over = {"model": SCHEDULES[name], "objective": {"weight": {"kind": "output"}, "times": {"kind": "uniform"}}}
    torch.manual_seed(0)
    return Model.build(tiny(**over), INFO)


def sampling(sampler: dict[str, Any], steps: int = 5) -> SamplingConfig:
    return parse(SamplingConfig, {"sampler": sampler, "grid": {"kind": "uniform"}, "steps": steps})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS["sampler"] if kind != "fitted"])
def test_every_solver_samples_and_an_image_is_its_own(kind: str, schedule: str) -> None:
    made, chosen = model(schedule), sampling({"kind": kind}, 1 if kind == "adaptive" else 5)
    images = made.sample(3, sampling=chosen)
    assert images.shape == (3, 1, 8, 8) and images.isfinite().all()
    assert (made.sample(1, first=2, sampling=chosen) - images[2:]).abs().max() < 1e-4


@pytest.mark.parametrize("coordinate", ["noise", "data", "rotation"])
@pytest.mark.parametrize("variable", ["natural", "log_snr", "time"])
def test_members_of_the_multistep_family(coordinate: str, variable: str) -> None:
    made = model("edm")
    first = sampling({"kind": "multistep", "coordinate": coordinate, "variable": variable, "order": 1})
    plain = made.sample(2, sampling=sampling({"kind": "ddim"}))
    found = made.sample(2, sampling=first)
    # of order 1 the first two are DDIM
    assert ((found - plain).abs().max() < 1e-4) == (coordinate != "rotation")


def test_the_scale_is_that_of_the_data() -> None:
    made = model("edm")
    assert made.denoiser.data_std == 0.7
    own, given = ({"kind": "multistep", **over} for over in ({}, {"scale": 0.7}))
    assert torch.equal(made.sample(2, sampling=sampling(own)), made.sample(2, sampling=sampling(given)))


GRIDS: dict[str, dict[str, Any]] = {"list": {"sigmas": [3.0, 1.0, 0.3, 0.1, 0.03]}, "karras": {"sigma_max": 5.0}}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS["grid"])
def test_every_grid_samples(kind: str, schedule: str) -> None:
    if kind in ("optimal", "fitted"):
        pytest.skip("needs what is fitted to a trained model: tests/models/test_calibrate.py")
    more = GRIDS.get(kind, {"sigma_max": 5.0} if kind == "log_snr" else {})
    values = {"sampler": {"kind": "best"}, "grid": {"kind": kind, **more}, "steps": 5}
    if kind == "timesteps" and schedule in ("edm", "flow"):
        with pytest.raises(InputError, match="table of betas"):
            model(schedule).sampler(parse(SamplingConfig, values))
        return
    made, chosen = model(schedule), parse(SamplingConfig, values)
    _, levels, _ = made.sampler(chosen)
    assert len(levels) == 6
    assert made.sample(2, sampling=chosen).isfinite().all()


def test_a_list_has_as_many_levels_as_steps() -> None:
    values = {"grid": {"kind": "list", "sigmas": [1.0, 0.1]}, "steps": 5}
    with pytest.raises(InputError, match=r"lists 2 levels, which make as many steps; sampling.steps is 5"):
        model("edm").sample(1, sampling=parse(SamplingConfig, values))


def test_churn_is_spread_over_the_steps() -> None:
    made = model("edm")
    plain, churned = (made.sample(2, sampling=sampling({"kind": "heun", "churn": churn})) for churn in (0.0, 2.0))
    assert not torch.equal(plain, churned)
    outside = sampling({"kind": "heun", "churn": 2.0, "churn_low": 1e4, "churn_high": 2e4})
    assert (made.sample(2, sampling=outside) - plain).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ({"kind": "unipc", "order": 4}, "order from 1 to 3"),
        ({"kind": "multistep", "order": 0}, "order from 1 to 4"),
        ({"kind": "sa_solver", "low": 2.0}, "low < high"),
        ({"kind": "langevin", "snr": 0.9}, "snr between 0 and 0.7"),
        ({"kind": "heun", "churn": 40, "churn_low": 10, "churn_high": 1}, "churn_low < churn_high"),
        ({"kind": "unipcc"}, "did you mean 'unipc'"),
    ],
)
def test_bad_settings(sampler: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model("edm").sample(1, sampling=sampling(sampler))
