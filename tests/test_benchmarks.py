"""The benchmarks of objectives: every kind of the configuration has a row, and (slow) every row runs to the end."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from sfumato.config import KINDS, component

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("objectives")


@pytest.mark.parametrize(
    ("group", "field"),
    [
        ("model", "schedule"),
        ("model", "parameterization"),
        ("objective", "weight"),
        ("objective", "times"),
    ],
)
def test_every_kind_has_a_row(benchmarks: ModuleType, group: str, field: str) -> None:
    # regression without a condition is one picture, the mean
    kinds = set(KINDS[field]) - {"regression"}
    configs = [row.config(100) for row in benchmarks.ROWS]
    reached = {getattr(getattr(c, group), field).kind for c in configs}
    assert kinds and reached == kinds


def test_every_reverse_variance_has_a_row(benchmarks: ModuleType) -> None:
    kinds = set(get_args(component("sampler", "ancestral").model_fields["variance"].annotation))
    rows = [row for row in benchmarks.ROWS if row.ancestral]
    assert kinds | {"learned", "analytic"} <= {row.variance for row in rows}
    assert any(row.config(100).model.learned_variance for row in rows if row.variance == "learned")


def test_rows_have_names_of_their_own(benchmarks: ModuleType) -> None:
    keys = [row.key for row in benchmarks.ROWS]
    assert len(set(keys)) == len(keys)


def test_a_name_that_is_no_row(benchmarks: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["--rows", "nothing"])
    assert "no row matches 'nothing'" in capsys.readouterr().err


@pytest.mark.slow
def test_every_row_runs(benchmarks: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = benchmarks.main(["--quick", "--json", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert [(row["group"], row["name"]) for row in found] == [(row.group, row.name) for row in benchmarks.ROWS]
    printed = capsys.readouterr().out
    for row in found:
        numbers = [row[name] for name in ("bound", "bound_error", "common", "common_error", "frechet_over_floor")]
        assert all(math.isfinite(number) for number in numbers), row
        assert row["common"] < row["untrained"], row
        # a posterior mean is not learned in so few steps that its flow could be followed
        assert row["flow"] is None or math.isfinite(row["flow"]), row
        assert row["flow"] is not None or row["name"].startswith("mean") or row["group"] == "reverse variances"
        assert row["name"] in printed


@pytest.mark.slow
def test_a_learned_schedule_halves_the_variance_of_the_bound(benchmarks: ModuleType) -> None:
    found = importlib.import_module("schedule_variance").measure(steps=150, images=64, rounds=100, draws=50, seed=0)
    beta, straight, learned = (row for row in found)
    assert [row["name"] for row in found] == ["linear beta", "linear log-SNR", "learned"]
    assert learned["iid"] < 0.5 * beta["iid"] and learned["stratified"] < 0.5 * beta["stratified"]
    assert learned["iid"] < straight["iid"]
    assert learned["bound"] < beta["bound"] + beta["bound_error"]
    # the two ways to the bound agree: in continuous time, and in 1000 steps
    assert learned["ledger"] == pytest.approx(learned["bound"], abs=0.15)
