"""Every network trains and samples from end to end, each on the data that it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn.datasets import make_moons
from torch import Tensor

import sfumato
from sfumato.cli import main
from sfumato.config import Config, merge, parse
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError
from sfumato.io.images import grid, save_each
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.recipes import vectors
from sfumato.runs.setup import accelerator_without_settings, make_trainer
from tests.runs.test_resume import losses
from tests.training.tiny import LABELLED, tiny

Points = npt.NDArray[np.float32]

DIT: dict[str, Any] = {"kind": "dit", "patch": 2, "width": 32, "depth": 2, "heads": 2, "time_features": 16}


def ring(count: int, generator: np.random.Generator) -> Points:
    """Eight Gaussians on a circle."""
    angle = generator.integers(0, 8, count) * (np.pi / 4)
    centres = 0.75 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (centres + 0.05 * generator.normal(size=(count, 2))).astype(np.float32)


def moons(count: int, generator: np.random.Generator) -> Points:
    """Two half circles that interlock."""
    points, _ = make_moons(count, noise=0.05, random_state=int(generator.integers(1 << 31)))
    return ((points - np.array([0.5, 0.25])) / 1.8).astype(np.float32)


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """The 1-Wasserstein distance of equally many points, averaged over 64 directions of the plane."""
    angle = torch.arange(64) * (torch.pi / 64)
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return int(exit_.value.code or 0)


@pytest.mark.parametrize("draw", [ring, pytest.param(moons, marks=pytest.mark.slow)])
def test_points_of_the_plane(
    draw: Callable[[int, np.random.Generator], Points], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their distribution is learned in seconds, by the network that suits vectors without being asked for."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    np.save("points.npy", draw(20_000, generator))
    options = "--model.network.width 64 --model.network.depth 2 --training.steps 700 --training.threads 1"
    options += " --training.sample-count 0 --evaluation.samples 500 --optimizer.learning-rate 4e-3"
    assert run("train", "points.npy", "--data.layout", "NC", *options.split()) == 0
    assert json.loads(Path("runs/points/config.json").read_text())["config"]["model"]["network"]["kind"] == "mlp"
    rows = json.loads(Path("runs/points/evaluation.json").read_text())["rows"]
    assert next(row["value"] for row in rows if row["title"] == "FD (pixels)") < 0.02
    model = sfumato.load("runs/points")
    samples = model.info.in_units(model.sample(4000, seed=1))
    one, other = (torch.from_numpy(draw(4000, generator)) for _ in range(2))
    real, found = sliced_wasserstein(one, other), sliced_wasserstein(samples, other)
    blurred = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * one.std(0) + one.mean(0)
    # a Gaussian with their mean and spread is far, other draws of the same are near
    assert found < 0.35 * sliced_wasserstein(blurred, other) and found < real + 0.03
    assert run("sample", "runs/points", "--count", "50", "--out", "points.png") == 0
    assert run("sample", "runs/points", "--count", "2", "--out", "folder") == 2
    assert Image.open("points.png").size[0] > 500


def test_vectors_with_labels(tmp_path: Path) -> None:
    """A class is a corner of the plane; evaluated in the features of a classifier of vectors too."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 2000)
    corners = np.array([[-0.6, -0.6], [-0.6, 0.6], [0.6, -0.6], [0.6, 0.6]])[labels]
    points = (corners + 0.05 * generator.normal(size=(2000, 2))).astype(np.float32)
    np.savez(tmp_path / "corners.npz", images=points, labels=labels)
    over = {
        "data": {"source": str(tmp_path / "corners.npz"), "holdout": 500},
        "conditions": LABELLED,
        "model": {"network": {"width": 32, "depth": 2}},
        "optimizer": {"learning_rate": 5e-3, "warmup": 20},
        "training": {"steps": 300, "batch_size": 128, "sample_count": 0, "threads": 1},
        "evaluation": {"samples": 200},
    }
    model = sfumato.train(parse(Config, merge(vectors(), over)), run=tmp_path / "run")
    drawn = model.sample(100, label=2)
    assert drawn.shape == (100, 2) and float(((drawn[:, 0] > 0.3) & (drawn[:, 1] < -0.3)).float().mean()) > 0.95
    found = sfumato.evaluate(model, samples=200)
    assert found["accuracy"].floor == 1.0 and {row.features for row in found.rows} == {"pixels", "classifier", None}


