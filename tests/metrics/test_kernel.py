"""KID and CMMD against torch-fidelity, direct sums, and the closed form for Gaussians."""

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.metrics import Estimate, cmmd, kid, kid_subsets
from sfumato.random import permutation
from tests.metrics.fidelity import fidelity

MODULE = importlib.import_module("sfumato.metrics.kernel")


def draw(seed: int, n: int, d: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def direct(a: Tensor, b: Tensor) -> float:
    """The sums as they are defined."""

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1.0) ** 3

    n, m = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2.0 * sum(k(x, y) for x in a for y in b) / (n * m)


def expected(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The expectation of the cubic kernel of independent Gaussians: moments of x . y up to the third."""
    d, t = len(mean_a), mean_a @ mean_b
    spread = mean_a @ cov_b @ mean_a + mean_b @ cov_a @ mean_b + (cov_a * cov_b).sum()
    third = t**3 + 3 * t * spread + 6 * mean_b @ cov_a @ cov_b @ mean_a
    return float(1.0 + 3 * t / d + 3 * (t**2 + spread) / d**2 + third / d**3)


def test_against_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    metric_kid = fidelity("metric_kid")
    a, b = draw(0, 150, 12), draw(1, 150, 12, 1.2, 0.1)
    keys = {"kid_subsets": 3, "kid_subset_size": 150, "rng_seed": 0, "verbose": False, "kid_kernel": "poly"}
    peer = metric_kid.kid_features_to_metric(a, b, **keys)["kernel_inception_distance_mean"]
    assert kid(a, b).value == pytest.approx(peer, rel=1e-9)
    found = kid_subsets(a, b, subsets=3, size=150)
    assert found.value == pytest.approx(peer, rel=1e-9) and found.error == pytest.approx(0.0, abs=1e-9)
    assert found.method == "standard deviation over 3 subsets of 150"
    assert kid(a.float(), b.float()).value == pytest.approx(peer, rel=1e-5)
    # and on smaller subsets, which its generator is made to draw as ours does
    orders = (permutation(5, f"kid/{name}", subset, 150)[:40] for subset in range(6) for name in "ab")
    generator = type("Generator", (), {"__init__": lambda *_: None, "choice": lambda *_, **__: next(orders)})
    monkeypatch.setattr(np.random, "RandomState", generator)
    peer = metric_kid.kid_features_to_metric(a, b, **keys | {"kid_subsets": 6, "kid_subset_size": 40})
    found = kid_subsets(a, b, subsets=6, size=40, seed=5)
    assert found.value == pytest.approx(peer["kernel_inception_distance_mean"], rel=1e-9)
    assert found.error == pytest.approx(peer["kernel_inception_distance_std"], rel=1e-9)


def test_subsets_are_drawn_anew() -> None:
    """Mean and deviation over subsets, against those of `kid` on sets of that size; the seed decides."""
    a, b = draw(2, 3000, 4), draw(3, 3000, 4, 1.3)
    found = kid_subsets(a, b, subsets=40, size=100)
    fresh = torch.tensor([kid(draw(10 + i, 100, 4), draw(100 + i, 100, 4, 1.3)).value for i in range(40)])
    whole = kid(a, b)
    assert found.value == pytest.approx(whole.value, abs=3 * (found.error or 0.0) / 40**0.5)
    assert found.error == pytest.approx(float(fresh.std()), rel=0.4)
    assert kid_subsets(a, b, subsets=2, size=100, seed=1) != kid_subsets(a, b, subsets=2, size=100, seed=2)


def test_against_direct_sums_with_unequal_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = draw(4, 13, 3), draw(5, 19, 3, 1.5)
    assert kid(a, b).value == pytest.approx(direct(a, b), rel=1e-12)
    whole = kid(a, b)
    monkeypatch.setattr(MODULE, "_BLOCK", 4)
    cut = kid(a, b)
    assert cut.value == pytest.approx(whole.value, rel=1e-12) and cut.error == pytest.approx(whole.error, rel=1e-12)


@pytest.mark.parametrize("measure", [kid, cmmd])
def test_error_is_the_jackknife(measure: object) -> None:
    """Against leaving out each sample and computing all again."""
    assert callable(measure)
    a, b = draw(6, 12, 3, 1.0, 1.0), draw(7, 9, 3, 1.5, 1.0)
    variance = 0.0
    for whole, again in ((a, lambda x: measure(x, b)), (b, lambda x: measure(a, x))):
        n = len(whole)
        left = np.array([again(torch.cat([whole[:i], whole[i + 1 :]])).value for i in range(n)])
        variance += (n - 1) / n * np.sum((left - left.mean()) ** 2)
    assert measure(a, b).error == pytest.approx(variance**0.5, rel=1e-9)


def test_cmmd_against_its_formula() -> None:
    a, b = draw(8, 40, 6), draw(9, 30, 6, 1.0, 0.5)
    x, y = (torch.nn.functional.normalize(v, dim=1) for v in (a, b))

    def mean(u: Tensor, v: Tensor) -> float:
        return float(torch.exp(-(u[:, None] - v[None]).square().sum(dim=2) / 200.0).mean())

    truth = 1000.0 * (mean(x, x) + mean(y, y) - 2.0 * mean(x, y))
    assert cmmd(a, b).value == pytest.approx(truth, rel=1e-9)
    assert cmmd(3.0 * a, b).value == pytest.approx(truth, rel=1e-9)
    assert cmmd(a, a).value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "n", "m", "change"), [(4, 300, 300, 0.3), (16, 300, 500, 0.3), (64, 300, 200, 0.3)])
def test_error_covers_the_truth(d: int, n: int, m: int, change: float) -> None:
    generator = torch.Generator().manual_seed(d)
    first = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    second = first + change * torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    one = (torch.zeros(d).double(), first.T @ first)
    two = (torch.full((d,), change / 2).double(), second.T @ second)
    truth = expected(*one, *one) + expected(*two, *two) - 2.0 * expected(*one, *two)
    hits, values = 0, []
    for _ in range(200):
        a = torch.randn(n, d, generator=generator, dtype=torch.float64) @ first
        b = torch.randn(m, d, generator=generator, dtype=torch.float64) @ second + change / 2
        found = kid(a, b)
        values.append(found.value)
        hits += abs(found.value - truth) < 1.96 * (found.error or 0.0)
    assert 0.90 <= hits / 200 <= 0.99
    assert np.mean(values) == pytest.approx(truth, abs=3 * np.std(values) / 200**0.5)  # unbiased


def test_identical_pictures() -> None:
    a, b = torch.ones(5, 4), torch.zeros(6, 4)
    assert kid(a, b).value == 8.0 + 1.0 - 2.0 and kid(a, b).error == 0.0
    assert kid(a[:2], b[:2]) == Estimate(7.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("measure", [kid, cmmd, kid_subsets])
def test_bad_input(measure: object) -> None:
    assert callable(measure)
    a = draw(0, 8, 3)
    for x, y, words in (
        (a[:1], a, "at least 2 samples"),
        (a, a[:, :2], "3 and 2 features"),
        (a, a * float("nan"), "NaN"),
        (a[0], a, "matrix"),
    ):
        with pytest.raises(InputError, match=words):
            measure(x, y)


def test_bad_sizes() -> None:
    a = draw(0, 8, 3)
    with pytest.raises(InputError, match=r"subsets of 1000 cannot be drawn from 8 and 8 samples"):
        kid_subsets(a, a)
    with pytest.raises(InputError, match="at least 1 subset"):
        kid_subsets(a, a, subsets=0, size=4)
    with pytest.raises(InputError, match="length 0"):
        cmmd(a, torch.zeros(4, 3))
