"""Precision, recall, density and coverage against prdc, torch-fidelity and their definitions, ties included."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.metrics import PRDC, prdc
from tests.metrics.fidelity import fidelity


def draw(seed: int, n: int, d: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 3.0


def values(found: PRDC) -> list[float]:
    return [estimate.value for estimate in found]


def of_the_package(generated: Tensor, real: Tensor, k: int) -> list[float]:
    compute = pytest.importorskip("prdc").compute_prdc
    with contextlib.redirect_stdout(io.StringIO()):
        found = compute(real.numpy(), generated.numpy(), k)
    return [float(found[name]) for name in ("precision", "recall", "density", "coverage")]


def defined(generated: Tensor, real: Tensor, k_pr: int, k_dc: int) -> list[float]:
    """By all distances, from differences in float64."""
    g, r = generated.double().numpy(), real.double().numpy()

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.square(x[:, None] - y[None]).sum(axis=2)

    def radii(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(x, x) + np.diag(np.full(len(x), np.inf)), axis=1)[:, k - 1]

    across = distances(r, g)
    inside = across < radii(r, k_dc)[:, None]
    return [
        float((across <= radii(r, k_pr)[:, None]).any(axis=0).mean()),
        float((across <= radii(g, k_pr)[None]).any(axis=1).mean()),
        float(inside.sum(axis=0).mean() / k_dc),
        float(inside.any(axis=1).mean()),
    ]


@pytest.fixture(params=[1024, 37, 40])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets in one block, and in many of which the last ones are small."""
    monkeypatch.setattr("sfumato.metrics.blocks._BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "d"), [(150, 190, 32), (190, 150, 3), (151, 149, 1)])
def test_against_the_package(n: int, m: int, d: int, dtype: torch.dtype) -> None:
    generated, real = draw(0, n, d, 0.9).to(dtype), draw(1, m, d).to(dtype)
    assert values(prdc(generated, real, 5, 5)) == pytest.approx(of_the_package(generated, real, 5), rel=1e-9)
    assert values(prdc(generated, real)) == pytest.approx(defined(generated, real, 3, 5), rel=1e-9)


@pytest.mark.usefixtures("block")
def test_against_torch_fidelity() -> None:
    metric_prc = fidelity("metric_prc")
    generated, real = draw(2, 140, 16, 0.8), draw(3, 160, 16)
    keys = {"prc_neighborhood": 3, "prc_batch_size": 50, "save_cpu_ram": False, "verbose": False}
    peer = metric_prc.prc_features_to_metric(generated, real, **keys)
    found = prdc(generated, real)
    assert found.precision.value == pytest.approx(peer["precision"], rel=1e-6)
    assert found.recall.value == pytest.approx(peer["recall"], rel=1e-6)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    "case", ["copies", "integers", "identical", "both identical", "collapsed", "far away", "tight", "large", "half"]
)
def test_ties_and_near_ties(case: str) -> None:
    """Where distances are equal, or closer to each other than float32 can say."""
    a, b = draw(4, 120, 8), draw(5, 130, 8)
    generated, real = {
        "copies": (torch.cat([a[:40], b[:70]]), b),
        "integers": (a.round(), b.round()),
        "identical": (a[:1].repeat(120, 1), b),
        "both identical": (a[:1].repeat(120, 1), a[:1].repeat(130, 1)),
        "collapsed": (a[:1] + 1e-5 * a, torch.cat([b, a[:1]])),
        "far away": (a, torch.cat([b, 1e6 * b[:5]])),
        "tight": (1e-6 * a + a[:1], 1e-6 * b + a[:1]),
        "large": (1e15 * a, 1e15 * b),
        "half": (a.half(), b.half()),
    }[case]
    assert values(prdc(generated, real)) == pytest.approx(defined(generated, real, 3, 5), rel=1e-9)


def test_lower_bounds_are_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of products in float32 hold the distances of differences in float64, with a wide margin."""
    from sfumato.metrics import blocks

    a, b = blocks.prepared(draw(6, 200, 512) @ draw(7, 512, 512), draw(8, 200, 512, 9.0).relu())
    monkeypatch.setattr("sfumato.metrics.blocks._CROWDED", 1.0)
    everything = torch.full((200,), torch.inf).double()
    (pairs,) = blocks.pairs_within(a, b, everything, everything)
    exact = blocks.exact_squares(a, b, pairs)
    middle, half = (pairs.least + pairs.most) / 2, (pairs.most - pairs.least) / 2
    assert len(exact) == 200 * 200
    assert float(((exact - middle).abs() / half).max()) < 0.3


def test_lower_precision_of_products_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors with 11 bits, as TF32 has: more pairs are decided in float64, and the values stay."""
    generated, real = draw(9, 150, 16), draw(10, 150, 16)
    truth = prdc(generated, real)
    product = Tensor.__matmul__

    def rounded(x: Tensor, y: Tensor) -> Tensor:
        return product(*((v.half().float() if v.dtype == torch.float32 else v) for v in (x, y)))

    monkeypatch.setattr(Tensor, "__matmul__", rounded)
    assert prdc(generated, real) == truth


def test_errors() -> None:
    """Binomial and of a mean: against the spread over fresh vectors that are asked about."""
    real, found = draw(11, 300, 4), []
    for seed in range(40):
        found.append(prdc(draw(100 + seed, 200, 4, 1.3), real))
    for name in ("precision", "density"):
        estimates = [getattr(each, name) for each in found]
        spread = np.std([estimate.value for estimate in estimates], ddof=1)
        assert np.mean([estimate.error for estimate in estimates]) == pytest.approx(spread, rel=0.35)
    p = found[0].recall.value
    assert found[0].recall.error == pytest.approx(math.sqrt(p * (1 - p) / 300), rel=0.05)
    far = prdc(real + 100.0, real)
    assert values(far) == [0.0] * 4 and (far.precision.error or 0.0) > 0.0 == far.density.error


@pytest.mark.usefixtures("unchecked")
def test_bad_input() -> None:
    a = draw(12, 10, 4)
    for x, y, words in (
        (a[:1], a, "5 nearest others need more vectors"),
        (a, a[:5], "there are 10 generated and 5 real"),
        (a, a[:, :3], "two matrices"),
        (a[0], a, "two matrices"),
        (a, a * float("nan"), "NaN"),
    ):
        with pytest.raises(InputError, match=words):
            prdc(x, y)
    with pytest.raises(InputError, match="k at least 1"):
        prdc(a, a, k_pr=0)
