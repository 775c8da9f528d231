"""torch.compile: the same numbers where there is a compiler, a sentence where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from sfumato.errors import SfumatoWarning
from sfumato.networks.execution import compile_in_place, count
from sfumato.networks.unet import UNet
from sfumato.runs.reporting import Terminal
from sfumato.runs.train import train
from tests.runs.test_resume import losses
from tests.training.tiny import command, flags, tiny


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.silu(self.first(x)))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_network_runs_as_it_is() -> None:
    torch.manual_seed(0)
    network = Network()
    x = torch.randn(5, 4)
    expected = network(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), network.first.weight)
    names = [name for name, _ in network.named_parameters()]
    compile_in_place(network)
    with pytest.warns(SfumatoWarning, match="torch.compile does not work here .*runs uncompiled"):
        found = network(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), network.first.weight)[0], gradient)
    assert [name for name, _ in network.named_parameters()] == names


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """What is handed to the compiler, which leaves it as it is."""
    found: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", keep)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


@pytest.mark.usefixtures("unchecked")
def test_a_compiled_network_can_be_counted_before_its_first_call(graphs: list[torch.fx.GraphModule]) -> None:
    network = UNet(1, 1, (8,), blocks=1)
    compile_in_place(network, dynamic=False)
    count(network, (1, 8, 8))
    assert not graphs
    network(torch.zeros(2, 1, 8, 8), torch.ones(2)).sum().backward()
    assert graphs


@pytest.mark.usefixtures("unchecked")
def test_a_training_that_is_shown_is_compiled(graphs: list[torch.fx.GraphModule], tmp_path: Path) -> None:
    train(tiny(training={"steps": 2, "compile": True}), run=tmp_path / "run", reporter=Terminal(Console(quiet=True)))
    assert graphs


@pytest.mark.slow
def test_compiled_runs_train_and_sample_like_others(tmp_path: Path) -> None:
    """In processes of their own: the run-time checks of the tests are nothing that anyone would compile."""
    for name, more in (("plain", []), ("compiled", ["--training.compile", "--sampling.compile"])):
        process = command("train", "digits", "--run", name, *flags(steps=3, sample_count=4), *more, cwd=tmp_path)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "does not work here" not in errors, errors
    plain, compiled = (list(losses(tmp_path / run).values()) for run in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)
    process = command("sample", "compiled", "--count", "4", cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
