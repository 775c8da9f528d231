"""The Frechet distance of two sets of feature vectors, its standard error, and its limit for endlessly many samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics.estimate import Estimate
from sfumato.random import permutation

_CHUNK = 1024  # vectors that are held in float64 at once
_EPSILON = torch.finfo(torch.float64).eps
_PARTS = (1, 2, 4)  # into how many parts the sets are cut for the extrapolation


@dataclass(frozen=True)
class Moments:
    r"""The mean and covariance of a set of ``samples`` feature vectors, in float64.

    The unbiased covariance :math:`S` is kept as a root :math:`R` with :math:`S = R^\top R`, which holds all digits of
    a covariance that is nearly or exactly singular and needs no more rows than there are samples.
    """

    mean: Float[Tensor, " features"]
    root: Float[Tensor, "rank features"]
    samples: int

    @staticmethod
    def fit(features: Float[Tensor, "n d"]) -> Moments:
        """The moments of ``features`` ``(n, d)``, in memory for a few thousand of them beyond their own."""
        if features.ndim != 2 or features.shape[1] == 0:
            raise InputError(f"features must be a matrix (n, d) with d > 0, not of shape {tuple(features.shape)}.")
        if len(features) < 2:
            raise InputError(f"a covariance needs at least 2 samples, and there are {len(features)}.")
        features = _with_float64(features)
        mean = features.mean(dim=0, dtype=torch.float64)
        if not bool(torch.isfinite(mean).all()):
            raise InputError("features hold NaN or infinite values; the images they come from are broken.")
        return Moments(mean, _root(features, mean) / math.sqrt(len(features) - 1), len(features))

    @staticmethod
    def of(mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], samples: int) -> Moments:
        """Published statistics: a mean ``(d,)`` and an unbiased covariance ``(d, d)`` of ``samples`` vectors."""
        if mean.ndim != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
            raise InputError(
                "a mean (d,) and a covariance (d, d) are needed, not"
                f" {tuple(mean.shape)} and {tuple(covariance.shape)}."
            )
        if samples < 2:
            raise InputError(f"a covariance needs at least 2 samples, not {samples}.")
        mean, covariance = _with_float64(mean).double(), _with_float64(covariance).double()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise InputError("the mean or the covariance holds NaN or infinite values; the file is damaged.")
        scale = float(covariance.diagonal().abs().max())
        if float((covariance - covariance.T).abs().max()) > 1e-4 * scale:
            raise InputError("the covariance is not symmetric; give the matrix of the covariances of all features.")
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        if (least := float(values[0])) < -1e-4 * max(float(values[-1]), 0.0) or float(values[-1]) < 0.0:
            raise InputError(
                f"the covariance has the eigenvalue {least:.3g}, and none can be negative; check the file."
            )
        kept = values > max(float(values[-1]) * _EPSILON * len(values), 0.0)  # the rest is rounding
        return Moments(mean, values[kept].sqrt()[:, None] * vectors[:, kept].T, samples)

    @property
    def covariance(self) -> Float[Tensor, "features features"]:
        """The unbiased covariance ``(d, d)``."""
        return self.root.T @ self.root

    @property
    def biased(self) -> bool:
        """Whether there are no more samples than features, so that the covariance is singular.

        Distances then lie well above those of the distributions: compare them only between sets of the same sizes.
        """
        return self.samples <= len(self.mean)

    def distance(self, other: Moments) -> float:
        r"""The squared 2-Wasserstein distance of two Gaussians (Dowson and Landau, 1982; Frechet, 1957).

        .. math::
            \lVert \mu_a - \mu_b \rVert^2 + \operatorname{Tr}\left( S_a + S_b - 2 (S_a S_b)^{1/2} \right)

        With :math:`S = R^\top R`, :math:`\operatorname{Tr} (S_a S_b)^{1/2}` is the sum of the singular values of
        :math:`R_a R_b^\top`: singular covariances are as good as any, and no root is complex.
        """
        return _distance(self, other, _singular_values(_product(self, other)))


def _with_float64(tensor: Tensor) -> Tensor:
    """The tensor where float64 exists: Apple's GPUs have none."""
    return tensor.detach().cpu() if tensor.device.type == "mps" else tensor.detach()


def _centred(features: Tensor, mean: Tensor) -> Iterator[Tensor]:
    return (chunk.to(torch.float64, copy=True).sub_(mean) for chunk in features.split(_CHUNK))


