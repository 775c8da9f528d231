"""Maximum mean discrepancies of two sets of feature vectors: KID and CMMD (Gretton et al., 2012)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError
from sfumato.metrics.estimate import Estimate
from sfumato.random import permutation

_BLOCK = 2048  # vectors on each side of a block of kernel values

Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, d) and (m, d), in float64, to (n, m)


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1.0).pow_(3)


def _gaussian(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return squares.addmm_(x, y.T, alpha=-2.0).clamp_(min=0.0).mul_(-0.5 / sigma**2).exp_()


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets where float64 exists (Apple's GPUs have none)."""
    for features in (a, b):
        if features.ndim != 2 or features.shape[1] == 0:
            raise InputError(f"features must be a matrix (n, d) with d > 0, not of shape {tuple(features.shape)}.")
        if len(features) < 2:
            raise InputError(f"a kernel distance needs at least 2 samples of each set, not {len(features)}.")
        if not bool(torch.isfinite(features.sum(dim=0, dtype=torch.float64)).all()):
            raise InputError("features hold NaN or infinite values; the images they come from are broken.")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"the sets have {a.shape[1]} and {b.shape[1]} features; both need the same network.")
    a, b = a.detach(), b.detach()
    if a.device.type == "mps":
        a, b = a.cpu(), b.cpu()
    return a, b.to(a.device)


class _Sums(NamedTuple):
    """The sums of kernel values over the other samples, per sample."""

    a_self: Tensor  # over a without the sample itself
    b_self: Tensor
    a_other: Tensor  # over b
    b_other: Tensor


def _within(features: Tensor, kernel: Kernel) -> Tensor:
    """Every pair of blocks once, as kernels are symmetric."""
    sums = torch.zeros(len(features), dtype=torch.float64, device=features.device)
    starts = range(0, len(features), _BLOCK)
    for i in starts:
        rows = features[i : i + _BLOCK].double()
        diagonal = kernel(rows, rows)
        sums[i : i + _BLOCK] += diagonal.fill_diagonal_(0.0).sum(dim=1)
        for j in range(i + _BLOCK, len(features), _BLOCK):
            values = kernel(rows, features[j : j + _BLOCK].double())
            sums[i : i + _BLOCK] += values.sum(dim=1)
            sums[j : j + _BLOCK] += values.sum(dim=0)
    return sums


def _sums(a: Tensor, b: Tensor, kernel: Kernel) -> _Sums:
    a_other = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    b_other = torch.zeros(len(b), dtype=torch.float64, device=a.device)
    for i in range(0, len(a), _BLOCK):
        rows = a[i : i + _BLOCK].double()
        for j in range(0, len(b), _BLOCK):
            values = kernel(rows, b[j : j + _BLOCK].double())
            a_other[i : i + _BLOCK] += values.sum(dim=1)
            b_other[j : j + _BLOCK] += values.sum(dim=0)
    return _Sums(_within(a, kernel), _within(b, kernel), a_other, b_other)


def _discrepancy(a_pairs: Tensor, b_pairs: Tensor, cross: Tensor, n: int, m: int, biased: bool) -> Tensor:
    """The squared MMD from sums over ordered pairs, elementwise; ``biased``: with pairs (x, x), where k(x, x) = 1."""
    within_a = (a_pairs + n) / n**2 if biased else a_pairs / (n * (n - 1))
    within_b = (b_pairs + m) / m**2 if biased else b_pairs / (m * (m - 1))
    return within_a + within_b - 2.0 * cross / (n * m)


def _estimate(sums: _Sums, scale: float = 1.0, biased: bool = False) -> Estimate:
    """The squared MMD and its jackknife error: leaving out one sample changes sums that are already known."""
    n, m = len(sums.a_self), len(sums.b_self)
    a_pairs, b_pairs, cross = sums.a_self.sum(), sums.b_self.sum(), sums.a_other.sum()
    value = scale * float(_discrepancy(a_pairs, b_pairs, cross, n, m, biased))
    if min(n, m) == 2:
        return Estimate(value)
    without_a = _discrepancy(a_pairs - 2.0 * sums.a_self, b_pairs, cross - sums.a_other, n - 1, m, biased)
    without_b = _discrepancy(a_pairs, b_pairs - 2.0 * sums.b_self, cross - sums.b_other, n, m - 1, biased)
    variance = (n - 1) * without_a.var(correction=0) + (m - 1) * without_b.var(correction=0)
    return Estimate(value, scale * math.sqrt(variance), "jackknife over samples")