def test_vectors_from_a_file_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", ring(64, np.random.default_rng(0)))
    Path("my.toml").write_text('[data]\nsource = "points.npy"\nlayout = "NC"\n')
    small = "--training.steps 1 --evaluation.samples 0 --training.sample-count 3 --sampling.steps 2"
    assert run("train", "--config", "my.toml", *small.split()) == 0
    assert Path("runs/points/samples/step-0000001.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("points.npy --data.layout NC --recipe images", "model.network.kind mlp"),
        ("points.npy --data.layout NC --model.network.kind unet", "model.network.kind mlp"),
        ("points.npy --data.layout NC --model.network.kind dit", "model.network.kind mlp"),
        ("points.npy", "--data.layout NC for vectors"),
        ("digits --model.network.kind mlp", "model.network.kind unet or dit"),
        ("digits --model.network.kind ditt", "did you mean 'dit'?"),
        ("digits --model.network.kind dit --model.network.patch 3", "resize to 6x6 or 9x9"),
        ("digits --model.network.kind dit --model.network.heads 5", "5 attention heads do not divide"),
        ("digits --model.network.kind dit --model.network.channels 8", "no option --model.network.channels"),
        ("digits --model.network.kind dit --model.network.preset DiT-M/2", "DiT-M/2"),
    ],
)
def test_what_does_not_fit_is_said(
    arguments: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unchecked: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", ring(64, np.random.default_rng(0)))
    assert run("train", *arguments.split()) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "Traceback" not in said


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_transformer_trains_on_the_digits(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--model.network.{name.replace('_', '-')}={value}" for name, value in DIT.items()]
    options += [
        "--training.steps",
        "100",
        "--training.batch-size",
        "64",
        "--training.threads",
        "1",
        "--training.log-every",
        "1",
    ]
    options += ["--training.precision", precision, "--training.sample-count", "4", "--evaluation.samples", "0"]
    assert run("train", "digits", "--run", "run", "--optimizer.warmup", "5", *options) == 0
    seen = list(losses(Path("run")).values())
    assert sum(seen[-10:]) < 0.7 * sum(seen[:10])
    assert run("sample", "run", "--count", "4", "--steps", "3", "--label", "3", "--out", "four.npz") == 0
    assert np.load("four.npz")["images"].shape == (4, 1, 8, 8)


def test_a_transformer_learns_the_variance_and_does_not_mind_the_memory_layout(tmp_path: Path) -> None:
    model = {
        "network": DIT,
        "schedule": {"kind": "cosine", "steps": 20},
        "parameterization": {"kind": "eps"},
        "learned_variance": True,
    }
    last_losses: list[float] = []
    for last in (False, True):
        config = tiny(
            model=model,
            objective={"times": {"kind": "uniform"}, "weight": {"kind": "simple"}},
            training={"channels_last": last, "steps": 3},
            sampling={
                "sampler": {"kind": "ancestral", "variance": "learned"},
                "grid": {"kind": "uniform"},
                "steps": 20,
            },
        )
        made = sfumato.train(config, run=tmp_path / f"run-{last}")
        assert made.sample(2).shape == (2, 1, 8, 8)
        last_losses.append(losses(tmp_path / f"run-{last}")[3])
    assert last_losses[0] == pytest.approx(last_losses[1], rel=1e-6)


def test_a_transformer_trains_on_signals() -> None:
    torch.manual_seed(0)
    data = Dataset(np.sin(np.linspace(0, 6, 48, dtype=np.float32)).reshape(1, 2, 24).repeat(8, 0), name="waves")
    config = tiny(model={"network": {**DIT, "patch": 4, "checkpointing": True}})
    model = Model.build(config, Info(shape=(2, 24), std=0.7, train=8, heldout=0))
    records = list(make_trainer(model, Loader(data, 0), accelerator_without_settings()).run(3))
    assert len(records) == 3 and model.sample(2).shape == (2, 2, 24)


def test_vectors_are_drawn_as_points(tmp_path: Path) -> None:
    sheet = np.asarray(grid(torch.tensor([[-1.0, 1.0, 0.3]])))
    dark = np.argwhere(sheet < 128)
    # the first number goes to the right, the second up
    assert dark.mean(0) == pytest.approx([8.0, 8.0], abs=0.6)
    numbers = np.argwhere(np.asarray(grid(torch.linspace(-1.0, 1.0, 200)[torch.randperm(200)][:, None])) < 128)
    # the distribution function of uniform numbers is a line
    assert np.abs(numbers.sum(axis=1) - (512 + 15)).max() < 6
    with pytest.raises(InputError, match=r"save them as \.npz"):
        save_each(torch.zeros(2, 3), tmp_path)