def _with_square(total: Tensor, rows: Tensor) -> Tensor:
    """total + rows^T rows, of which only the lower triangle is set: on a CPU that is half of the work."""
    if total.device.type != "cpu":
        return total.addmm_(rows.T, rows)
    from scipy.linalg import get_blas_funcs

    if rows.shape[0] == 0 or rows.shape[1] == 0:
        return total
    # SciPy's matrices are in the order of Fortran, those of PyTorch are their transposes
    (syrk,) = get_blas_funcs(["syrk"], dtype=np.float64)
    return torch.from_numpy(syrk(1.0, rows.numpy().T, 1.0, total.numpy().T, overwrite_c=True).T)


def _root(features: Tensor, mean: Tensor) -> Tensor:
    """R with R^T R = sum of (x - mean) (x - mean)^T: Cholesky's factor if it has the digits, else that of QR."""
    if len(features) > features.shape[1]:
        scatter = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
        for chunk in _centred(features, mean):
            scatter = _with_square(scatter, chunk)
        factor, failed = torch.linalg.cholesky_ex(scatter)
        if not bool(failed) and bool(factor.diagonal().min().square() > 1e-9 * scatter.diagonal().max()):
            return factor.T
    root = features.new_zeros(0, features.shape[1], dtype=torch.float64)
    for chunk in _centred(features, mean):
        root = torch.linalg.qr(torch.cat([root, chunk]), mode="r").R
    return root


def _product(a: Moments, b: Moments) -> Tensor:
    if len(a.mean) != len(b.mean):
        raise InputError(f"the sets have {len(a.mean)} and {len(b.mean)} features; images need one shape.")
    return a.root @ b.root.to(a.root.device).T


def _singular_values(product: Tensor) -> Tensor:
    """As roots of eigenvalues where that loses no digits: it is 3 times as fast as their own algorithm."""
    wide = product if product.shape[0] <= product.shape[1] else product.T
    values = _accurate_roots(torch.linalg.eigvalsh(_outer_square(wide)))
    return torch.linalg.svdvals(product) if values is None else values


def _outer_square(product: Tensor) -> Tensor:
    """P P^T, of which only the lower triangle is set."""
    return _with_square(product.new_zeros(len(product), len(product)), product.T)


def _accurate_roots(squares: Tensor) -> Tensor | None:
    """The roots of ascending eigenvalues, if the sum of the roots is known to 9 digits.

    An eigenvalue is off by up to epsilon times the largest, its root by that over twice the root.
    """
    if len(squares) == 0 or float(squares[0]) <= 0.0:
        return None
    values = squares.sqrt()
    lost = float((_EPSILON * squares[-1] / (2.0 * values)).sum())
    return values if lost < 1e-9 * float(values.sum()) else None


def _distance(a: Moments, b: Moments, overlap: Tensor) -> float:
    means = (a.mean - b.mean.to(a.mean.device)).square().sum()
    traces = float(a.root.square().sum()) + float(b.root.square().sum())
    return max(0.0, float(means) + traces - 2.0 * float(overlap.sum()))


def _warn_if_biased(a: Moments, b: Moments) -> None:
    if a.biased or b.biased:
        warnings.warn(
            f"a Frechet distance of {a.samples} and {b.samples} samples in {len(a.mean)}"
            " features is dominated by the bias of few samples; give more samples than features.",
            SfumatoWarning,
            stacklevel=3,
        )


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """The Frechet distance (Heusel et al., 2017, in any features) of feature vectors ``(n, d)`` and ``(m, d)``.

    It is biased upward, roughly as the number of features over that of samples: compare it with a real-vs-real
    reference, the distance of two sets of real images of the same sizes. With no more samples than features it warns.
    """
    first, second = Moments.fit(a), Moments.fit(b)
    _warn_if_biased(first, second)
    return first.distance(second)


def _maps(a: Moments, b: Moments) -> tuple[Tensor, Tensor, Tensor]:
    r"""The singular values of R_a R_b^T, and A, B with T_ab = A^T A and T_ba = B^T B.

    T_ab is the optimal map from a to b. With :math:`R_a R_b^\top = U s V^\top` it is
    :math:`R_b^\top V s^{-1} V^\top R_b`, and :math:`V^\top = s^{-1} U^\top R_a R_b^\top`: no covariance is
    inverted, and of :math:`s` only what lies above rounding.
    """
    product = _product(a, b)
    if product.shape[0] > product.shape[1]:
        values, back, forth = _maps(b, a)
        return values, forth, back
    squares, left = torch.linalg.eigh(_outer_square(product))
    values = squares.clamp(min=0.0).sqrt()
    inverse = (
        torch.where(values > 1e-6 * values.max(), values.rsqrt(), 0.0)[:, None] if len(values) else values[:, None]
    )
    forth, back = inverse**3 * (left.T @ product @ b.root.to(product.device)), inverse * (left.T @ a.root)
    accurate = _accurate_roots(squares)
    return torch.linalg.svdvals(product) if accurate is None else accurate, forth, back