def kid(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Estimate:
    r"""The kernel inception distance (Binkowski et al., 2018, in any features): all pairs of samples, unbiased.

    .. math::
        \frac{\sum_{i \ne j} k(a_i, a_j)}{n (n - 1)} + \frac{\sum_{i \ne j} k(b_i, b_j)}{m (m - 1)}
        - \frac{2}{n m} \sum_{i, j} k(a_i, b_j), \qquad k(x, y) = \left( \frac{x^\top y}{d} + 1 \right)^3

    in float64 and in blocks. It may be negative, as an unbiased estimate of a small number is. The error is that of the
    jackknife over single samples (Arvesen, 1969, for such statistics); for sets of one distribution it is too wide.
    `kid_subsets` is the convention of most tables.
    """
    first, second = _checked(a, b)
    return _estimate(_sums(first, second, _cubic))


def kid_subsets(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], subsets: int = 100, size: int = 1000, seed: int = 0
) -> Estimate:
    """The mean of `kid` over random subsets of ``size`` samples of each set, as most tables have it.

    The error is the standard deviation over the subsets, as in those tables. It is no standard error: subsets
    overlap, and it depends on their size.
    """
    first, second = _checked(a, b)
    if subsets < 1 or size < 2:
        raise InputError(f"at least 1 subset of at least 2 samples is needed, not {subsets} of {size}.")
    if size > min(len(a), len(b)):
        raise InputError(
            f"subsets of {size} cannot be drawn from {len(a)} and {len(b)} samples; give more samples, or kid, which"
            " uses them all. Values of subsets of other sizes are unbiased too, but their deviations differ."
        )

    def chosen(features: Tensor, name: str, subset: int) -> Tensor:
        order = permutation(seed, f"kid/{name}", subset, len(features))[:size]
        return features[torch.from_numpy(order).to(features.device)]

    values = torch.tensor(
        [
            _estimate(_sums(chosen(first, "a", subset), chosen(second, "b", subset), _cubic)).value
            for subset in range(subsets)
        ],
        dtype=torch.float64,
    )
    method = f"standard deviation over {subsets} subsets of {size}"
    return Estimate(float(values.mean()), float(values.std(correction=0)), method)


def cmmd(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Estimate:
    r"""CMMD (Jayasumana et al., 2024): 1000 times the squared MMD of CLIP embeddings, which are normalized here.

    .. math::
        1000 \left( \frac{1}{n^2} \sum_{i, j} k(a_i, a_j) + \frac{1}{m^2} \sum_{i, j} k(b_i, b_j)
        - \frac{2}{n m} \sum_{i, j} k(a_i, b_j) \right), \qquad k(x, y) = e^{-\lVert x - y \rVert^2 / (2 \cdot 10^2)}

    The sums hold the pairs of a sample with itself, as in the authors' published code: it is a V-statistic, never
    negative, and biased upward by up to :math:`20 (1/n + 1/m)`. Here in float64: in float32, few digits of the
    differences of kernel values near 1 are left. The error is that of the jackknife over single samples.
    """
    first, second = (_normalized(features) for features in _checked(a, b))
    return _estimate(_sums(first, second, partial(_gaussian, sigma=10.0)), scale=1000.0, biased=True)


def _normalized(embeddings: Tensor) -> Tensor:
    embeddings = embeddings.double()
    lengths = embeddings.norm(dim=1, keepdim=True)
    if bool((lengths == 0).any()):
        raise InputError("embeddings of length 0 have no direction; check the encoder and its images.")
    return embeddings / lengths
