"""Importance sampling of the times, against its formula, its expectation and its variance in closed form."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.diffusion import parameterization, weighting
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoiser, embed_index
from sfumato.diffusion.learned_schedule import LearnedSchedule
from sfumato.diffusion.level import Level
from sfumato.diffusion.objective import training_loss
from sfumato.diffusion.times import LossSecondMoment, Uniform
from sfumato.errors import InputError

SIZES = torch.tensor([1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0], dtype=torch.float64)
"""Root mean squares whose probabilities, with a uniform share of a half, are multiples of 1 / 128."""


def numbers(count: int) -> torch.Tensor:
    """The midpoints of ``count`` equal parts of [0, 1): a mean over them is the integral of what is constant there."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def dyadic(schedule: schedules.Schedule) -> LossSecondMoment:
    # (a^2 + b^2) / 2 = s^2
    return remembering(schedule, torch.stack([SIZES * 1.4, SIZES * 0.2], 1), 0.5)


def remembering(schedule: schedules.Schedule, losses: torch.Tensor, uniform_share: float) -> LossSecondMoment:
    times = LossSecondMoment(schedule, history=losses.shape[1], uniform_share=uniform_share, strata=len(losses))
    times.load_state_dict({"losses": losses, "seen": torch.full((len(losses),), losses.shape[1])})
    return times


def steps(times: LossSecondMoment, u: torch.Tensor, count: int) -> torch.Tensor:
    return torch.as_tensor(times.sample(u).t).mul(count).round().long() - 1


def test_the_probabilities_are_those_of_the_formula() -> None:
    generator = np.random.default_rng(0)
    history = generator.exponential(size=(1000, 10)) * np.geomspace(1e-4, 10.0, 1000)[:, None]
    times = LossSecondMoment(schedules.linear(1000))
    u = (torch.arange(1000).repeat_interleave(10) + 0.5) / 1000.0
    times.observe(u.double(), torch.from_numpy(history).flatten())
    roots = np.array([np.sqrt(sum(loss**2 for loss in losses) / 10) for losses in history])
    expected = 0.999 * roots / roots.sum() + 0.001 / 1000
    assert np.abs(times.probabilities.numpy() / expected - 1.0).max() < 1e-12
    # each step is drawn as often as its probability says
    drawn = steps(times, numbers(1_000_000), 1000).bincount(minlength=1000) / 1_000_000
    assert float((drawn - torch.from_numpy(expected)).abs().max()) < 2e-6


@pytest.mark.parametrize("schedule", [schedules.linear(50), schedules.ContinuousCosine()])
def test_until_every_stratum_has_its_history_times_are_uniform(schedule: schedules.Schedule) -> None:
    times, u = LossSecondMoment(schedule, history=2, strata=50), numbers(700)
    stratum = torch.arange(50).double().repeat(2)[:-1]
    times.observe((stratum + 0.5) / 50.0, 1.0 + stratum.float())
    assert not times.adapted
    assert torch.equal(torch.as_tensor(times.sample(u).t), torch.as_tensor(Uniform(schedule).sample(u).t))
    assert torch.equal(times.weight(u), torch.ones(700).double())
    times.observe(torch.tensor([0.999], dtype=torch.float64), torch.ones(1))
    assert times.adapted and len(times.weight(u).unique()) > 1


def test_the_steps_are_drawn_exactly_in_proportion() -> None:
    times = dyadic(schedules.linear(8))
    assert torch.allclose(times.probabilities, SIZES / 128.0 + 1.0 / 16.0, rtol=1e-14)
    counts = steps(times, numbers(1024), 8).bincount(minlength=8)
    assert torch.equal(counts, (1024 * (SIZES / 128.0 + 1.0 / 16.0)).long())


