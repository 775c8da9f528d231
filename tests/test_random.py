"""Stateless draws: their law, and that they depend on nothing but their arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sfumato import random


def test_any_cut_of_the_stream_gives_the_same_numbers() -> None:
    whole = random.normal(3, "noise", 0, 50, (3, 5, 7))
    for start, count in ((0, 1), (17, 9), (49, 1)):
        assert torch.equal(random.normal(3, "noise", start, count, (3, 5, 7)), whole[start : start + count])
    level = random.uniform(3, "time", 0, 50)
    assert torch.equal(random.uniform(3, "time", 20, 10), level[20:30])


@pytest.mark.parametrize("other", [{"seed": 4}, {"stream": "time"}, {"step": 1}, {"start": 100}])
def test_every_argument_matters(other: dict[str, object]) -> None:
    base: dict[str, object] = {"seed": 3, "stream": "noise", "start": 0, "count": 100, "shape": (20,), "step": 0}
    one = random.normal(**base).flatten()  # type: ignore[arg-type]
    two = random.normal(**{**base, **other}).flatten()  # type: ignore[arg-type]
    assert abs(float(np.corrcoef(one, two)[0, 1])) < 0.08


def test_normal_draws_are_normal() -> None:
    draws = random.normal(0, "noise", 0, 20_000, (11,)).double()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    assert (torch.cov(draws.T) - torch.eye(11)).abs().max() < 0.04
    # the two halves of a Box-Muller pair are uncorrelated, in square too
    assert abs(float(np.corrcoef(draws[:, 0] ** 2, draws[:, 6] ** 2)[0, 1])) < 0.03
    assert draws.isfinite().all()


def test_uniform_draws_are_uniform() -> None:
    draws = random.uniform(0, "u", 0, 50_000)
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3
    assert float(draws.min()) >= 0.0 and float(draws.max()) < 1.0


def test_permutations() -> None:
    orders = [random.permutation(0, "order", epoch, 100) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[1], random.permutation(0, "order", 1, 100))


def test_a_stream_is_pinned() -> None:
    """Philox4x64-10 with a zero key and counter 1, 0, 0, 0: the first word of Random123's own generator."""
    words = np.random.Philox(counter=np.zeros(4, dtype=np.uint64), key=np.zeros(2, dtype=np.uint64)).random_raw(4)
    assert random.fold(0, "a") != random.fold(0, "b") != random.fold(1, "b")
    assert 0 <= random.fold(0, "a") < 2**63 and len(set(words.tolist())) == 4
