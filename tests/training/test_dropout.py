"""Dropout is a draw like any other: a function of the seed and the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sfumato.runs import train as runs
from tests.training.tiny import tiny


def weights(folder: Path, rate: float, labels: bool = False, **training: Any) -> torch.Tensor:
    config = tiny(
        data={"labels": labels},
        model={"network": {"dropout": rate}},
        training={"steps": 4, "accumulate": 1, **training},
    )
    model = runs.train(config, run=folder)
    return torch.cat([p.detach().flatten() for p in model.denoiser.parameters()])


def test_parts_of_a_batch_leave_out_the_same(tmp_path: Path) -> None:
    whole = weights(tmp_path / "whole", 0.4)
    parts = weights(tmp_path / "parts", 0.4, accumulate=4)
    plain = weights(tmp_path / "plain", 0.0)
    other = weights(tmp_path / "other", 0.4, seed=1)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.allclose(whole, plain, atol=1e-4)
    assert not torch.allclose(whole, other, atol=1e-4)


def test_with_labels_too(tmp_path: Path) -> None:
    whole = weights(tmp_path / "whole", 0.4, labels=True)
    assert not torch.allclose(whole, weights(tmp_path / "plain", 0.0, labels=True), atol=1e-4)
