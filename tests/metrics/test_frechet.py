"""The Frechet distance against closed forms and the arithmetic of others; its error against repeated draws."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics import Estimate, Moments, frechet, frechet_distance, frechet_infinity
from tests.metrics.fidelity import fidelity

MODULE = importlib.import_module("sfumato.metrics.frechet")  # its name in the package is that of the function


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


def decaying(seed: int, n: int, d: int, shift: float = 0.0) -> Tensor:
    """Correlated features whose variances decay over several orders, as those of networks do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, d).double()[:, None]
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_torch_fidelity_and_pytorch_fid(dtype: torch.dtype) -> None:
    """The first takes eigenvalues of S_a S_b, the second its square root."""
    metric_fid = fidelity("metric_fid")
    a, b = decaying(0, 700, 96).to(dtype), decaying(1, 500, 96, 0.1).to(dtype)
    stats = [metric_fid.fid_features_to_statistics(x.double()) for x in (a, b)]
    peer = metric_fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(peer, rel=1e-6)
    gap = stats[0]["mu"] - stats[1]["mu"]
    root = sqrtm(stats[0]["sigma"] @ stats[1]["sigma"]).real
    truth = gap @ gap + np.trace(stats[0]["sigma"]) + np.trace(stats[1]["sigma"]) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-6)
    assert frechet(a, b).value == pytest.approx(truth, rel=1e-6)
    published = [Moments.of(torch.from_numpy(s["mu"]), torch.from_numpy(s["sigma"]), 700) for s in stats]
    assert published[0].distance(published[1]) == pytest.approx(truth, rel=1e-6)
    np.testing.assert_allclose(Moments.fit(a).covariance.numpy(), stats[0]["sigma"], rtol=1e-6, atol=1e-9)


def test_singular_commuting_covariances() -> None:
    """Diagonal covariances with zeros, in one, in the other and in both."""
    s_a, s_b = torch.tensor([2.0, 1.0, 0.0, 0.0, 1e-5]).double(), torch.tensor([1.0, 0.0, 3.0, 0.0, 2e-5]).double()
    white = with_moments(torch.zeros(5).double(), torch.eye(5).double(), 40, 7)
    other = with_moments(torch.zeros(5).double(), torch.eye(5).double(), 30, 8)
    truth = float((s_a - s_b).square().sum())
    assert frechet_distance(white * s_a, other * s_b) == pytest.approx(truth, rel=1e-10)
    assert frechet(white * s_a, other * s_b).value == pytest.approx(truth, rel=1e-10)
    exact = [Moments.of(torch.zeros(5).double(), torch.diag(s**2), 40) for s in (s_a, s_b)]
    assert exact[0].distance(exact[1]) == pytest.approx(truth, rel=1e-10)


def test_fewer_samples_than_features_on_common_axes() -> None:
    """6 samples in 20 dimensions that share their principal axes; others are turned by a right angle."""
    white = with_moments(torch.zeros(5).double(), torch.eye(5).double(), 6, 9)
    axes = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(3)).double()).Q
    a, b = white @ axes[:5], 3.0 * white @ axes[:5]
    apart = white @ axes[5:10]
    with pytest.warns(SfumatoWarning, match="more samples"):
        assert frechet_distance(a, b) == pytest.approx(5 * 4.0, rel=1e-9)
    with pytest.warns(SfumatoWarning, match="more samples"):
        assert frechet(a, apart).value == pytest.approx(10.0, rel=1e-9)
    with pytest.warns(SfumatoWarning, match="more samples"):
        assert math.isfinite(frechet(a, b).error or math.nan)


def test_identical_pictures() -> None:
    """Sets without any variance are points."""
    a, b = torch.ones(30, 4), torch.zeros(20, 4)
    assert frechet(a, b) == Estimate(4.0, 0.0, "delta method")
    assert frechet_distance(a, b) == 4.0
    spread = with_moments(torch.zeros(4).double(), torch.eye(4).double(), 50, 10)
    assert frechet_distance(a, spread) == pytest.approx(8.0, rel=1e-12)
    assert frechet(spread, a).value == pytest.approx(8.0, rel=1e-12)


