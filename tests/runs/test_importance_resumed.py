"""Importance sampling of the times in runs: resumed, accumulated, on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.config import Config
from sfumato.errors import InputError
from sfumato.io.tensors import read_tensors
from sfumato.models.model import load
from sfumato.runs.train import train
from tests.runs.test_resume import assert_same_bytes, losses, state
from tests.training.tiny import LONG, command, flags, tiny

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


def test_going_on_gives_the_same_bytes(tmp_path: Path) -> None:
    train(tiny(**ADAPTIVE), run=tmp_path / "whole")
    train(tiny(**ADAPTIVE), run=tmp_path / "parts")
    newest = max((tmp_path / "parts" / "checkpoints").iterdir())
    tensors, _ = read_tensors(newest)
    losses_there, seen = (tensors[f"loss/_extra_state/{name}"] for name in ("losses", "seen"))
    assert losses_there.shape == (8, 2) and int(seen.sum()) == 12 * 16 and int(seen.min()) >= 2
    newest.unlink()
    train(run=tmp_path / "parts", resume=True)
    assert_same_bytes(tmp_path / "whole", tmp_path / "parts", "loss")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert load(tmp_path / "whole").sample(2).isfinite().all()


def test_accumulation_sees_the_same_times(tmp_path: Path) -> None:
    train(tiny(**ADAPTIVE, training={"batch_size": 64}), run=tmp_path / "one")
    train(tiny(**ADAPTIVE, training={"batch_size": 64, "accumulate": 4}), run=tmp_path / "four")
    assert_same_run(tmp_path / "one", tmp_path / "four")


@pytest.mark.slow
def test_two_processes_see_the_same_times(tmp_path: Path) -> None:
    settings = [*flags(batch_size=64, steps=8), "--objective.times.kind", "loss_second_moment"]
    settings += ["--objective.times.history", "2", "--objective.times.strata", "8"]
    parts = ["--training.accumulate", "2"]
    two = command("train", "digits", "--run", "two", *settings, *parts, cwd=tmp_path, processes=2)
    _, errors = two.communicate(timeout=LONG)
    assert two.returncode == 0, errors
    one = command("train", "digits", "--run", "one", *settings, cwd=tmp_path)
    _, errors = one.communicate(timeout=LONG)
    assert one.returncode == 0, errors
    assert_same_run(tmp_path / "one", tmp_path / "two")


def assert_same_run(one: Path, two: Path) -> None:
    assert list(losses(one).values()) == pytest.approx(list(losses(two).values()), rel=1e-5)
    a, b = state(one), state(two)
    seen = a["loss/_extra_state/seen"]
    assert torch.equal(seen, b["loss/_extra_state/seen"]) and int(seen.min()) >= 2
    # slot by slot: the losses came in the same order
    assert torch.allclose(a["loss/_extra_state/losses"], b["loss/_extra_state/losses"], rtol=1e-4)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"history": 0}, "history"),
        ({"uniform_share": 0.0}, "uniform_share"),
        ({"strata": 0}, "strata"),
        ({"std": 1.0}, r"objective\.times\.std is a setting of another kind"),
    ],
)
def test_settings_out_of_range(over: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        train(table({**TIMES, **over}), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_learned_schedule_takes_uniform_times() -> None:
    with pytest.raises(InputError, match=r"learned schedule is trained by the bound.*uniform"):
        table(TIMES, "vlb_continuous", schedule={"kind": "learned"})
