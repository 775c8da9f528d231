"""The harness that measures samplers: the data it reduces, the references it solves, and (slow) a whole quick run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import Covariances, GaussianOracle, MixtureOracle

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from side_by_side import targets

    return targets


@pytest.fixture
def problem(targets: ModuleType) -> ModuleType:
    from side_by_side import problem

    return problem


def test_turned_mixture_is_the_mixture(targets: ModuleType, tmp_path: Path) -> None:
    """The few numbers that stand for many dimensions are moved as the dimensions themselves are."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.cat([torch.linspace(3.0, 1.0, 6), torch.full((34,), 0.3)])
    groups = [
        torch.randn(60, 40, generator=generator) * scales + 4.0 * torch.randn(40, generator=generator) for _ in "ab"
    ]
    target, axes = targets.low_rank(torch.cat(groups), tmp_path, components=2, rank=3)
    assert target.dimensions == 40 and axes.shape == (40, 8)
    small, c = target.oracle, target.oracle.covariances
    # the same mixture in all its dimensions
    basis = torch.einsum("dm,kmr->kdr", axes, c.basis[:, :-1])
    full = MixtureOracle(small.means[:, :-1] @ axes.mT, Covariances(basis, c.values, c.rest, 40), small.weights)
    rows = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    for sigma in (0.05, 1.0, 20.0):
        at = Level(0.5, 0.8, sigma)
        x = 0.8 * full.sample(7, 1, dtype=torch.float64) + sigma * rows
        inside = x @ axes
        across = x - inside @ axes.mT
        length = across.norm(dim=1, keepdim=True)
        found = small(torch.cat([inside, length], 1), at).x0
        back = found[:, :-1] @ axes.mT + found[:, -1:] * across / length
        torch.testing.assert_close(back, full(x, at).x0, rtol=1e-9, atol=1e-9)


def test_noise_of_the_turned_mixture(targets: ModuleType, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    target, axes = targets.low_rank(torch.randn(50, 40, generator=generator), tmp_path, components=2, rank=3)
    from sfumato import random

    rows = random.normal(3, "prior", 0, 5, (40,)).double()
    noise = target.noise(3, 5)
    torch.testing.assert_close(noise[:, :-1], rows @ axes)
    torch.testing.assert_close(target.rms(noise), rows.square().mean(1).sqrt())


@pytest.mark.parametrize("schedule", ["linear", "cosine", "edm"])
def test_reference_of_gaussian_data(targets: ModuleType, problem: ModuleType, tmp_path: Path, schedule: str) -> None:
    """The reference solver against the flow of a Gaussian, which is known in closed form."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    oracle = GaussianOracle(torch.tensor([0.3, -1.0, 2.0]).double(), root @ root.mT)
    target = targets.Target("gaussian", oracle, 3, targets._normal(3), 1.0)
    posed = problem.pose(target, schedule, 0, 6, tmp_path)
    exact = oracle.flow(posed.start, posed.schedule(1.0), Level(0.0, 1.0, 0.0))
    assert float((posed.exact - exact).abs().max()) < 1e-7
    rms, median = posed.errors(exact + 0.25)
    assert rms == pytest.approx(0.25, abs=1e-6) and median == pytest.approx(0.25, abs=1e-6)


def test_sliced_wasserstein_of_a_shift(targets: ModuleType) -> None:
    from side_by_side.stochastic import sliced_wasserstein

    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).double()
    shift = torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
    # every projection moves by its cosine with the shift, whose mean square is 1 / D
    assert sliced_wasserstein(x, x + shift, projections=4000) == pytest.approx(0.5, rel=0.05)
    assert sliced_wasserstein(x, x.flip(0)) == 0.0


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    folders = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    command = [sys.executable, str(BENCHMARKS / "solvers.py"), "--quick", *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "solvers.json").read_text())
    cells = found["cells"]
    assert [(c["schedule"], c["nfe"]) for c in cells] == [(s, n) for s in ("linear", "cosine", "edm") for n in (5, 10)]
    for cell in cells:
        assert _finite(cell["ours"]["rms"]) and _finite(cell["ours"]["median"]) and cell["ours"]["calls"] <= cell["nfe"]
        assert cell["best_own"]["rms"] <= cell["ours"]["rms"]
        assert cell["fitted"]["rms"] < cell["best_own"]["rms"] and cell["fitted"]["calls"] == cell["nfe"]
        if found["configurations"]:
            assert _finite(cell["ratio"]) and cell["peer"]["calls"] <= cell["nfe"]
    assert all(value < 1e-6 for value in found["references"].values()) and len(found["references"]) == 3
    assert {row["schedule"] for row in found["stochastic"]} == {"linear", "cosine", "edm"}
    assert all(row["floor"] > 0.0 and _finite(row["distance"]) for row in found["stochastic"])
    assert (tmp_path / "out" / "solvers.png").stat().st_size > 1000
