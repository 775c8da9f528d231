"""Gaussian data and mixtures of Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.level import Data, Level, broadcast
from sfumato.diffusion.oracle.base import Levels, Oracle, Rows, finite
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError

# eigenvalues of matrices that share the eigenvectors of the covariances, in the order of Covariances.spectrum
Eigenvalues = Float64[Tensor, "levels components eigenvalues"]


class Split(NamedTuple):
    """Vectors ``(rows, components, dims)``, and their coordinates along the basis of each component."""

    whole: Float64[Tensor, "rows components dims"]
    along: Float64[Tensor, "rows components rank"]


@dataclass(frozen=True, slots=True)
class Covariances:
    r"""The covariances of the components of a mixture, :math:`C_k = U_k \Lambda_k U_k^\top + r_k (I - U_k U_k^\top)`.

    The ``basis`` has orthonormal columns :math:`U_k`, or is None for the coordinate axes; ``values`` are the variances
    along it, ``rest`` is the variance across it. A variance of 0 is treated exactly.
    """

    basis: Float64[Tensor, "components dims rank"] | None
    values: Float64[Tensor, "components rank"]
    rest: Float64[Tensor, "components"]
    dimensions: int

    @staticmethod
    def full(matrices: Tensor) -> Covariances:
        """Any covariances, ``(K, D, D)`` or ``(D, D)`` for one; eigenvalues within rounding of 0 become 0."""
        c = finite(matrices, "covariances")
        c = c[None] if c.ndim == 2 else c
        if float((c - c.mT).abs().max()) > 1e-6 * float(c.abs().max()):
            raise InputError("A covariance must be symmetric.")
        values, basis = torch.linalg.eigh(0.5 * (c + c.mT))
        largest = values.abs().amax(1, keepdim=True)
        if bool((values < -1e-6 * largest).any()):
            raise InputError(f"A covariance can't have a negative eigenvalue; the lowest is {float(values.min()):.4g}.")
        values = torch.where(values > largest * c.shape[1] * torch.finfo(torch.float64).eps, values, 0.0)
        return Covariances(basis, values, torch.zeros_like(values[:, 0]), c.shape[1])

    @staticmethod
    def diagonal(variances: Tensor) -> Covariances:
        """Independent dimensions with variances ``(K, *shape)``."""
        values = _variances(variances)
        values = values.reshape(len(values), -1)
        return Covariances(None, values, torch.zeros_like(values[:, 0]), values.shape[1])

    @staticmethod
    def isotropic(variances: Tensor, dimensions: int) -> Covariances:
        """Multiples of the identity, ``variances`` ``(K,)``; 0 is a point mass."""
        rest = _variances(variances).reshape(-1)
        return Covariances(rest.new_zeros(len(rest), dimensions, 0), rest.new_zeros(len(rest), 0), rest, dimensions)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def codimension(self) -> int:
        """The number of directions across the basis."""
        return self.dimensions - self.values.shape[1]

    @property
    def spectrum(self) -> Float64[Tensor, "components eigenvalues"]:
        """The variances along the basis, followed by the variance across it if there are such directions."""
        return torch.cat([self.values, self.rest[:, None]], 1) if self.codimension else self.values

    @property
    def multiplicity(self) -> Float64[Tensor, "eigenvalues"]:
        """The number of directions of each eigenvalue."""
        ones = self.values.new_ones(self.values.shape[1])
        return torch.cat([ones, ones.new_full((1,), float(self.codimension))]) if self.codimension else ones

    def at(self, alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]) -> Eigenvalues:
        r"""The eigenvalues of :math:`\alpha^2 C_k + \sigma^2 I`."""
        return alpha.square()[:, None, None] * self.spectrum + sigma.square()[:, None, None]

    def split(self, z: Float64[Tensor, "rows components dims"]) -> Split:
        return Split(z, z if self.basis is None else torch.einsum("bkd,kdr->bkr", z, self.basis))

    def squares(self, z: Split) -> Float64[Tensor, "rows components eigenvalues"]:
        """The squared length of vectors along the eigenvectors of each eigenvalue."""
        along = z.along.square()
        if not self.codimension:
            return along
        across = z.whole - self._join(z.along) if self.values.shape[1] else z.whole
        return torch.cat([along, across.square().sum(2, keepdim=True)], 2)

    def apply(self, matrix: Eigenvalues, z: Split) -> Float64[Tensor, "rows components dims"]:
        r"""The product of matrices with vectors: :math:`U (M - m I) U^\top + m I`, with ``m`` across the basis."""
        if not self.codimension:
            return self._join(matrix * z.along)
        across = matrix[..., -1:] * z.whole
        return across + self._join((matrix[..., :-1] - matrix[..., -1:]) * z.along) if self.values.shape[1] else across

    def _join(self, along: Tensor) -> Float64[Tensor, "rows components dims"]:
        return along if self.basis is None else torch.einsum("bkr,kdr->bkd", along, self.basis)


def _variances(values: Tensor) -> Tensor:
    tensor = finite(values, "variances")
    if bool((tensor < 0.0).any()):
        raise InputError(f"A variance can't be negative; got {float(tensor.min()):.4g}.")
    return tensor


class MixtureOracle(Oracle):
    r"""The exact denoiser of a mixture of Gaussians, :math:`q(x_0) = \sum_k w_k \mathcal N(\mu_k, C_k)`.

    With :math:`S_k = \alpha^2 C_k + \sigma^2 I`, the marginal is the mixture of :math:`\mathcal N(\alpha \mu_k, S_k)`,
    and with the responsibilities :math:`\gamma_k(x_t)` of its components

    .. math::
        E[x_0 | x_t] = \sum_k \gamma_k m_k, \qquad m_k = \mu_k + \alpha C_k S_k^{-1} (x_t - \alpha \mu_k), \qquad
        \operatorname{tr} \operatorname{Cov}[x_0 | x_t] = \sum_k \gamma_k
        \left(\sigma^2 \operatorname{tr} C_k S_k^{-1} + \lVert m_k - E[x_0 | x_t] \rVert^2\right)

    (Bishop 2006, eqs. 2.113 to 2.117, for each component). Singular covariances, down to point masses, are exact.
    The ``means`` are ``(K, *shape)``; the ``weights`` ``(K,)`` are positive and sum to 1; by default they are equal.
    """

    def __init__(
        self,
        means: Tensor,
        covariances: Covariances,
        weights: Tensor | None = None,
        *,
        schedule: Schedule | None = None,
    ) -> None:
        centres = finite(means, "means")
        shape = tuple(centres.shape[1:])
        super().__init__(shape, schedule=schedule, row_size=centres.numel(), device=centres.device)
        self.means: Float64[Tensor, "components dims"] = centres.reshape(len(centres), self.dimensions)
        self.covariances = covariances
        if len(covariances) != len(centres) or covariances.dimensions != self.dimensions:
            raise InputError(
                f"There are {len(centres)} means of {self.dimensions} dimensions, but {len(covariances)} "
                f"covariances of {covariances.dimensions}."
            )
        flat = int(((covariances.spectrum == 0.0) * covariances.multiplicity).sum(1).max())
        if flat:
            self.no_density = (
                f"A covariance is singular, with no variance in {flat} of {self.dimensions} directions, so that the "
                "data have no density"
            )
        equal = torch.full((len(centres),), 1.0 / len(centres), dtype=torch.float64)
        w = (equal if weights is None else finite(weights, "weights")).to(centres.device)
        if w.shape != equal.shape or not bool((w > 0.0).all()) or abs(float(w.sum()) - 1.0) > 1e-6:
            raise InputError(f"The weights must be {len(centres)} positive numbers that sum to 1, one per component.")
        self.weights: Float64[Tensor, "components"] = w / w.sum()

    @staticmethod
    def fit(
        images: Data,
        components: int,
        covariance: Literal["full", "diag"] = "full",
        seed: int = 0,
        *,
        floor: float = 1e-6,
        schedule: Schedule | None = None,
    ) -> MixtureOracle:
        """The mixture fitted to images ``(N, *shape)`` by scikit-learn's expectation maximization.

        ``floor`` is added to every variance, because the likelihood would be infinite at a variance of 0.
        """
        from sklearn.mixture import GaussianMixture

        options: Any = {"max_iter": 500, "random_state": random.fold(seed, "mixture") % 2**32}
        model = GaussianMixture(components, covariance_type=covariance, reg_covar=floor, **options)
        try:
            model.fit(_rows(images).numpy())
        except ValueError as error:
            raise InputError(
                f"The fit of {components} components to {len(images)} images failed ({error}); take fewer components "
                f"or a floor above {floor:g}."
            ) from error
        fitted = torch.from_numpy(model.covariances_)
        covariances = Covariances.diagonal(fitted) if covariance == "diag" else Covariances.full(fitted)
        means = torch.from_numpy(model.means_).reshape(components, *images.shape[1:])
        return MixtureOracle(means, covariances, torch.from_numpy(model.weights_), schedule=schedule)

    def log_prob_rows(self, x: Rows, alpha: Levels, sigma: Levels) -> Float64[Tensor, "rows"]:
        return self._log_joint(self._split(x, alpha), self.covariances.at(alpha, sigma)).logsumexp(1)

    def combine_rows(self, x: Rows, alpha: Levels, sigma: Levels, k0: Levels, k_eps: Levels) -> Rows:
        c, z, s = self.covariances, self._split(x, alpha), self.covariances.at(alpha, sigma)
        weights = self._responsibilities(z, s)
        matrix = ((k0 * alpha)[:, None, None] * c.spectrum + (k_eps * sigma)[:, None, None]) / s
        return k0[:, None] * (weights @ self.means) + torch.einsum("bk,bkd->bd", weights, c.apply(matrix, z))

    def trace_rows(self, x: Rows, alpha: Levels, sigma: Levels) -> Float64[Tensor, "rows"]:
        c, z, s = self.covariances, self._split(x, alpha), self.covariances.at(alpha, sigma)
        weights, shrink = self._responsibilities(z, s), c.spectrum / s
        means = self.means + alpha[:, None, None] * c.apply(shrink, z)
        between = (means - torch.einsum("bk,bkd->bd", weights, means)[:, None]).square().sum(2)
        return (weights * (sigma.square()[:, None] * (shrink @ c.multiplicity) + between)).sum(1)

    def marginal_cdf(self, x: Float[Tensor, "rows"], level: Level) -> Float[Tensor, "rows"]:
        r"""The distribution function in one dimension, :math:`\sum_k w_k \Phi((x - \alpha \mu_k) / S_k^{1/2})`."""
        rows, alpha, sigma = self._rows(x.reshape(len(x), *self.shape), level)
        difference = rows - alpha[:, None] * self.means[:, 0]
        variance = self.covariances.at(alpha, sigma)[..., 0].expand_as(difference)
        # the distribution function of a component with no variance is a step
        step = torch.where(difference < 0.0, -torch.inf, torch.inf)
        z = torch.where(variance > 0.0, difference / variance.sqrt(), step)
        return (torch.special.ndtr(z) @ self.weights).to(x)

    def sample(self, count: int, seed: int, *, first: int = 0, dtype: torch.dtype = torch.float32) -> Data:
        bounds = self.weights.cumsum(0).cpu()
        choice = torch.searchsorted(bounds, random.uniform(seed, "oracle component", first, count), right=True)
        choice = choice.clamp(max=len(bounds) - 1).to(self.device)
        noise = random.normal(seed, "oracle", first, count, (self.dimensions,)).to(self.device, torch.float64)
        c = self.covariances
        # every row has its own basis
        size = max(1, self.elements // (self.dimensions * max(1, c.values.shape[1])))
        parts: list[Tensor] = []
        for k, row in zip(choice.split(size), noise.split(size), strict=True):
            each = Covariances(None if c.basis is None else c.basis[k], c.values[k], c.rest[k], c.dimensions)
            # here rows take the place of components, since each row has its own
            parts.append(self.means[k] + each.apply(each.spectrum.sqrt()[None], each.split(row[None]))[0])
        return torch.cat(parts).to(dtype).reshape(count, *self.shape)

    def _split(self, x: Tensor, alpha: Tensor) -> Split:
        return self.covariances.split(x[:, None] - alpha[:, None, None] * self.means)

    def _responsibilities(self, z: Split, s: Eigenvalues) -> Float64[Tensor, "rows components"]:
        # a single component needs no density
        return self._log_joint(z, s).softmax(1) if len(self.weights) > 1 else torch.ones_like(z.whole[..., 0])

    def _log_joint(self, z: Split, s: Eigenvalues) -> Float64[Tensor, "rows components"]:
        r""":math:`\log w_k + \log \mathcal N(x_t; \alpha \mu_k, S_k)`."""
        c = self.covariances
        distance, log_det = (c.squares(z) / s).sum(2), s.log() @ c.multiplicity
        return self.weights.log() - 0.5 * (distance + log_det + self.dimensions * math.log(2.0 * math.pi))


class GaussianOracle(MixtureOracle):
    r"""The exact denoiser of Gaussian data, :math:`q(x_0) = \mathcal N(\mu, C)`: the Wiener filter."""

    def __init__(self, mean: Tensor, covariance: Tensor | Covariances, *, schedule: Schedule | None = None) -> None:
        if not isinstance(covariance, Covariances):
            covariance = Covariances.full(covariance)
        super().__init__(finite(mean, "mean")[None], covariance, schedule=schedule)

    @staticmethod
    def fit(images: Data, *, schedule: Schedule | None = None) -> GaussianOracle:  # pyright: ignore[reportIncompatibleMethodOverride]
        r"""The Gaussian with the mean and covariance (:math:`\frac1N \sum`) of the ``images``, however many."""
        rows = _rows(images)
        # relative to the first image, so that constant dimensions are exactly 0
        relative = rows - rows[0]
        offset = relative.mean(0)
        _, singular, basis = torch.linalg.svd((relative - offset) / math.sqrt(len(rows)), full_matrices=False)
        rank = int((singular > singular[0] * max(rows.shape) * torch.finfo(torch.float64).eps).sum())
        values = singular[:rank].square()[None]
        covariance = Covariances(basis[:rank].mT.contiguous()[None], values, values.new_zeros(1), rows.shape[1])
        return GaussianOracle((rows[0] + offset).reshape(images.shape[1:]), covariance, schedule=schedule)

    @property
    def variances(self) -> Float64[Tensor, "dims"]:
        """The variances along all principal axes, in descending order."""
        c = self.covariances
        return torch.cat([c.values[0], c.rest.expand(c.codimension)]).sort(descending=True).values

    def principal_coordinates(self, x0: Data, count: int) -> Float64[Tensor, "batch count"]:
        """The coordinates of clean data, with the mean subtracted, along the ``count`` leading principal axes."""
        values = self.covariances.values[0]
        rows, alpha, _ = self._rows(x0, Level(0.0, 1.0, 0.0))
        varied = int((values > 0.0).sum())
        if count > varied:
            raise InputError(f"These data vary along {varied} principal axes; {count} were asked for.")
        order = values.argsort(descending=True, stable=True)[:count]
        return self._split(rows, alpha).along[:, 0, order]

    def flow(self, x: Data, t: Level, s: Level) -> Data:
        r"""The exact solution of the probability flow from ``t`` to ``s`` (Y. Song et al. 2021, eq. 13, solved).

        :math:`x_s = \alpha_s \mu + S_s^{1/2} S_t^{-1/2} (x_t - \alpha_t \mu)`.
        """
        rows, alpha, sigma = self._rows(x, t)
        if self.no_density is not None and bool((sigma == 0.0).any()):
            raise InputError(f"{self.no_density}; the flow starts at a level with sigma > 0.")
        _, alpha_s, sigma_s = self._rows(x, s)
        ratio = (self.covariances.at(alpha_s, sigma_s) / self.covariances.at(alpha, sigma)).sqrt()
        moved = self.covariances.apply(ratio, self._split(rows, alpha))[:, 0]
        return (broadcast(alpha_s, moved) * self.means + moved).to(x).reshape(x.shape)


def _rows(images: Tensor) -> Float64[Tensor, "batch dims"]:
    rows = finite(images, "images")
    if rows.numel() == 0:
        raise InputError("A fit needs at least 1 image.")
    return rows.cpu().reshape(len(rows), -1)
