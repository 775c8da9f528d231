"""The losses, against independent computations; and that each of them trains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sfumato.conditioning import Conditioned, Label
from sfumato.data import Batch, Column, Dataset, Loader
from sfumato.diffusion import parameterization, weighting
from sfumato.diffusion.classifier import NoisyClassifier
from sfumato.diffusion.denoiser import Denoiser, embed_thousand
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.objective import denoising_loss
from sfumato.diffusion.schedule import ContinuousCosine, Karras, linear
from sfumato.errors import InputError
from sfumato.networks.classifier import Classifier
from sfumato.networks.unet import UNet
from sfumato.random import Draws, normal, uniform
from sfumato.sampling.guidance import ClassifierGuided
from sfumato.training.loop import Trainer
from sfumato.training.losses import Classification, Denoising
from sfumato.training.optimization import adamw
from tests.networks.weights import randomized
from tests.training.by_hand import denoiser, digits


def test_random_numbers_are_those_of_their_streams() -> None:
    draws = Draws(3, 40, 8, 16)
    assert torch.equal(draws.normal("noise", (2, 3)), normal(3, "noise", 40, 8, (2, 3)))
    assert torch.equal(draws.uniform("drop"), uniform(3, "drop", 40, 8))
    assert torch.equal(draws.within("low").uniform("level", (2,)), uniform(3, "low/level", 40, 8, (2,)))
    assert torch.equal(draws.keys(), (uniform(3, "dropout", 40, 8) * 2.0**31).int())
    # samples 40 ... 47 are of the third batch of 16
    expected = (float(uniform(3, "time", 2, 1)) + torch.arange(8, 16).double() / 16) % 1.0
    assert torch.allclose(draws.stratified("time"), expected, atol=1e-15)


def test_the_denoising_loss_is_that_of_its_parts() -> None:
    schedule = linear(100)
    network = Conditioned(UNet(1, 1, (8,), blocks=1, groups=4), {"label": Label(drop=0.4, names=("a", "b"))}, (1, 8, 8))
    model = Denoiser(randomized(network, 0.1), schedule, parameterization.eps, embed_thousand)
    batch = Loader(Dataset(digits().images, {"label": Column(np.arange(1797) % 2)}), 0).batch(32, 32)
    found = Denoising(model, stratified=False)(batch, Draws(0, 32, 32, 64))
    level = schedule((uniform(0, "time", 32, 32) * 100).floor().add(1.0) / 100)
    label = torch.where(uniform(0, "drop", 32, 32) < 0.4, -1, batch.cond["label"])
    expected = denoising_loss(model, batch.x0, level, normal(0, "noise", 32, 32, (1, 8, 8)), label=label)
    assert torch.equal(found, expected) and 5 < int((label == -1).sum()) < 20


@pytest.mark.parametrize(
    ("read", "weight"),
    [
        (parameterization.eps, weighting.simple),
        (parameterization.score, weighting.simple),
        (parameterization.edm(0.5), weighting.edm_weight(0.5)),
    ],
    ids=["eps", "score", "edm"],
)
def test_weights_by_default(read: Any, weight: weighting.Weight) -> None:
    model = randomized(denoiser(read=read))
    batch, draws = Loader(digits(), 0).batch(0, 8), Draws(0, 0, 8, 8)
    given = Denoising(model, weight=weight)(batch, draws)  # type: ignore[arg-type]
    assert torch.allclose(Denoising(model)(batch, draws), given, rtol=1e-3)  # type: ignore[arg-type]


class Constant(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.seen = x
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize("schedule", [ContinuousCosine(), Karras()])
def test_the_loss_of_a_classifier_is_its_cross_entropy(schedule: Any) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0])
    network = Constant(logits)
    loss = Classification(NoisyClassifier(network, schedule))
    batch = Batch(torch.randn(64, 1, 4, 4), {"label": torch.arange(64) % 3}, 0)
    found = loss(batch, Draws(0, 0, 64, 64))
    expected = [math.log(sum(math.exp(z) for z in logits)) - float(logits[k % 3]) for k in range(64)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    # whatever the schedule, it sees pictures of about unit variance
    assert 0.7 < float(network.seen.std()) < 1.3
    small = NoisyClassifier(network, schedule, data_std=0.1)
    level = schedule.at(torch.tensor(4.0, dtype=torch.float64))
    small(diffuse(0.1 * batch.x0, level, torch.randn_like(batch.x0)), level)
    assert 0.8 < float(network.seen.std()) < 1.2
    with pytest.raises(InputError, match="no column 'label'"):
        loss(Batch(batch.x0, {}, 0), Draws(0, 0, 64, 64))


def test_a_noisy_classifier_trains_and_guides() -> None:
    torch.manual_seed(0)
    network = Classifier(1, 10, (8, 8), (16, 32), blocks=1, groups=4, heads=1, attention=(1,))
    classifier = NoisyClassifier(network, ContinuousCosine())
    loss = Classification(classifier)
    optimizer = adamw(classifier)
    run = Trainer(loss, digits(labels=True), optimizer=optimizer, learning_rate=3e-3, accelerator=Accelerator(cpu=True))
    losses = [record.loss for record in run.run(120)]
    assert run.model is classifier and losses[0] == pytest.approx(math.log(10), rel=0.2)
    assert np.mean(losses[-10:]) < 0.75 * math.log(10)
    batch = Loader(digits(labels=True), 5).batch(0, 64)
    level = ContinuousCosine()(0.1)
    x, label = diffuse(batch.x0, level, torch.randn_like(batch.x0)), batch.cond["label"]
    log_prob = classifier.log_prob(x, level, label=label)
    assert float(log_prob.exp().mean().detach()) > 0.4
    plain = denoiser()
    with torch.no_grad():
        guided = ClassifierGuided(plain, classifier.log_prob, 20.0, only=("label",))(x, level, label=label)
        after, before = (classifier.log_prob(found.x0, level, label=label) for found in (guided, plain(x, level)))
        # no class, no guidance
        none = ClassifierGuided(plain, classifier.log_prob, 20.0, only=("label",))(x, level, label=label * 0 - 1)
    assert float(after.mean()) > float(before.mean())
    assert torch.allclose(none.x0, plain(x, level).x0, atol=1e-5)
    report = loss.report(batch, Draws(0, 0, 64, 64))
    levels = [value for name, value in report.items() if name.startswith("heldout_accuracy at")]
    assert report["heldout_accuracy"] == pytest.approx(np.mean(levels)) and len(levels) == 8
    # the last level is nearly the data, the first nearly noise
    assert levels[-1] > 0.5 > levels[0]
