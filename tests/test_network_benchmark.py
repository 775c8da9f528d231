"""The benchmark of networks: it refuses what it does not know, and (slow) runs to the end on a tiny network."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("networks")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--only", "nothing"], "nothing is called 'nothing'"), (["--repeats", "0"], "--repeats must be at least 1")],
)
def test_bad_options(
    arguments: list[str], sentence: str, benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'sfumato[dev]'")
    path = tmp_path / "found.json"
    found = benchmark.main(["--quick", "--repeats", "2", "--only", "sfumato", "diffusers", "--json", str(path)])
    assert json.loads(path.read_text()) == found
    rows = found["rows"]
    names = ["sfumato", "sfumato fp32", "diffusers", "diffusers bf16"]
    engines = [row["contender"] for row in rows if "openvino" in row["contender"]]
    assert len(engines) in (0, 1, 2)  # what is installed, and for the forward pass alone
    rows = [row for row in rows if row["contender"] not in engines]
    assert [row["contender"] for row in rows] == 2 * names
    # equal architectures: as many weights, as many multiplications
    assert len({row["parameters"] for row in rows}) == len({row["macs"] for row in rows}) == 1
    printed = capsys.readouterr().out
    for row in rows:
        assert row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert 0.0 < row["of_peak"] < 1.5 and math.isfinite(row["ratio"])
        assert row["contender"] in printed
    assert all(row["ratio"] == 1.0 for row in rows if row["contender"] == "sfumato")
