"""Losses that count alike at every noise level: the weights are what they should be, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato.config import Config
from sfumato.diffusion.schedule import linear
from sfumato.diffusion.times import Balanced, LogNormal, LossSecondMoment, Uniform
from sfumato.errors import InputError
from sfumato.training.loop import Trainer
from sfumato.training.losses import Denoising
from tests.training.by_hand import denoiser, trainer

LINEAR = linear(100)


def balanced(strata: int = 8, history: int = 16, **options: Any) -> Trainer:
    return trainer(denoiser(LINEAR), Balanced(Uniform(LINEAR), strata, history), batch_size=16, **options)


def times(run: Trainer) -> Balanced:
    assert isinstance(run.loss, Denoising) and isinstance(run.loss.times, Balanced)
    return run.loss.times


def test_every_level_gets_the_same_share() -> None:
    """Losses that are 10^(3 u) with noise: weighted, all strata have the mean of the whole, and that stays."""
    numbers = np.random.default_rng(0)
    found = Balanced(Uniform(LINEAR), strata=10, history=2000)
    for _ in range(200):
        u = torch.from_numpy(numbers.uniform(size=400))
        found.observe(u, 10.0 ** (3.0 * u) * torch.from_numpy(numbers.exponential(size=400)))
    edges = np.linspace(0.0, 3.0, 11)
    exact = np.diff(10.0**edges) / np.log(10.0) / 0.3
    assert np.allclose(found.means.numpy(), exact, rtol=0.1)
    centres = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    shares = found.weight(centres) * torch.from_numpy(exact)
    assert np.allclose(shares.numpy(), exact.mean(), rtol=0.15)


def test_the_mean_follows_losses_that_fall() -> None:
    found = Balanced(Uniform(LINEAR), strata=1, history=10)
    u = torch.zeros(1, dtype=torch.float64)
    for value in (1.0, 3.0, 5.0):
        found.observe(u, torch.tensor([value]))
    assert float(found.means[0]) == pytest.approx(3.0)
    for _ in range(60):
        found.observe(u, torch.tensor([0.5]))
    assert float(found.means[0]) == pytest.approx(0.5 + 0.75 * 0.9**53, rel=1e-4)
    # more losses at once than a history holds
    found.observe(torch.zeros(40, dtype=torch.float64), torch.full((40,), 2.0))
    assert float(found.means[0]) == pytest.approx(2.0)


def test_weights_are_one_until_all_levels_are_known_and_are_bounded() -> None:
    found = Balanced(Uniform(LINEAR), strata=2, history=4)
    u = torch.tensor([0.1, 0.9], dtype=torch.float64)
    found.observe(u[:1].expand(9), torch.full((9,), 0.1))
    assert torch.equal(found.weight(u), torch.ones(2, dtype=torch.float64))
    found.observe(u[1:].expand(9), torch.full((9,), 0.3))
    assert found.weight(u).tolist() == pytest.approx([2.0, 2.0 / 3.0])
    found.observe(u[1:].expand(9), torch.zeros(9))
    assert found.weight(u).tolist() == pytest.approx([0.5, 1000.0])
    found.observe(u[:1].expand(9), torch.zeros(9))
    assert torch.equal(found.weight(u), torch.ones(2, dtype=torch.float64))


def test_the_levels_are_those_of_the_base() -> None:
    base = LogNormal(linear(100), -0.5, 1.0)
    u = torch.rand(50, dtype=torch.float64)
    assert torch.equal(torch.as_tensor(Balanced(base).sample(u).log_snr), torch.as_tensor(base.sample(u).log_snr))


def test_the_trainer_weighs_and_remembers() -> None:
    """While the weights stay, the weighted loss has the mean of the plain one, the means those of strata."""
    run, plain = balanced(rate=1e-30), trainer(denoiser(LINEAR), Uniform(LINEAR), batch_size=16, rate=1e-30)
    weighed = [record.loss for record in run.run(240)]
    usual = [record.loss for record in plain.run(240)]
    # two of 16 in each of 8 strata: after eight steps all have their history
    assert weighed[:8] == pytest.approx(usual[:8]) and weighed[8] != pytest.approx(usual[8])
    assert np.mean(weighed[40:]) == pytest.approx(np.mean(usual[40:]), rel=0.1)
    assert float(times(run).weight(torch.linspace(0.05, 0.95, 8, dtype=torch.float64)).std()) > 0.05
    assert times(run).seen.tolist() == [480] * 8


def test_a_resumed_training_has_the_same_bytes() -> None:
    whole, parts, rest = balanced(rate=4e-3), balanced(rate=4e-3), balanced(rate=4e-3)
    losses = [record.loss for record in whole.run(24)]
    list(parts.run(13))
    tensors, facts = parts.state()
    rest.restore({name: tensor.detach().clone() for name, tensor in tensors.items()}, facts)
    assert [record.loss for record in rest.run(24)] == losses[13:]
    ends = [{n: t.detach().numpy().tobytes() for n, t in run.state()[0].items()} for run in (whole, rest)]
    assert ends[0] == ends[1] and int(times(rest).seen.min()) == 48


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(InputError, match="adapt"):
        Balanced(LossSecondMoment(LINEAR))
    for strata, history in ((0, 4), (4, 0)):
        with pytest.raises(InputError, match="at least 1"):
            Balanced(Uniform(LINEAR), strata, history)
    run, other, plain = balanced(), balanced(strata=9), trainer(denoiser(LINEAR))
    with pytest.raises(InputError, match=r"another .*\(8,\).*\(9,\)"):
        other.restore(*run.state())
    for one, another in ((run, plain), (plain, run)):
        with pytest.raises(InputError, match="objective"):
            one.restore(*another.state())
    base = Config()
    for changes, key in (
        ({"model.schedule": {"kind": "learned"}, "objective.weight.kind": "vlb_continuous"}, "learned schedule"),
        ({"model.schedule.kind": "linear", "objective.times.kind": "loss_second_moment"}, "loss_second_moment"),
        ({"model.schedule.kind": "linear", "model.learned_variance": True}, "learned_variance"),
    ):
        other = base.override(changes)
        with pytest.raises(InputError, match=rf"{key}.*balance|balance.*{key}"):
            other.override({"objective.balance": True})


def test_the_setting_reaches_the_loss() -> None:
    assert isinstance(Denoising(denoiser(LINEAR), balance=True).times, Balanced)
    assert not Denoising(denoiser(LINEAR)).adaptive
