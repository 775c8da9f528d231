"""TF32: asked for on a GPU while a training lasts, and said."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sfumato.runs import train as run
from sfumato.runs.reporting import Silent
from sfumato.training.loop import Record
from sfumato.training.precision import multiplies_in_tf32, tf32
from tests.training.tiny import tiny

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_it_holds_within_and_not_after() -> None:
    with pytest.raises(ZeroDivisionError), tf32(GPU):
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"
    with tf32(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("medium")
    with tf32(GPU):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "medium"


def test_it_is_said_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda able=able: able)
        assert not multiplies_in_tf32(GPU) and not multiplies_in_tf32(CPU)
        with tf32(GPU):
            assert multiplies_in_tf32(GPU) is able
            assert not multiplies_in_tf32(CPU)


def test_the_steps_of_a_training_are_within_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As they would be on a GPU: the processor is taken for one."""
    seen: list[str] = []

    class Watching(Silent):
        def step(self, record: Record) -> None:
            seen.append(torch.get_float32_matmul_precision())

    @contextmanager
    def pretended(device: torch.device) -> Generator[None]:
        assert device.type == "cpu"
        with tf32(GPU):
            yield

    monkeypatch.setattr(run, "tf32", pretended)
    run.train(tiny(training={"steps": 2}), run=tmp_path / "run", reporter=Watching())
    assert seen == ["high", "high"] and torch.get_float32_matmul_precision() == "highest"