def _influence_variance(features: Tensor, moments: Moments, shift: Tensor, half: Tensor) -> float:
    r"""The variance of 2 shift (x - mu) + (x - mu)^T (I - T) (x - mu) over the samples, with T = half^T half."""
    influence = [
        chunk @ (2.0 * shift) + chunk.square().sum(dim=1) - (chunk @ half.T).square().sum(dim=1)
        for chunk in _centred(_with_float64(features), moments.mean)
    ]
    return float(torch.cat(influence).var())


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"] | Moments) -> Estimate:
    r"""The Frechet distance of feature vectors ``(n, d)`` and ``(m, d)`` with its standard error.

    The error is that of the delta method. The influence of a sample :math:`x` of a on the distance is

    .. math::
        2 (\mu_a - \mu_b)^\top (x - \mu_a) + (x - \mu_a)^\top (I - T_{ab}) (x - \mu_a)
        - \operatorname{Tr} (I - T_{ab}) S_a

    with :math:`T_{ab}` the optimal map from a to b (the gradient of the distance in :math:`S_a` is :math:`I - T_{ab}`),
    and the variance of the distance is that of the influences over :math:`n`, plus the same of b over :math:`m`.

    It holds for few samples in many features as well; for sets of one distribution, where the influences vanish and
    the error is of second order, it is too wide by up to the root of 2. It knows nothing of the bias (see
    `frechet_distance` and `frechet_infinity`).

    Args:
        a: the first set.
        b: the second, or its published moments, which are then taken as exact.
    """
    first, second = Moments.fit(a), b if isinstance(b, Moments) else Moments.fit(b)
    _warn_if_biased(first, second)
    values, forth, back = _maps(first, second)
    shift = first.mean - second.mean.to(first.mean.device)
    variance = _influence_variance(a, first, shift, forth) / first.samples
    if not isinstance(b, Moments):
        variance += _influence_variance(b, second, -shift, back) / second.samples
    return Estimate(_distance(first, second, values), math.sqrt(variance), "delta method")


def frechet_infinity(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"] | Moments, seed: int = 0) -> Estimate:
    r"""The Frechet distance for endlessly many samples, by extrapolation (Chong and Forsyth, 2020).

    The bias falls as :math:`1/N`, so the distance is fitted as a line in :math:`1/N` and read at 0. Both sets are
    shuffled and cut into 1, 2 and 4 parts, so that the points of the fit are at :math:`1/n`, :math:`2/n` and
    :math:`4/n` and each is the mean over parts that share no sample. It may be negative, as an unbiased estimate of a
    small number is.

    The error is that of the delta method, which is the same for the intercept, and the difference that a fitted
    parabola makes: how far from a line the points are. It is wide, and rightly so, where the quarters have hardly
    more samples than features.

    Args:
        a: the first set; a quarter of it must have more samples than features.
        b: the second; or its published moments, whose own bias stays (it is small if their ``samples`` are many more
            than features), and whose own error is not known.
        seed: of the shuffling.
    """
    parts = max(_PARTS)
    sets = {"a": a} if isinstance(b, Moments) else {"a": a, "b": b}
    for name, features in sets.items():
        if features.ndim == 2 and len(features) // parts <= features.shape[1]:
            raise InputError(
                f"the extrapolation needs more samples in a quarter of each set than there are features; {name} has"
                f" {len(features)} samples of {features.shape[1]} features. Give more, or use frechet."
            )
    whole = frechet(a, b)
    shuffled = [_shuffled(features, seed, name) for name, features in sets.items()]
    points = [whole.value]
    for count in _PARTS[1:]:
        cuts = [[Moments.fit(part) for part in features.tensor_split(count)] for features in shuffled]
        others = [b] * count if isinstance(b, Moments) else cuts[1]
        points.append(sum(x.distance(y) for x, y in zip(cuts[0], others, strict=True)) / count)
    line, parabola = (_intercept(_PARTS, points, degree) for degree in (1, 2))
    error = math.hypot(whole.error or 0.0, line - parabola)
    return Estimate(line, error, "delta method and the curvature of the fit")


def _shuffled(features: Tensor, seed: int, name: str) -> Tensor:
    order = torch.from_numpy(permutation(seed, f"frechet/{name}", 0, len(features)))
    return features[order.to(features.device)]


def _intercept(x: tuple[int, ...], y: list[float], degree: int) -> float:
    """Of the polynomial of least squares."""
    powers = torch.tensor(x, dtype=torch.float64)[:, None] ** torch.arange(degree + 1)
    return float(torch.linalg.lstsq(powers, torch.tensor(y, dtype=torch.float64)[:, None]).solution[0])
