"""The trainer: what a record says, what the average is, what stops it, and that it takes any loss, network and data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sfumato.data import Batch, Loader
from sfumato.diffusion import parameterization
from sfumato.diffusion.denoiser import Denoiser, embed_thousand
from sfumato.diffusion.schedule import ContinuousCosine, linear
from sfumato.errors import InputError
from sfumato.random import Draws
from sfumato.training.ema import Ema, power_law
from sfumato.training.loop import Diverged, Trainer
from sfumato.training.losses import Denoising
from sfumato.training.optimization import Muon, adamw, learning_rate_schedule
from tests.training.by_hand import denoiser, digits, trainer


def test_records() -> None:
    run = trainer()
    records = list(run.run(6))
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record.images for record in records] == [32 * k for k in range(1, 7)]
    assert [record.learning_rate for record in records] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])
    assert records[0].loss == pytest.approx(1.0, abs=0.4)
    assert all(record.grad_norm > 0 and record.seconds > 0 for record in records)
    # a generator may be left and taken up
    assert [record.step for record in run.run(8)] == [7, 8]


def test_it_learns() -> None:
    records = list(trainer().run(120))
    first, last = (float(np.mean([r.loss for r in part])) for part in (records[:10], records[-10:]))
    assert last < 0.8 * first


def test_clipping_bounds_the_step() -> None:
    run = trainer(clip=1e-3)
    next(run.run(1))
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in run.model.parameters() if p.grad is not None))
    assert norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 3.0, 16.94])
def test_the_average_has_the_weights_of_its_decay(gamma: float) -> None:
    """The decays (1 - 1/k)^(gamma + 1) give step j the weight (j/n)^(gamma+1) - ((j-1)/n)^(gamma+1)."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 123.0)
    ema, steps = Ema(module, power_law(gamma)), 40
    for k in range(1, steps + 1):
        nn.init.constant_(module.weight, float(k))
        ema.update(k)
    weights = [(j / steps) ** (gamma + 1) - ((j - 1) / steps) ** (gamma + 1) for j in range(1, steps + 1)]
    expected = sum(w * j for j, w in enumerate(weights, 1))
    assert float(ema.average["weight"]) == pytest.approx(expected, rel=1e-5)


def test_the_average_is_applied_and_taken_away() -> None:
    module = nn.Linear(2, 2)
    ema = Ema(module, power_law(limit=0.5))
    live = module.weight.detach().clone()
    with torch.no_grad():
        ema.average["weight"] += 1.0
    with pytest.raises(RuntimeError), ema.applied():
        assert torch.equal(module.weight, live + 1.0)
        raise RuntimeError
    assert torch.equal(module.weight, live)


def test_learning_rates() -> None:
    constant = learning_rate_schedule(2.0, 100, warmup=4)
    assert [constant(k) for k in (1, 2, 4, 5, 100)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = learning_rate_schedule(2.0, 100, warmup=0, decay="cosine")
    assert cosine(1) == pytest.approx(1 + math.cos(math.pi / 101)) and 0 < cosine(100) < 1e-3
    linear_ = learning_rate_schedule(2.0, 99, decay="linear")
    assert linear_(50) == pytest.approx(1.0) and linear_(99) > 0.0


def test_weight_decay_spares_biases_and_gains() -> None:
    groups = adamw(nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3)), weight_decay=0.1).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.1, 1), (0.0, 3)]


@pytest.mark.parametrize(("start", "count"), [(0, 64), (64, 16), (80, 48), (32, 64)])
def test_stratified_levels_are_even_over_a_batch(start: int, count: int) -> None:
    loss = Denoising(denoiser(linear(1000)))
    whole = torch.as_tensor(loss.times.sample(loss.uniforms(Draws(0, 0, 256, 64))).t)
    part = torch.as_tensor(loss.times.sample(loss.uniforms(Draws(0, start, count, 64))).t)
    assert torch.equal(part, whole[start : start + count])
    for batch in whole.reshape(4, 64):
        assert torch.equal(batch.sub(1e-9).mul(64).floor().unique(), torch.arange(64.0).double())


def test_independent_levels() -> None:
    loss = Denoising(denoiser(linear(1000)), stratified=False)
    whole = loss.uniforms(Draws(0, 0, 256, 64))
    assert torch.equal(loss.uniforms(Draws(0, 100, 7, 64)), whole[100:107])
    assert len(whole[:64].mul(64).floor().unique()) < 60


def test_a_loss_that_is_not_a_number_stops_before_the_step() -> None:
    run = trainer()
    list(run.run(3))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.loss.weight = lambda level: float("nan")  # type: ignore[assignment]
    with pytest.raises(Diverged, match=r"loss is nan at step 4"):
        next(run.run(10))
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    assert run.step == 3


def test_an_exploding_loss_stops() -> None:
    run = trainer()
    list(run.run(25))
    run.loss.weight = lambda level: 1e6  # type: ignore[assignment]
    with pytest.raises(Diverged, match="it was about"):
        next(run.run(100))


