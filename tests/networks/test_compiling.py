"""torch.compile: the same numbers where there is a compiler, a sentence where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.errors import SfumatoWarning
from sfumato.networks.compiling import compile_in_place
from tests.training.tiny import command, flags


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


@pytest.mark.slow
def test_compiled_runs_train_and_sample_like_others(tmp_path: Path) -> None:
    """In processes of their own: the run-time checks of the tests are nothing that anyone would compile."""
    for name, more in (("plain", []), ("compiled", ["--training.compile", "--sampling.compile"])):
        process = command("train", "digits", "--run", name, *flags(steps=3, sample_count=4), *more, cwd=tmp_path)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "does not work here" not in errors, errors
    plain, compiled = (
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)
    process = command("sample", "compiled", "--count", "4", cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