class Wave(nn.Module):
    """A network with something to say at every time; two channels if it learns a variance."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.learned = learned

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        first = torch.sin(x + time.to(x.dtype).reshape(-1, 1, 1, 1))
        return torch.cat([first, x.cos()], 1) if self.learned else first


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "hybrid"])
@pytest.mark.parametrize("weight", [weighting.simple, weighting.vlb(schedules.linear(8))])
def test_the_objective_is_unchanged(weight: weighting.Weight, learned: bool) -> None:
    """The expectation of loss times importance is the mean over the steps, for given data and noise."""
    schedule = schedules.linear(8)
    denoiser = Denoiser(Wave(learned), schedule, parameterization.eps, embed_index(8), learned_variance=learned)
    x0 = (torch.arange(4.0, dtype=torch.float64).reshape(1, 1, 2, 2) * 60.0 / 127.5 - 1.0).contiguous()
    noise = torch.tensor([0.3, -1.0, 0.7, 1.9], dtype=torch.float64).reshape(1, 1, 2, 2)

    def losses(level: Level) -> torch.Tensor:
        count = len(level)
        return training_loss(denoiser, x0.expand(count, 1, 2, 2), level, noise.expand(count, 1, 2, 2), weight)

    times, u = dyadic(schedule), numbers(1024)
    each = losses(schedule((torch.arange(8) + 1.0).double() / 8.0))
    found = (losses(times.sample(u)) * times.weight(u)).mean()
    assert float(each.max() / each.min()) > 2.0
    assert float(found) == pytest.approx(float(each.mean()), rel=1e-12)


@pytest.mark.parametrize(
    "schedule", [schedules.ContinuousLinear(), schedules.ContinuousCosine(), schedules.RectifiedFlow()]
)
def test_continuous_times_are_uniform_within_a_stratum(schedule: schedules.Schedule) -> None:
    times, u = dyadic(schedule), numbers(2**14)
    t, weight = torch.as_tensor(times.sample(u).t), times.weight(u)
    # weighed, the times have the moments of uniform times; unweighed they have those of the steps of the density
    for power in (1, 2, 3):
        assert float((weight * t**power).mean()) == pytest.approx(1.0 / (power + 1), abs=1e-5)
    ends = torch.linspace(1.0, 0.0, 9, dtype=torch.float64)
    middle = 0.5 * (ends[1:] + ends[:-1])
    assert float(t.mean()) == pytest.approx(float((times.probabilities * middle).sum()), abs=1e-5)


def test_strata_need_not_be_the_steps() -> None:
    """Eight strata of ten steps: some cut a step in two, and the weighed steps are uniform all the same."""
    times, u = dyadic(schedules.linear(10)), numbers(1_280_000)
    share = torch.zeros(10, dtype=torch.float64).index_add(0, steps(times, u, 10), times.weight(u)) / len(u)
    assert float((share - 0.1).abs().max()) < 1e-5


def second_moment(losses: torch.Tensor, probabilities: torch.Tensor) -> float:
    """E[(L / (S p))^2], for losses of each stratum that are equally likely."""
    return float((losses.square().mean(1) / probabilities).sum() / len(probabilities) ** 2)


def test_the_variance_is_that_of_the_closed_form_and_the_least() -> None:
    """Var = (mean of sqrt E[L^2])^2 - (mean of E[L])^2, when the share of uniform times vanishes."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(8, 2, generator=generator, dtype=torch.float64) * torch.logspace(-2, 1, 8).double()[:, None]
    times = remembering(schedules.linear(8), losses, 1e-9)
    u = numbers(2**20)
    stratum, weight = steps(times, u, 8), times.weight(u)
    estimates = weight[:, None] * losses[stratum]
    found = float(estimates.var(correction=0))
    mean, roots = float(losses.mean()), losses.square().mean(1).sqrt()
    assert float(estimates.mean()) == pytest.approx(mean, rel=1e-5)
    assert found == pytest.approx(float(roots.mean()) ** 2 - mean**2, rel=1e-4)
    uniform = float(losses.var(correction=0))
    assert found < 0.5 * uniform
    assert second_moment(losses, torch.full((8,), 0.125).double()) == pytest.approx(uniform + mean**2)
    for _ in range(100):
        other = torch.rand(8, generator=generator, dtype=torch.float64)
        assert second_moment(losses, other / other.sum()) >= second_moment(losses, times.probabilities) - 1e-9


def test_where_losses_are_even_the_law_is_uniform() -> None:
    times = remembering(schedules.linear(8), torch.full((8, 2), 3.0).double(), 0.5)
    assert torch.allclose(times.weight(numbers(100)), torch.ones(100).double(), rtol=1e-14)
    # a loss of nothing says nothing of where to look
    nothing = remembering(schedules.linear(8), torch.zeros(8, 2).double(), 0.5)
    assert torch.equal(nothing.probabilities, torch.full((8,), 0.125).double())


def test_no_importance_exceeds_one_over_the_uniform_share() -> None:
    losses = torch.zeros(8, 2, dtype=torch.float64)
    losses[3] = 1e6
    times = remembering(schedules.linear(8), losses, 0.001)
    assert float(times.weight(numbers(100_000)).max()) == pytest.approx(1000.0)


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_a_history_holds_the_last_losses_in_the_order_of_the_samples(batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    times = LossSecondMoment(schedules.linear(20), history=3)
    rings = [deque[float](maxlen=3) for _ in range(20)]
    counts = [0] * 20
    for _ in range(max(3, 600 // batch)):
        u = torch.rand(batch, generator=generator, dtype=torch.float64)
        losses = torch.rand(batch, generator=generator)
        for step, loss in zip(steps(times, u, 20).tolist(), losses.double().tolist(), strict=True):
            rings[step].append(loss)
            counts[step] += 1
        times.observe(u, losses)
    assert times.seen.tolist() == counts and times.losses.shape == (20, 3)
    assert times.adapted and min(counts) >= 3
    assert [sorted(row) for row in times.losses.tolist()] == [sorted(ring) for ring in rings]


def test_the_history_can_be_cut_into_batches() -> None:
    """At the same times, a batch of losses leaves what its parts leave, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    u, losses = torch.rand(96, generator=generator, dtype=torch.float64), torch.rand(96, generator=generator)
    whole, parts = (LossSecondMoment(schedules.linear(30), history=4) for _ in range(2))
    whole.observe(u, losses)
    for k in range(0, 96, 24):
        parts.observe(u[k : k + 24], losses[k : k + 24])
    assert torch.equal(whole.losses, parts.losses) and torch.equal(whole.seen, parts.seen)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="learned schedule"):
        LossSecondMoment(LearnedSchedule())
    for wrong in ({"history": 0}, {"strata": 0}, {"uniform_share": 0.0}, {"uniform_share": 1.5}):
        with pytest.raises(InputError, match="at least 1"):
            LossSecondMoment(schedules.linear(10), **wrong)  # type: ignore[arg-type]
    times = LossSecondMoment(schedules.linear(10))
    with pytest.raises(InputError, match="no history"):
        times.load_state_dict({})
    with pytest.raises(InputError, match=r"\(20, 10\).*need \(10, 10\)"):
        times.load_state_dict({"losses": torch.zeros(20, 10), "seen": torch.zeros(20)})
    with pytest.raises(InputError, match="other objective"):
        Uniform(schedules.linear(10)).load_state_dict(times.state_dict())