@pytest.mark.parametrize("options", [{"batch_size": 30, "accumulate": 4}, {"batch_size": 0}, {"accumulate": 0}])
def test_batches_that_do_not_divide(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="does not divide"):
        trainer(**options)


class Own(nn.Module):
    """A network of somebody else, with statistics in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).tanh() + time[:, None, None, None] / 1000.0)


class Reconstruction(nn.Module):
    """A loss of somebody else: the loss itself is what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(64, 16)

    def forward(self, batch: Batch, draws: Draws) -> Tensor:
        noisy = batch.x0.flatten(1) + 0.1 * draws.normal("corruption", (64,))
        return (self.code(noisy) @ self.code.weight - batch.x0.flatten(1)).square().mean(1)


def own(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "loss":
            return Reconstruction()
        return Denoiser(Own(), ContinuousCosine(), parameterization.v, embed_thousand)


def bytes_of(run: Trainer) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in run.state()[0].items()}


DATA: dict[str, Callable[[], Any]] = {
    "Dataset": digits,
    "array": lambda: np.asarray(digits().images),
    "tensor": lambda: torch.from_numpy(np.asarray(digits().images)),
    "pytorch": lambda: torch.utils.data.TensorDataset(torch.from_numpy(np.asarray(digits().images))),
    "DataLoader": lambda: torch.utils.data.DataLoader(digits(), batch_size=7, shuffle=True),
    "Loader": lambda: Loader(digits(), 0),
}


def test_all_kinds_of_data_give_the_same_training() -> None:
    seen = {
        name: [r.loss for r in Trainer(denoiser(), make(), accelerator=Accelerator(cpu=True)).run(2)]
        for name, make in DATA.items()
    }
    assert all(losses == seen["Dataset"] for losses in seen.values()), seen


@pytest.mark.parametrize("kind", ["network", "loss"])
@pytest.mark.parametrize("method", [adamw, Muon])
def test_what_others_wrote_trains_and_resumes_to_the_same_bytes(kind: str, method: Any) -> None:
    def run() -> Trainer:
        loss = own(kind)
        options: dict[str, Any] = {"learning_rate": 3e-3, "ema": power_law(3.0), "accelerator": Accelerator(cpu=True)}
        return Trainer(loss, digits(), optimizer=method(loss), **options)

    whole, parts, rest = run(), run(), run()
    losses = [record.loss for record in whole.run(12)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    list(parts.run(5))
    tensors, facts = parts.state()
    rest.restore({name: tensor.detach().clone() for name, tensor in tensors.items()}, facts)
    assert [record.loss for record in rest.run(12)] == losses[5:]
    assert bytes_of(rest) == bytes_of(whole)
    buffers = {name for name in tensors if name.startswith("loss/")}
    assert (len(buffers) == 3) is (kind == "network"), "the statistics of the batch normalization are kept"
    assert ("weights/network.first.weight" in tensors) is (kind == "network")


def test_accumulation_and_the_cut_of_a_batch_do_not_matter() -> None:
    one, four = (list(trainer(accumulate=parts, batch_size=64).run(4)) for parts in (1, 4))
    assert [r.loss for r in one] == pytest.approx([r.loss for r in four], rel=1e-5)
    assert [r.grad_norm for r in one] == pytest.approx([r.grad_norm for r in four], rel=1e-4)


def test_dropout_is_a_function_of_seed_and_sample() -> None:
    def losses(rate: float, **options: Any) -> list[float]:
        return [record.loss for record in trainer(denoiser(dropout=rate), rate=1e-2, **options).run(4)]

    whole = losses(0.4)
    assert losses(0.4, accumulate=4) == pytest.approx(whole, rel=1e-4)
    assert losses(0.0) != pytest.approx(whole, rel=1e-4)
    assert losses(0.4, seed=1) != pytest.approx(whole, rel=1e-4)


def test_a_loss_gives_one_number_per_sample() -> None:
    class Mean(Reconstruction):
        def forward(self, batch: Batch, draws: Draws) -> Tensor:
            return super().forward(batch, draws).mean()

    with pytest.raises(InputError, match=r"one number per sample, \(64,\); got \(\)"):
        next(Trainer(Mean(), digits(), accelerator=Accelerator(cpu=True)).run(1))


def test_a_checkpoint_of_another_model_or_loss_is_refused() -> None:
    plain, other = trainer(), Trainer(own("network"), digits(), accelerator=Accelerator(cpu=True))
    with pytest.raises(InputError, match="of another model"):
        plain.restore(*other.state())
    tensors, facts = other.state()
    with pytest.raises(InputError, match="another loss"):
        other.restore({n: t for n, t in tensors.items() if not n.startswith("loss/")}, facts)


@pytest.mark.parametrize("options", [{"betas": (0.9, 1.0)}, {"weight_decay": -1.0}])
@pytest.mark.parametrize("method", [adamw, Muon])
def test_options_of_optimizers_out_of_range(method: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"in \[0, 1\)"):
        method(nn.Linear(2, 2), **options)
    with pytest.raises(InputError, match="needs the number of steps"):
        learning_rate_schedule(1.0, decay="cosine")
