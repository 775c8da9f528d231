"""Every schedule, parameterization, weighting and the learned variance, chosen in the configuration and trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.config import KINDS, Config, component, parse, walk
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError
from sfumato.models.model import Model, load
from sfumato.models.storage import Info
from sfumato.runs.setup import make_trainer
from sfumato.runs.train import train
from tests.training.tiny import tiny

LINEAR = {"kind": "linear", "steps": 100}
ZERO = {"kind": "zero_terminal_snr", "table": LINEAR}
FLOW = {"kind": "flow"}


def config(
    schedule: dict[str, Any], parameterization: str = "v", weight: str = "simple", learned: bool = False
) -> Config:
    return tiny(
        model={
            "schedule": schedule,
            "parameterization": {"kind": parameterization},
            "learned_variance": learned,
        },
        objective={"weight": {"kind": weight}, "times": {"kind": "uniform"}},
    )


def losses(wanted: Config, steps: int = 3) -> list[float]:
    images = wanted.data.build().images
    info = Info(shape=(1, 8, 8), std=0.75, train=len(images), heldout=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model.build(wanted, info)
    trainer = make_trainer(model, Loader(Dataset(images, name="digits"), 0))
    return [record.loss for record in trainer.run(steps)]


@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [(LINEAR, p) for p in ("eps", "x0", "v", "score", "velocity", "mean", "edm")]
    + [(FLOW, p) for p in ("velocity", "v", "x0", "edm")]
    + [({"kind": "sigmoid", "steps": 100}, "v"), ({"kind": "continuous_cosine"}, "score"), ({"kind": "edm"}, "score")],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_every_parameterization_trains(schedule: dict[str, Any], parameterization: str) -> None:
    assert all(math.isfinite(loss) for loss in losses(config(schedule, parameterization)))


@pytest.mark.parametrize("parameterization", ["x0", "v", "velocity", "mean"])
def test_zero_terminal_snr_trains(parameterization: str) -> None:
    assert all(math.isfinite(loss) for loss in losses(config(ZERO, parameterization, "output")))


@pytest.mark.parametrize(
    ("weight", "schedule"),
    [(w, LINEAR) for w in ("edm", "output", "vlb", "vlb_continuous", "sigmoid", "p2", "min_snr", "soft_min_snr")]
    + [(w, FLOW) for w in ("simple", "output", "vlb_continuous", "sigmoid", "min_snr")],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_every_weighting_trains(weight: str, schedule: dict[str, Any]) -> None:
    assert all(math.isfinite(loss) and loss > 0.0 for loss in losses(config(schedule, "velocity", weight)))


def test_the_hybrid_loss_trains_and_is_the_same_in_parts() -> None:
    wanted = config(LINEAR, "eps", learned=True)
    found = losses(wanted, 6)
    assert all(math.isfinite(loss) for loss in found)
    parts = wanted.model_copy(update={"training": wanted.training.model_copy(update={"accumulate": 4})})
    assert losses(parts, 6) == pytest.approx(found, rel=1e-4)
    # the bound comes on top of the simple loss
    assert found[0] > losses(config(LINEAR, "eps"), 1)[0]


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_a_learned_schedule_trains_and_is_kept(tmp_path: Path, parameterization: str) -> None:
    wanted = config({"kind": "learned"}, parameterization, "vlb_continuous")
    model = train(wanted, run=tmp_path / "run")
    again = load(tmp_path / "run")
    t = torch.linspace(0.0, 1.0, 20, dtype=torch.float64)
    one, two, fresh = (s(t) for s in (model.denoiser.schedule, again.denoiser.schedule, wanted.model.schedule.build()))
    assert torch.equal(torch.as_tensor(one.sigma), torch.as_tensor(two.sigma))
    assert not torch.equal(torch.as_tensor(one.sigma), torch.as_tensor(fresh.sigma))
    assert again.sample(2).isfinite().all()


@pytest.mark.parametrize("over", [{"schedule": {"kind": "learned", "log_snr_max": 5.0}}, {"learned_variance": True}])
def test_what_is_taught_by_likelihood_knows_the_values_of_the_data(over: dict[str, Any]) -> None:
    """The same noise costs less where the bins are wider."""
    model = {"schedule": {"kind": "linear", "steps": 4}, "parameterization": {"kind": "eps"}, **over}
    weight = "vlb_continuous" if "schedule" in over else "simple"
    objective = {"weight": {"kind": weight}, "times": {"kind": "uniform"}}
    found = [losses(tiny(model=model, objective={**objective, "bins": bins}), 1)[0] for bins in (17, 256)]
    assert found[0] < found[1] - 1e-4


def test_flow_matching_starts_at_the_spread_of_its_target() -> None:
    """A network that returns zero has the loss E|eps - x0|^2 = 1 + E x0^2."""
    wanted = config(FLOW, "velocity", "output")
    images = wanted.data.build()
    expected = 1.0 + float(images.batch(range(len(images))).square().mean())
    wanted = wanted.model_copy(update={"training": wanted.training.model_copy(update={"batch_size": 512})})
    assert losses(wanted, 1)[0] == pytest.approx(expected, rel=0.03)


def test_a_run_with_learned_variance_resumes_and_loads(tmp_path: Path) -> None:
    options = {"schedule": LINEAR, "parameterization": {"kind": "eps"}, "learned_variance": True}
    rest = {
        "objective": {"weight": {"kind": "simple"}, "times": {"kind": "uniform"}},
        # a decay would depend on where the training is to end
        "optimizer": {"warmup": 2, "decay": "constant"},
    }
    whole = tiny(model=options, **rest, training={"channels_last": False})
    model = train(whole, run=tmp_path / "whole")
    train(tiny(model=options, **rest, training={"channels_last": False, "steps": 6}), run=tmp_path / "parts")
    train(whole, run=tmp_path / "parts", resume=True)
    pairs = zip(model.denoiser.parameters(), load(tmp_path / "parts").denoiser.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert load(tmp_path / "whole").sample(2).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("suffix", ["npy", "json", "txt"])
def test_a_table_from_a_file_is_kept_by_the_run(tmp_path: Path, suffix: str) -> None:
    betas = np.linspace(0.001, 0.5, 40)
    path = tmp_path / f"betas.{suffix}"
    if suffix == "npy":
        np.save(path, betas)
    else:
        numbers = [repr(float(beta)) for beta in betas]
        path.write_text(f"[{', '.join(numbers)}]" if suffix == "json" else "\n".join(numbers))
    wanted = config({"kind": "table", "file": str(path)})
    path.unlink()
    again = parse(Config, json.loads(json.dumps(wanted.model_dump(mode="json"))))
    assert again == wanted
    schedule = again.model.schedule.build()
    assert np.abs(schedule.betas.numpy() - betas).max() < 1e-14  # type: ignore[union-attr]
    assert math.isfinite(losses(again, 1)[0])


def test_every_kind_is_described() -> None:
    for key, field in walk(Config):
        assert field.description or key.endswith(".kind"), key
    for slot, kinds in KINDS.items():
        for kind in kinds:
            made = component(slot, kind)
            assert made.__doc__, (slot, kind)
            for key, field in walk(made):
                assert field.description or key.endswith("kind"), (slot, kind, key)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"schedule": ZERO, "parameterization": {"kind": "eps"}}, "alpha = 0"),
        ({"schedule": FLOW, "parameterization": {"kind": "score"}}, "alpha = 0"),
        ({"schedule": FLOW, "parameterization": {"kind": "mean"}}, "has no steps"),
        ({"schedule": FLOW, "parameterization": {"kind": "velocity"}, "learned_variance": True}, "has none"),
        ({"schedule": FLOW, "parameterization": {"kind": "v"}, "time": "log_sigma"}, "log_sigma"),
        ({"schedule": ZERO, "parameterization": {"kind": "v"}}, "objective.weight output"),
        ({"schedule": {"kind": "table", "file": "nowhere.npy"}}, "Could not read numbers"),
        ({"schedule": {"kind": "table", "betas": [0.1, "x"]}}, "betas"),
        ({"schedule": LINEAR, "learned_variance": True}, "times uniform"),
    ],
)
def test_what_does_not_go_together(over: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tiny(model=over)


def test_the_weight_of_the_bound_needs_steps() -> None:
    with pytest.raises(InputError, match="vlb_continuous"):
        config(FLOW, "v", "vlb")


def test_a_learned_schedule_needs_its_loss() -> None:
    with pytest.raises(InputError, match="vlb_continuous"):
        config({"kind": "learned"}, "v", "simple")


def test_a_table_without_betas() -> None:
    with pytest.raises(InputError, match="without betas"):
        config({"kind": "table"}).model.build((1, 8, 8))


def test_text_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "betas.txt").write_text("0.1 half")
    with pytest.raises(InputError, match="Could not read numbers"):
        config({"kind": "table", "file": str(tmp_path / "betas.txt")})
