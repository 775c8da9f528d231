"""The loop: what a record says, what the average is, what stops it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.data import Dataset, Loader
from sfumato.diffusion.objective import simple, uniform_times
from sfumato.diffusion.schedule import linear
from sfumato.errors import InputError
from sfumato.models.model import Model, load
from sfumato.models.storage import Facts
from sfumato.runs.train import describe, train
from sfumato.training.ema import Ema, power_law
from sfumato.training.loop import Diverged, Objective, Trainer
from sfumato.training.optimization import adamw, learning_rate
from tests.training.tiny import tiny


def trainer(**options: object) -> Trainer:
    config = tiny()
    dataset = config.data.build()
    facts = Facts(shape=dataset.shape, std=0.75, train=len(dataset), heldout=0)
    torch.manual_seed(0)
    denoiser = Model(config, facts).denoiser
    objective = config.objective
    return Trainer(
        denoiser,
        Loader(Dataset(dataset.images, None, (), "digits"), 0),
        Objective(objective.times.build(denoiser.schedule), objective.weight.build(0.75)),
        adamw(denoiser),
        learning_rate(1e-3, 100, warmup=5),
        power_law(6.0),
        **{"batch_size": 32, **options},  # type: ignore[arg-type]
    )


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
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in run.denoiser.parameters() if p.grad is not None))
    assert norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 3.0, 16.94])
def test_the_average_has_the_weights_of_its_law(gamma: float) -> None:
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
    constant = learning_rate(2.0, 100, warmup=4)
    assert [constant(k) for k in (1, 2, 4, 5, 100)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = learning_rate(2.0, 100, warmup=0, decay="cosine")
    assert cosine(1) == pytest.approx(1 + math.cos(math.pi / 101)) and 0 < cosine(100) < 1e-3
    linear_ = learning_rate(2.0, 99, decay="linear")
    assert linear_(50) == pytest.approx(1.0) and linear_(99) > 0.0


def test_weight_decay_spares_biases_and_gains() -> None:
    groups = adamw(nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3)), weight_decay=0.1).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.1, 1), (0.0, 3)]


@pytest.mark.parametrize(("start", "count"), [(0, 64), (64, 16), (80, 48), (32, 64)])
def test_stratified_levels_are_even_over_a_batch(start: int, count: int) -> None:
    objective = Objective(uniform_times(linear(1000)), simple)
    whole = torch.as_tensor(objective.levels(0, 0, 256, 64).t)
    assert torch.equal(torch.as_tensor(objective.levels(0, start, count, 64).t), whole[start : start + count])
    for batch in whole.reshape(4, 64):
        assert torch.equal(batch.sub(1e-9).mul(64).floor().unique(), torch.arange(64.0).double())


def test_independent_levels() -> None:
    objective = Objective(uniform_times(linear(1000)), simple, stratified=False)
    whole = torch.as_tensor(objective.levels(0, 0, 256, 64).t)
    assert torch.equal(torch.as_tensor(objective.levels(0, 100, 7, 64).t), whole[100:107])
    assert len(whole[:64].mul(64).floor().unique()) < 60


def test_a_loss_that_is_not_a_number_stops_before_the_step() -> None:
    run = trainer()
    list(run.run(3))
    before = {name: p.detach().clone() for name, p in run.denoiser.named_parameters()}
    run.objective = Objective(run.objective.law, lambda level: float("nan"))
    run.model.weight = lambda level: float("nan")  # type: ignore[union-attr]
    with pytest.raises(Diverged, match=r"loss is nan at step 4"):
        next(run.run(10))
    assert all(torch.equal(p, before[name]) for name, p in run.denoiser.named_parameters())
    assert run.step == 3


def test_an_exploding_loss_stops() -> None:
    run = trainer()
    list(run.run(25))
    run.model.weight = lambda level: 1e6  # type: ignore[union-attr]
    with pytest.raises(Diverged, match="it was about"):
        next(run.run(100))


def test_diverging_leaves_the_checkpoint_and_exits_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfumato.cli import main
    from tests.training.tiny import flags

    with pytest.raises(SystemExit) as exit_:
        options = [*flags(steps=2000, checkpoint_every=1), "--optimizer.learning-rate", "1e8"]
        main(["train", "digits", "--run", str(tmp_path / "run"), *options])
    assert exit_.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Training stopped; the checkpoint of step" in said and "lower optimizer.learning-rate" in said
    assert load(tmp_path / "run").step > 0


@pytest.mark.parametrize("options", [{"batch_size": 30, "accumulate": 4}, {"batch_size": 0}, {"accumulate": 0}])
def test_batches_that_do_not_divide(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="does not divide"):
        trainer(**options)


def test_constant_data_are_refused() -> None:
    images = np.zeros((5, 1, 8, 8), np.float32)
    with pytest.raises(InputError, match="one constant"):
        describe(Loader(Dataset(images, None, (), "grey"), 0), 0)


def test_data_that_do_not_fit_the_network(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 9, 9), np.uint8) + np.arange(9, dtype=np.uint8) * 20)
    with pytest.raises(InputError, match=r"8x8 or 10x10"):
        train(tiny(data={"source": str(tmp_path / "x.npy"), "holdout": 4}), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_logs_are_lines_of_json(tmp_path: Path) -> None:
    train(tiny(training={"log_every": 5, "sample_count": 4, "sample_every": 6}), run=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert {"loss", "grad_norm", "learning_rate", "ema_decay", "images", "seconds"} <= lines[0].keys()
    assert [p.name for p in sorted((tmp_path / "run" / "samples").iterdir())] == [
        "step-0000006.png",
        "step-0000012.png",
    ]


def test_signals_one_dimensional_data_train_too(tmp_path: Path) -> None:
    wave = np.sin(np.linspace(0, 6, 32) + np.random.default_rng(0).uniform(0, 6, (40, 2, 1)))
    np.save(tmp_path / "waves.npy", wave.astype(np.float32))
    data = {"source": str(tmp_path / "waves.npy"), "layout": "NCL", "value_range": (-1, 1), "holdout": 8}
    model = train(tiny(data=data, training={"sample_count": 4}, evaluation={"samples": 16}), run=tmp_path / "run")
    assert model.sample(3).shape == (3, 2, 32)
    assert (tmp_path / "run" / "samples" / "step-0000012.png").exists()


def test_any_number_of_channels_draws_and_trains(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 5, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "five.npy", images)
    data = {"source": str(tmp_path / "five.npy"), "layout": "NCHW", "holdout": 10}
    model = train(tiny(data=data, training={"steps": 2, "sample_count": 4}), run=tmp_path / "run")
    assert model.sample(2).shape == (2, 5, 8, 8) and list((tmp_path / "run" / "samples").iterdir())


def test_labels_stay_with_their_images_under_random_crops(tmp_path: Path) -> None:
    from sfumato.runs.train import evaluate

    labels = np.arange(200) % 4
    images = (labels[:, None, None] * 60 + np.random.default_rng(0).integers(0, 20, (200, 12, 12))).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    data = {"source": str(tmp_path / "x.npz"), "random_crop": 8, "holdout": 80, "labels": True}
    result = evaluate(train(tiny(data=data, training={"steps": 2}), run=tmp_path / "run"), samples=40)
    assert result.accuracy == 1.0


def test_an_impossible_evaluation_does_not_cost_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sfumato.runs.reporting import Terminal

    config = tiny(data={"holdout": 1796}, training={"steps": 2}, evaluation={"samples": 20})
    train(config, run=tmp_path / "run", reporter=Terminal())
    assert "No evaluation:" in " ".join(capsys.readouterr().out.split())
    assert load(tmp_path / "run").step == 2


def test_bf16_trains_where_the_processor_has_it(tmp_path: Path) -> None:
    from sfumato.training.precision import supports_bf16

    if not supports_bf16(torch.device("cpu")):
        pytest.skip("no native bfloat16 here")
    for precision in ("bf16", "fp32"):
        train(tiny(training={"precision": precision}), run=tmp_path / precision)
    lines = [(tmp_path / p / "metrics.jsonl").read_text().splitlines() for p in ("bf16", "fp32")]
    a, b = (np.array([json.loads(line)["loss"] for line in part]) for part in lines)
    assert np.abs(a - b).max() < 0.02 and np.abs(a - b).max() > 0.0


def test_bf16_on_a_processor_without_it_falls_back_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sfumato.runs.train
    from sfumato.runs.reporting import Terminal

    monkeypatch.setattr(sfumato.runs.train, "supports_bf16", lambda device: False)
    train(tiny(training={"precision": "bf16", "steps": 1}), run=tmp_path / "run", reporter=Terminal())
    assert "training in fp32" in " ".join(capsys.readouterr().out.split())


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"sfumato\[tensorboard\]"):
        train(tiny(training={"tensorboard": True}), run=tmp_path / "run")
