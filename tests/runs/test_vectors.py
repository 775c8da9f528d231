"""Vectors in units of their own: standardized, and given back in their units."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato
from sfumato.data.arrays import standardized
from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.errors import InputError
from sfumato.models.model import Model
from sfumato.models.storage import Info
from tests.cli.test_cli import run
from tests.data.reading import load

MEAN, STD = np.array([273.15, -4e-4]), np.array([12.0, 3e-5])
"""Such as degrees and metres: columns of very different size, far from 0."""


def measured(count: int, seed: int = 0) -> np.ndarray:
    return MEAN + STD * np.random.default_rng(seed).normal(size=(count, 2))


def test_columns_have_mean_0_and_one_deviation(tmp_path: Path) -> None:
    points = measured(500)
    np.save(tmp_path / "x.npy", points)
    data = load(tmp_path / "x.npy", layout="NC")
    found = np.asarray(data.images, dtype=np.float64)
    assert found.dtype == np.float64 and np.abs(found).max() == pytest.approx(1.0, abs=1e-6)
    assert np.abs(found.mean(0)).max() < 1e-6 and found.std(0)[0] == pytest.approx(found.std(0)[1], rel=1e-6)
    assert data.units is not None and data.split(10, 0)[0].units == data.units
    back = found * data.units.scale + data.units.shift
    assert (np.abs(back - points) / STD).max() < 1e-5
    # a range that was stated is taken
    plain = load(tmp_path / "x.npy", layout="NC", value_range=(-400, 400))
    assert plain.units is None and np.abs(np.asarray(plain.images) - points / 400).max() < 1e-6


def test_odd_columns() -> None:
    constant = np.stack([np.full(9, 7.0), np.arange(9.0)], axis=1)
    found, units = standardized(constant, "x")
    assert (found[:, 0] == 0).all() and units.shift == (7.0, 4.0)
    whole, _ = standardized(np.arange(12).reshape(6, 2) * 1000, "x")
    assert whole.dtype == np.float32 and np.abs(whole).max() == 1.0
    with pytest.raises(InputError, match="1 NaN and 0 infinite values, in 1 of its 2 rows"):
        standardized(np.array([[0.0, np.nan], [1.0, 2.0]]), "x")


def test_likelihoods_are_those_of_the_data_in_their_units() -> None:
    """Exact for a Gaussian: the density of the data, not that of the standardized vectors."""
    vectors, units = standardized(measured(2000), "x")
    z = torch.from_numpy(vectors).double()
    oracle = GaussianOracle.fit(z, schedule=schedules.ContinuousLinear())
    model = Model(oracle, Info(shape=(2,), shift=units.shift, scale=units.scale))
    found = sfumato.bits_per_dim(model, z[:64], bins=None, bound=False)
    x = torch.from_numpy(measured(2000))
    normal = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    exact = -normal.log_prob(x[:64]) / (2 * math.log(2.0))
    assert found.flow is not None
    assert float((found.flow.bits - exact).abs().max()) < 0.01
    assert abs(math.log(math.prod(units.scale))) > 5  # it would be far off without


def test_samples_and_edits_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", measured(4000))
    options = "--model.network.width 32 --model.network.depth 2 --training.steps 250 --training.threads 1"
    options += " --training.sample-count 4 --evaluation.samples 0 --optimizer.learning-rate 5e-3"
    assert run("train", "points.npy", "--data.layout", "NC", *options.split()) == 0
    assert run("sample", "runs/points", "--count", "2000", "--out", "x.npz") == 0
    samples = np.load("x.npz")["images"].astype(np.float64)
    assert (np.abs(samples.mean(0) - MEAN) < 0.2 * STD).all()
    assert (np.abs(samples.std(0) / STD - 1.0) < 0.2).all()
    point = MEAN + STD * (0.5, -1.0)
    np.save("point.npy", point)
    assert run("edit", "runs/points", "invert", "point.npy", "--steps", "60", "--out", "y.npz") == 0
    assert (np.abs(np.load("y.npz")["images"][0] - point) < 0.1 * STD).all()
    stored = json.loads(Path("runs/points/config.json").read_text())["data"]
    assert np.allclose(stored["shift"], measured(4000).mean(0), rtol=1e-8)
    # the numbers are part of the run: other data would be another run
    np.save("points.npy", measured(4000) * 2)
    assert run("train", "--resume", "runs/points", "--training.steps", "251") == 2


@pytest.mark.parametrize("count", [2, 3])
def test_few_pictures(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the message says to type works."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("few").mkdir()
    for index in range(count):
        values = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(f"few/{index}.png")
    small = "--recipe small --training.steps 2 --training.batch-size 4 --training.sample-count 0 --evaluation.samples 8"
    assert run("train", "few", *small.split()) == 2
    said = capsys.readouterr().err
    assert f"has {count} images" in said and "--data.holdout 0" in said
    assert run("train", "few", *small.split(), "--data.holdout", "0") == 0
    assert run("train", "few", *small.split(), "--data.holdout", "1", "--run", "runs/other") == 0
