"""The Frechet distance against closed forms and SciPy's matrix square root."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics import Moments, frechet_distance


def with_moments(mean: torch.Tensor, covariance: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """``n`` vectors whose sample mean and unbiased sample covariance are exactly the given ones."""
    noise = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    noise = noise - noise.mean(dim=0)
    white = torch.linalg.qr(noise).Q * (n - 1) ** 0.5
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_diagonal_gaussians() -> None:
    """Diagonal covariances: sum of (m_a - m_b)^2 + (s_a - s_b)^2."""
    m_a, m_b = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([0.5, 1.0, 3.0]).double()
    s_a, s_b = torch.tensor([1.0, 2.0, 0.1]).double(), torch.tensor([3.0, 0.5, 0.2]).double()
    a = with_moments(m_a, torch.diag(s_a**2), 50, 0)
    b = with_moments(m_b, torch.diag(s_b**2), 70, 1)
    truth = float((m_a - m_b).square().sum() + (s_a - s_b).square().sum())
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-10)


def test_rotated_commuting_gaussians() -> None:
    """A rotation of both sets leaves the distance as it is."""
    angle = torch.tensor(0.7).double()
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    a = with_moments(torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 1.0]).double()), 40, 2) @ turn.T
    b = with_moments(torch.ones(2).double(), torch.diag(torch.tensor([1.0, 9.0]).double()), 40, 3) @ turn.T
    assert frechet_distance(a, b) == pytest.approx(2.0 + 1.0 + 4.0, rel=1e-10)


def test_against_scipy_square_root() -> None:
    """Correlated sets, against the textbook formula with scipy.linalg.sqrtm."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) + rng.normal(size=8)
    b = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8))
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = a.mean(axis=0) - b.mean(axis=0)
    truth = gap @ gap + np.trace(s_a) + np.trace(s_b) - 2.0 * np.trace(sqrtm(s_a @ s_b)).real
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(truth, rel=1e-9)
    swapped = frechet_distance(torch.from_numpy(b), torch.from_numpy(a))
    assert swapped == pytest.approx(truth, rel=1e-9)


def test_identity_and_shift() -> None:
    """A set is at 0 from itself, and at the squared length of a shift from its shifted self."""
    a = torch.randn(100, 5, generator=torch.Generator().manual_seed(4)).double()
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)
    shift = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.5]).double()
    assert frechet_distance(a, a + shift) == pytest.approx(5.25, rel=1e-10)


def test_rank_deficient() -> None:
    """Sets on two lines: Tr (S_a S_b)^{1/2} is |<u, v>| for S_a = u u^T and S_b = v v^T."""
    line = with_moments(torch.zeros(1).double(), torch.ones(1, 1).double(), 30, 5)
    u, v = torch.tensor([[2.0, 0.0, 0.0]]).double(), torch.tensor([[1.0, 3.0, 0.0]]).double()
    truth = 4.0 + 10.0 - 2.0 * 2.0
    assert frechet_distance(line @ u, line @ v) == pytest.approx(truth, rel=1e-10)


def test_fewer_samples_than_features_warns_and_stays_exact() -> None:
    """Two pairs of points in 10 dimensions, against the formula for covariances of rank 1."""
    a, b = torch.zeros(2, 10), torch.zeros(2, 10)
    a[1, 0], b[1, 1] = 2.0, 2.0  # means e_0 and e_1; covariances 2 e_0 e_0^T and 2 e_1 e_1^T
    with pytest.warns(SfumatoWarning, match="more samples than features"):
        assert frechet_distance(a, b) == pytest.approx(2.0 + 2.0 + 2.0, rel=1e-10)
    assert Moments.fit(a).biased
    assert not Moments.fit(torch.randn(11, 10)).biased


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "at least 2 samples"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "3 and 4 features"),
        (torch.full((5, 3), float("nan")), torch.zeros(5, 3), "NaN"),
    ],
)
def test_bad_input(a: torch.Tensor, b: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        frechet_distance(a, b)