@pytest.mark.parametrize("rank", [3, 8])
def test_chunks(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any cut gives the same moments, by Cholesky's factor (full rank) or by that of QR."""
    features = decaying(11, 50, rank) @ torch.eye(rank, 8).double()
    whole = Moments.fit(features)
    monkeypatch.setattr(MODULE, "_CHUNK", 7)
    cut = Moments.fit(features)
    np.testing.assert_allclose(cut.covariance.numpy(), whole.covariance.numpy(), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(whole.covariance.numpy(), np.cov(features.numpy(), rowvar=False), rtol=1e-9, atol=1e-15)


def test_error_is_the_derivative() -> None:
    """The influence of a sample is the derivative of the distance in its weight: against a difference quotient."""
    a, b = decaying(12, 60, 4).numpy(), decaying(13, 80, 4, 0.2).numpy()

    def distance(weights: np.ndarray) -> float:
        mean = weights @ a / weights.sum()
        covariance = (a - mean).T @ np.diag(weights) @ (a - mean) / weights.sum()
        s_b, gap = np.cov(b, rowvar=False), mean - b.mean(axis=0)
        root = sqrtm(covariance @ s_b).real
        return float(gap @ gap + np.trace(covariance) + np.trace(s_b) - 2.0 * np.trace(root))

    slopes = []
    for i in range(len(a)):
        step = 1e-5 * (np.arange(len(a)) == i) * len(a)
        slopes.append((distance(1.0 + step) - distance(1.0 - step)) / 2e-5)
    truth = np.std(slopes, ddof=1) / len(a) ** 0.5
    published = Moments.fit(torch.from_numpy(b))
    assert frechet(torch.from_numpy(a), published).error == pytest.approx(truth, rel=0.05)  # 60 or 59 in S_a


def test_infinity_of_a_line() -> None:
    """From a fixed set to moments: the value is the least-squares intercept of distances of its parts."""
    a, b = decaying(14, 400, 5), Moments.fit(decaying(15, 3000, 5, 0.3))
    found = frechet_infinity(a, b, seed=3)
    assert found.value == pytest.approx(frechet_infinity(a, b, seed=3).value, rel=1e-9)
    assert found.value != pytest.approx(frechet_infinity(a, b, seed=4).value, rel=1e-9)
    assert found.value < frechet(a, b).value
    assert (found.error or 0.0) >= (frechet(a, b).error or 0.0) > 0.0
    both = frechet_infinity(a, decaying(15, 3000, 5, 0.3))
    assert (both.error or 0.0) > 0.0 and both.value == pytest.approx(found.value, abs=3 * (found.error or 0.0))


def covered(d: int, n: int, m: int, change: float, draws: int) -> tuple[float, float]:
    """How often 1.96 standard errors reach the distance of two Gaussians: `frechet` and `frechet_infinity`."""
    generator = torch.Generator().manual_seed(d)
    first = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    second = first + change * torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    zero = torch.zeros(d).double()
    truth = Moments.of(zero, first.T @ first, n).distance(Moments.of(zero + change / 2, second.T @ second, m))
    hits = torch.zeros(2)
    for draw in range(draws):
        a = torch.randn(n, d, generator=generator, dtype=torch.float64) @ first
        b = torch.randn(m, d, generator=generator, dtype=torch.float64) @ second + change / 2
        for i, found in enumerate((frechet(a, b), frechet_infinity(a, b, seed=draw))):
            hits[i] += abs(found.value - truth) < 1.96 * (found.error or 0.0)
    return float(hits[0]) / draws, float(hits[1]) / draws


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "n", "m", "change", "plain"),
    [(2, 2000, 3000, 1.0, True), (4, 500, 500, 1.0, True), (16, 400, 800, 0.2, False)],
)
def test_error_covers_the_truth(d: int, n: int, m: int, change: float, plain: bool) -> None:
    """In 90 to 99 of 100 draws; without extrapolation only where the bias is small."""
    biased, extrapolated = covered(d, n, m, change, 200)
    assert 0.90 <= extrapolated <= 0.99
    assert 0.90 <= biased <= 0.99 if plain else biased < 0.5


def test_error_of_equal_sets_is_not_too_small() -> None:
    """Where the first derivative vanishes: the error is then too wide by the root of 2."""
    generator = torch.Generator().manual_seed(0)
    found = [
        frechet(torch.randn(60, 4, generator=generator), torch.randn(60, 4, generator=generator)) for _ in range(60)
    ]
    spread = float(torch.tensor([estimate.value for estimate in found]).std())
    error = float(torch.tensor([estimate.error for estimate in found]).mean())
    assert 0.9 < error / spread < 2.0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("mean", "covariance", "samples", "words"),
    [
        (torch.zeros(3), torch.eye(2), 10, "a mean .* and a covariance"),
        (torch.zeros(2), torch.eye(2), 1, "at least 2 samples"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 10, "not symmetric"),
        (torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 10, "eigenvalue -1"),
        (torch.zeros(2), torch.full((2, 2), float("nan")), 10, "NaN"),
    ],
)
def test_published_statistics_that_are_none(mean: Tensor, covariance: Tensor, samples: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Moments.of(mean, covariance, samples)


def test_negative_eigenvalues_of_rounding_are_cut() -> None:
    line = torch.tensor([[1.0, 2.0, 3.0]]).double()
    rounded = (line.T @ line).float()  # of rank 1, with eigenvalues of either sign near 1e-7
    found = Moments.of(torch.zeros(3), rounded - 1e-6 * torch.eye(3), 100)
    np.testing.assert_allclose(found.covariance.numpy(), line.T @ line, atol=1e-5)
    assert found.distance(Moments.fit(torch.zeros(5, 3))) == pytest.approx(14.0, rel=1e-5)
    empty = Moments.of(torch.ones(3), torch.zeros(3, 3), 100)
    assert empty.distance(Moments.fit(torch.zeros(5, 3))) == 3.0


@pytest.mark.usefixtures("unchecked")
def test_infinity_needs_samples() -> None:
    with pytest.raises(InputError, match="quarter of each set"):
        frechet_infinity(torch.randn(19, 4), torch.randn(100, 4))
    with pytest.raises(InputError, match="b has 19 samples"):
        frechet_infinity(torch.randn(100, 4), torch.randn(19, 4))


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
    with pytest.raises(InputError, match=words):
        frechet(a, b)
