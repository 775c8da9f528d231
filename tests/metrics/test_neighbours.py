"""Nearest neighbours against brute force, and what the ratio says of copies."""

import numpy as np
import pytest
import torch

from sfumato.errors import InputError
from sfumato.metrics import Estimate, copied_share, nearest_distances, neighbour_ratio


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute(queries: torch.Tensor, train: torch.Tensor) -> np.ndarray:
    q, t = queries.flatten(1).double().numpy(), train.flatten(1).double().numpy()
    return np.array([min(np.linalg.norm(x - y) for y in t) for x in q])


def ratio_of(samples: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor) -> Estimate:
    return neighbour_ratio(nearest_distances(samples, train), nearest_distances(heldout, train))


def test_against_brute_force() -> None:
    samples, train, heldout = draw(0, 31, 2, 3, 3), draw(1, 57, 2, 3, 3), draw(2, 23, 2, 3, 3)
    np.testing.assert_allclose(nearest_distances(samples, train).numpy(), brute(samples, train), rtol=1e-6)
    truth = torch.from_numpy(brute(samples, train)).median() / torch.from_numpy(brute(heldout, train)).median()
    assert ratio_of(samples, train, heldout).value == pytest.approx(float(truth), rel=1e-6)


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any chunking gives the same answer."""
    queries, train = draw(3, 20, 4), draw(4, 30, 4)
    whole = nearest_distances(queries, train)
    monkeypatch.setattr("sfumato.metrics.neighbours._CHUNK", 7)
    assert torch.equal(nearest_distances(queries, train), whole)


def test_memorizer_is_at_zero() -> None:
    train, heldout = draw(5, 40, 1, 8, 8) + 100.0, draw(6, 20, 1, 8, 8) + 100.0
    memorized = train[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    assert ratio_of(memorized, train, heldout).value == 0.0
    assert ratio_of(memorized + 1e-3, train, heldout).value < 0.01


def test_fresh_samples_are_near_one() -> None:
    ratio = ratio_of(draw(7, 500, 6), draw(8, 500, 6), draw(9, 500, 6))
    assert ratio.value == pytest.approx(1.0, abs=0.1)
    assert 0.005 < (ratio.error or 0.0) < 0.05


def test_error_of_the_ratio_is_a_bootstrap() -> None:
    """Against resampling the distances 4000 times."""
    near, far = draw(14, 301).abs().double() + 0.5, draw(15, 201).abs().double() + 1.0
    rng = np.random.default_rng(0)
    medians = [np.median(rng.choice(x.numpy(), (4000, len(x))), axis=1) for x in (near, far)]
    assert neighbour_ratio(near, far).error == pytest.approx(float(np.std(medians[0] / medians[1])), rel=0.1)


def test_copied_share() -> None:
    """Real images have the share that the percentile says, a memorizer has 1; a tenth of copies is seen as that."""
    train, heldout, fresh = draw(16, 500, 4), draw(17, 2000, 4), draw(18, 2000, 4)

    def copies(samples: torch.Tensor) -> Estimate:
        return copied_share(nearest_distances(samples, train), nearest_distances(heldout, train))

    real = copies(fresh)
    assert real.value == pytest.approx(0.01, abs=2 * (real.error or 0.0)) and 0.002 < (real.error or 0.0) < 0.01
    assert copies(train).value == 1.0
    fresh[:200] = train[:200] + 1e-4
    assert copies(fresh).value == pytest.approx(0.1 + 0.9 * 0.01, abs=0.01)
    train, heldout = train.half(), heldout.half()
    assert copies(train).value == 1.0


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
        ratio_of(draw(12, 3, 4), train, train)
