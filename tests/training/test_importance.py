"""Importance sampling of the times in the loop: what is learned of the losses, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import random
from sfumato.config import Config
from sfumato.data import Dataset, Loader
from sfumato.diffusion.importance import LossSecondMoment
from sfumato.errors import InputError
from sfumato.io.files import read_tensors
from sfumato.models.model import Model, load
from sfumato.models.storage import Facts
from sfumato.runs.train import make_trainer, train
from sfumato.training.loop import Diverged, Trainer
from tests.runs.test_resume import assert_same_bytes, losses, state
from tests.training.tiny import command, flags, tiny

TIMES = {"kind": "loss_second_moment", "history": 2, "strata": 8}
ADAPTIVE = {"objective": {"times": TIMES}}
LINEAR = {"kind": "linear", "steps": 100}


def table(
    times: dict[str, Any], weight: str = "vlb", *, learned: bool = False, schedule: Any = LINEAR, **over: Any
) -> Config:
    return tiny(
        model={"schedule": schedule, "parameterization": {"kind": "v"}, "learned_variance": learned},
        objective={"weight": {"kind": weight}, "times": times},
        **over,
    )


def trainer(wanted: Config) -> Trainer:
    images = wanted.data.build().images
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(wanted, Facts(shape=(1, 8, 8), std=0.75, train=len(images), heldout=0))
    return make_trainer(model, Loader(Dataset(images, None, (), "digits"), 0))


def history(run: Trainer) -> LossSecondMoment:
    assert isinstance(run.objective.law, LossSecondMoment)
    return run.objective.law


def frozen(**training: Any) -> dict[str, Any]:
    """Settings of a training whose weights stay where they are."""
    return {"training": training, "optimizer": {"learning_rate": 1e-30, "decay": "constant"}}


def test_what_is_remembered_is_the_loss_itself() -> None:
    """While the weights stay, the mean over a history estimates the loss of its stratum, importance or not."""
    long = {**TIMES, "history": 60, "uniform_share": 0.2}
    run = trainer(table(long, "simple", **frozen(steps=100, batch_size=64)))
    list(run.run(7))
    assert not history(run).adapted
    uniform = history(run).losses.sum(1) / history(run).seen
    list(run.run(80))
    assert history(run).adapted and history(run).importance(torch.rand(500).double()).std() > 0.1
    assert torch.allclose(history(run).losses.mean(1), uniform, rtol=0.25)
    assert int(history(run).seen.sum()) == 80 * 64 and history(run).losses.shape == (8, 60)


@pytest.mark.slow
def test_the_logged_loss_is_comparable_and_varies_less() -> None:
    """The loss of a step estimates the same objective under both laws, with less variance under importance."""

    def record(times: dict[str, Any]) -> np.ndarray[Any, Any]:
        wanted = table(times, schedule={"kind": "linear", "steps": 1000}, **frozen(steps=400, batch_size=64))
        objective = wanted.objective.model_copy(update={"stratified": False})
        run = trainer(wanted.model_copy(update={"objective": objective}))
        return np.array([record.loss for record in run.run(240)])[40:]

    plain, weighed = record({"kind": "uniform"}), record({**TIMES, "history": 10, "strata": 40})
    error = np.sqrt(plain.var() / len(plain) + weighed.var() / len(weighed))
    assert abs(plain.mean() - weighed.mean()) < 4.0 * error
    assert weighed.var() < 0.5 * plain.var()


@pytest.mark.parametrize(
    ("weight", "schedule", "learned"),
    [(w, LINEAR, False) for w in ("simple", "edm", "output", "vlb", "vlb_continuous", "sigmoid", "p2", "min_snr")]
    + [(w, {"kind": "flow"}, False) for w in ("output", "vlb_continuous")]
    + [("output", {"kind": "zero_terminal_snr", "table": LINEAR}, False)]
    + [(w, LINEAR, True) for w in ("simple", "vlb")],
)
def test_every_weighting_trains(weight: str, schedule: dict[str, Any], learned: bool) -> None:
    run = trainer(table(TIMES, weight, learned=learned, schedule=schedule))
    records = list(run.run(8))
    assert history(run).adapted and all(np.isfinite(record.loss) and record.loss > 0.0 for record in records)


def test_it_learns() -> None:
    """Across the change from uniform times, past the step from which an exploding loss stops the training."""
    run = trainer(table({**TIMES, "strata": None}, training={"steps": 150, "batch_size": 64}))
    found = np.array([record.loss for record in run.run(150)])
    assert history(run).adapted and len(history(run).seen) == 100
    assert found[-20:].mean() < 0.8 * found[:10].mean()


def test_a_rare_level_of_great_importance_is_no_divergence() -> None:
    """A stratum that seemed settled is drawn once in thousands of steps, and then weighs a hundred thousandfold."""
    run = trainer(table({**TIMES, "uniform_share": 1e-5}, "simple"))
    list(run.run(25))
    calm = torch.ones(8, 2, dtype=torch.float64)
    calm[0] = 1e-12
    law = replace(history(run), losses=calm)
    shifts = random.uniform(0, "time", 0, 1_000_000)
    # the first step whose draws, a sixteenth apart, begin within that stratum
    run.step = int(((shifts % (1.0 / 16.0)) < law.probabilities[0]).nonzero()[0, 0])
    run.objective = replace(run.objective, law=law)
    usual = run._usual_loss
    record = next(run.run(run.step + 1))
    assert record.loss > 1e3 * usual
    assert int((history(run).seen - law.seen)[0]) == 1


def test_a_step_that_is_not_applied_is_not_remembered() -> None:
    run = trainer(table(TIMES))
    list(run.run(4))
    before = history(run)
    with torch.no_grad():
        next(run.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged):
        next(run.run(5))
    assert history(run) is before


def test_going_on_gives_the_same_bytes(tmp_path: Path) -> None:
    train(tiny(**ADAPTIVE), run=tmp_path / "whole")
    train(tiny(**ADAPTIVE), run=tmp_path / "parts")
    newest = max((tmp_path / "parts" / "checkpoints").iterdir())
    tensors, _ = read_tensors(newest)
    assert tensors["times/losses"].shape == (8, 2) and int(tensors["times/seen"].sum()) == 12 * 16
    assert int(tensors["times/seen"].min()) >= 2
    newest.unlink()
    train(run=tmp_path / "parts", resume=True)
    assert_same_bytes(tmp_path / "whole", tmp_path / "parts", "times")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert load(tmp_path / "whole").sample(2).isfinite().all()


def test_a_history_of_another_law_is_refused() -> None:
    run, other = trainer(table(TIMES)), trainer(table({**TIMES, "strata": 9}))
    plain = trainer(table({"kind": "uniform"}))
    with pytest.raises(InputError, match=r"\(8, 2\).*needs \(9, 2\)"):
        other.restore(*run.state())
    with pytest.raises(InputError, match="no history of losses"):
        run.restore(*plain.state())
    assert not any(name.startswith("times/") for name in plain.state()[0])


def test_accumulation_sees_the_same_law(tmp_path: Path) -> None:
    train(tiny(**ADAPTIVE, training={"batch_size": 64}), run=tmp_path / "one")
    train(tiny(**ADAPTIVE, training={"batch_size": 64, "accumulate": 4}), run=tmp_path / "four")
    assert_same_run(tmp_path / "one", tmp_path / "four")


@pytest.mark.slow
def test_two_processes_see_the_same_law(tmp_path: Path) -> None:
    settings = [*flags(batch_size=64, steps=8), "--objective.times.kind", "loss_second_moment"]
    settings += ["--objective.times.history", "2", "--objective.times.strata", "8"]
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    parts = ["--training.accumulate", "2"]
    two = command("train", "digits", "--run", "two", *settings, *parts, cwd=tmp_path, launcher=launcher)
    _, errors = two.communicate(timeout=180)
    assert two.returncode == 0, errors
    one = command("train", "digits", "--run", "one", *settings, cwd=tmp_path)
    _, errors = one.communicate(timeout=180)
    assert one.returncode == 0, errors
    assert_same_run(tmp_path / "one", tmp_path / "two")


def assert_same_run(one: Path, two: Path) -> None:
    assert list(losses(one).values()) == pytest.approx(list(losses(two).values()), rel=1e-5)
    a, b = state(one), state(two)
    assert torch.equal(a["times/seen"], b["times/seen"]) and int(a["times/seen"].min()) >= 2
    # slot by slot: the losses came in the same order
    assert torch.allclose(a["times/losses"], b["times/losses"], rtol=1e-4)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"history": 0}, r"objective\.times\.history"),
        ({"uniform_share": 0.0}, r"objective\.times\.uniform_share"),
        ({"strata": 0}, r"objective\.times\.strata"),
        ({"std": 1.0}, r"objective\.times\.std is a setting of another kind"),
    ],
)
def test_settings_out_of_range(over: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        table({**TIMES, **over})


def test_a_learned_schedule_takes_uniform_times() -> None:
    with pytest.raises(InputError, match=r"learned schedule is trained by the bound.*uniform"):
        table(TIMES, "vlb_continuous", schedule={"kind": "learned"})
