"""Nearest neighbours against brute force, and what the ratio says of copies."""

import numpy as np
import pytest
import torch

from sfumato.errors import InputError
from sfumato.metrics import nearest_distances, nearest_neighbour_ratio


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute(queries: torch.Tensor, train: torch.Tensor) -> np.ndarray:
    q, t = queries.flatten(1).double().numpy(), train.flatten(1).double().numpy()
    return np.array([min(np.linalg.norm(x - y) for y in t) for x in q])


def test_against_brute_force() -> None:
    samples, train, heldout = draw(0, 31, 2, 3, 3), draw(1, 57, 2, 3, 3), draw(2, 23, 2, 3, 3)
    np.testing.assert_allclose(nearest_distances(samples, train).numpy(), brute(samples, train), rtol=1e-6)
    truth = torch.from_numpy(brute(samples, train)).median() / torch.from_numpy(brute(heldout, train)).median()
    assert nearest_neighbour_ratio(samples, train, heldout) == pytest.approx(float(truth), rel=1e-6)


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any chunking gives the same answer."""
    queries, train = draw(3, 20, 4), draw(4, 30, 4)
    whole = nearest_distances(queries, train)
    monkeypatch.setattr("sfumato.metrics.neighbours._CHUNK", 7)
    assert torch.equal(nearest_distances(queries, train), whole)


def test_memorizer_is_at_zero() -> None:
    train, heldout = draw(5, 40, 1, 8, 8) + 100.0, draw(6, 20, 1, 8, 8) + 100.0
    copies = train[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    assert nearest_neighbour_ratio(copies, train, heldout) == 0.0
    assert nearest_neighbour_ratio(copies + 1e-3, train, heldout) < 0.01


def test_fresh_samples_are_near_one() -> None:
    ratio = nearest_neighbour_ratio(draw(7, 500, 6), draw(8, 500, 6), draw(9, 500, 6))
    assert ratio == pytest.approx(1.0, abs=0.1)


@pytest.mark.usefixtures("unchecked")
def test_bad_input() -> None:
    train = draw(10, 10, 4)
    with pytest.raises(InputError, match="one is empty"):
        nearest_distances(train[:0], train)
    with pytest.raises(InputError, match="5 and 4 features"):
        nearest_distances(draw(11, 3, 5), train)
    with pytest.raises(InputError, match="NaN"):
        nearest_distances(torch.full((2, 4), float("nan")), train)
    with pytest.raises(InputError, match="copies of training images"):
        nearest_neighbour_ratio(draw(12, 3, 4), train, train)
