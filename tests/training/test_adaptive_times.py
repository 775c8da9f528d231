"""Importance sampling of the times in the trainer: what is learned of the losses, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato import random
from sfumato.diffusion import parameterization, weighting
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.schedule import RectifiedFlow, Schedule, linear, zero_terminal_snr
from sfumato.diffusion.times import LossSecondMoment
from sfumato.diffusion.weighting import Weight
from sfumato.errors import InputError
from sfumato.training.loop import Diverged, Trainer
from sfumato.training.losses import Denoising
from tests.training.by_hand import denoiser, trainer

LINEAR = linear(100)
FROZEN = {"rate": 1e-30, "batch_size": 64}
"""Settings of a training whose weights stay where they are."""


def adaptive(
    model: Denoiser | None = None, weight: Weight | None = None, *, history: int = 2, **options: Any
) -> Trainer:
    model = model or denoiser(LINEAR)
    names = ("uniform_share", "strata")
    times = {"strata": 8, **{name: options.pop(name) for name in names if name in options}}
    options = {"rate": 4e-3, "batch_size": 16, **options}
    weight = weight or weighting.vlb(LINEAR)
    return trainer(model, LossSecondMoment(model.schedule, history, **times), weight, **options)


def history(run: Trainer) -> LossSecondMoment:
    assert isinstance(run.loss, Denoising) and isinstance(run.loss.times, LossSecondMoment)
    return run.loss.times


def test_what_is_remembered_is_the_loss_itself() -> None:
    """While the weights stay, the mean over a history estimates the loss of its stratum, importance or not."""
    run = adaptive(weight=weighting.simple, history=60, uniform_share=0.2, **FROZEN)
    list(run.run(7))
    assert not history(run).adapted
    uniform = history(run).losses.sum(1) / history(run).seen
    list(run.run(80))
    assert history(run).adapted and history(run).weight(torch.rand(500).double()).std() > 0.1
    assert torch.allclose(history(run).losses.mean(1), uniform, rtol=0.25)
    assert int(history(run).seen.sum()) == 80 * 64 and history(run).losses.shape == (8, 60)


@pytest.mark.slow
def test_the_logged_loss_is_comparable_and_varies_less() -> None:
    """The loss of a step estimates the same objective under both distributions, with less variance by importance."""
    schedule = linear(1000)
    weight = weighting.vlb(schedule)

    def record(run: Trainer) -> np.ndarray[Any, Any]:
        return np.array([record.loss for record in run.run(240)])[40:]

    plain = record(trainer(denoiser(schedule), None, weight, stratified=False, **FROZEN))
    options = {"history": 10, "strata": 40, "stratified": False, **FROZEN}
    weighed = record(adaptive(denoiser(schedule), weight, **options))
    error = np.sqrt(plain.var() / len(plain) + weighed.var() / len(weighed))
    assert abs(plain.mean() - weighed.mean()) < 4.0 * error
    assert weighed.var() < 0.5 * plain.var()


FLOW, ZERO, V = RectifiedFlow(), zero_terminal_snr(LINEAR), parameterization.v


@pytest.mark.parametrize(
    ("weight", "schedule", "learned"),
    [
        (weighting.simple, LINEAR, False),
        (weighting.edm_weight(0.75), LINEAR, False),
        (weighting.OutputWeight(V), LINEAR, False),
        (weighting.vlb(LINEAR), LINEAR, False),
        (weighting.vlb_continuous(LINEAR), LINEAR, False),
        (weighting.sigmoid_weight(LINEAR), LINEAR, False),
        (weighting.p2(), LINEAR, False),
        (weighting.min_snr(), LINEAR, False),
        (weighting.OutputWeight(V), FLOW, False),
        (weighting.vlb_continuous(FLOW), FLOW, False),
        (weighting.OutputWeight(V), ZERO, False),
        (weighting.simple, LINEAR, True),
        (weighting.vlb(LINEAR), LINEAR, True),
    ],
)
def test_every_weighting_trains(weight: Weight, schedule: Schedule, learned: bool) -> None:
    run = adaptive(denoiser(schedule, learned=learned), weight)
    records = list(run.run(8))
    assert history(run).adapted and all(np.isfinite(record.loss) and record.loss > 0.0 for record in records)


def test_it_learns() -> None:
    """Across the change from uniform times, past the step from which an exploding loss stops the training."""
    run = adaptive(strata=None, batch_size=64)
    losses = np.array([record.loss for record in run.run(150)])
    assert history(run).adapted and len(history(run).seen) == 100
    assert losses[-20:].mean() < 0.8 * losses[:10].mean()


def test_a_rare_level_of_great_importance_is_no_divergence() -> None:
    """A stratum that seemed settled is sampled once in thousands of steps, and then weighs a hundred thousandfold."""
    run = adaptive(weight=weighting.simple, uniform_share=1e-5)
    list(run.run(25))
    calm = torch.ones(8, 2, dtype=torch.float64)
    calm[0] = 1e-12
    times = history(run)
    times.load_state_dict({"losses": calm, "seen": times.seen})
    shifts = random.uniform(0, "time", 0, 1_000_000)
    # the first step whose numbers, a sixteenth apart, begin within that stratum
    run.step = int(((shifts % (1.0 / 16.0)) < times.probabilities[0]).nonzero()[0, 0])
    usual, before = run._usual_loss, times.seen
    record = next(run.run(run.step + 1))
    assert record.loss > 1e3 * usual
    assert int((times.seen - before)[0]) == 1


def test_a_step_that_is_not_applied_is_not_remembered() -> None:
    run = adaptive()
    list(run.run(4))
    before = history(run).losses.clone(), history(run).seen.clone()
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged):
        next(run.run(5))
    assert torch.equal(history(run).losses, before[0]) and torch.equal(history(run).seen, before[1])


def test_a_resumed_training_has_the_same_bytes() -> None:
    whole, parts, rest = adaptive(), adaptive(), adaptive()
    losses = [record.loss for record in whole.run(12)]
    list(parts.run(7))
    tensors, facts = parts.state()
    rest.restore({name: tensor.detach().clone() for name, tensor in tensors.items()}, facts)
    assert [record.loss for record in rest.run(12)] == losses[7:]
    ends = [{n: t.detach().numpy().tobytes() for n, t in run.state()[0].items()} for run in (whole, rest)]
    assert ends[0] == ends[1] and int(history(rest).seen.sum()) == 12 * 16
    assert {name for name in tensors if name.startswith("loss/")} == {
        "loss/_extra_state/losses",
        "loss/_extra_state/seen",
    }


def test_a_history_of_other_times_is_refused() -> None:
    run, other, plain = adaptive(), adaptive(strata=9), trainer(denoiser(LINEAR))
    with pytest.raises(InputError, match=r"\(8, 2\).*\(9, 2\)"):
        other.restore(*run.state())
    for one, another in ((run, plain), (plain, run)):
        with pytest.raises(InputError, match=r"another loss.*objective\.times"):
            one.restore(*another.state())
    assert not any(name.startswith("loss/") for name in plain.state()[0])


def test_accumulation_sees_the_same_times() -> None:
    one, four = adaptive(batch_size=64), adaptive(batch_size=64, accumulate=4)
    losses = [[record.loss for record in run.run(8)] for run in (one, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.equal(history(one).seen, history(four).seen) and int(history(one).seen.min()) >= 2
    # slot by slot: the losses came in the same order
    assert torch.allclose(history(one).losses, history(four).losses, rtol=1e-4)
