"""Gaussian data and mixtures of Gaussians."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.level import Level, broadcast
from sfumato.diffusion.oracle.base import Oracle, check_count, finite
from sfumato.diffusion.oracle.covariance import Covariances, Eigenvalues, Split
from sfumato.errors import InputError, SfumatoWarning, nearest

COVARIANCES = {"full": "full", "diag": "diag", "low_rank": "full"}
"""The kinds of covariance a mixture is fitted with, and what scikit-learn fits for them."""


class MixtureOracle(Oracle):
    r"""The exact denoiser of a mixture of Gaussians, :math:`q(x_0) = \sum_k w_k \mathcal N(\mu_k, C_k)`.

    With :math:`S_k = \alpha^2 C_k + \sigma^2 I`, the marginal is the mixture of :math:`\mathcal N(\alpha \mu_k, S_k)`,
    and with the responsibilities :math:`\gamma_k(x_t)` of its components

    .. math::
        E[x_0 | x_t] = \sum_k \gamma_k m_k, \qquad m_k = \mu_k + \alpha C_k S_k^{-1} (x_t - \alpha \mu_k), \qquad
        \operatorname{tr} \operatorname{Cov}[x_0 | x_t] = \sum_k \gamma_k
        \left(\sigma^2 \operatorname{tr} C_k S_k^{-1} + \lVert m_k - E[x_0 | x_t] \rVert^2\right)

    (Bishop 2006, eqs. 2.113 to 2.117, for each component.)
    Eigenvectors are found once, so that a level costs only algebra of eigenvalues. Singular covariances, down to point
    masses, are exact.

    Args:
        means: ``(K, *shape)``.
        covariances: those of the ``K`` components.
        weights: ``(K,)``, positive with sum 1; by default equal.

    Raises:
        InputError: if the numbers of components or dimensions differ, a number is not finite, or the weights are none.
    """

    def __init__(self, means: Tensor, covariances: Covariances, weights: Tensor | None = None) -> None:
        centres = finite(means, "means")
        if centres.ndim == 0 or len(centres) == 0:
            raise InputError("A mixture needs means of shape (K, *shape) with at least one component.")
        super().__init__(tuple(centres.shape[1:]))
        self.means: Float64[Tensor, "components dims"] = centres.reshape(len(centres), self.dimensions)
        self.covariances = covariances
        if len(covariances) != len(centres) or covariances.dimensions != self.dimensions:
            raise InputError(
                f"There are {len(centres)} means of {self.dimensions} dimensions, but {len(covariances)} "
                f"covariances of {covariances.dimensions}; both must be of the same components."
            )
        equal = torch.full((len(centres),), 1.0 / len(centres), dtype=torch.float64)
        w = (equal if weights is None else finite(weights, "weights")).to(centres.device)
        if w.shape != equal.shape or not bool((w > 0.0).all()) or abs(float(w.sum()) - 1.0) > 1e-6:
            raise InputError(f"The weights of {len(centres)} components must be as many positive numbers of sum 1.")
        self.weights: Float64[Tensor, "components"] = w / w.sum()

    @staticmethod
    def fit(
        images: Float[Tensor, "batch *shape"],
        components: int,
        covariance: Literal["full", "diag", "low_rank"] = "full",
        seed: int = 0,
        *,
        rank: int = 8,
        floor: float = 1e-6,
    ) -> MixtureOracle:
        r"""The mixture that scikit-learn's expectation maximization finds for ``images``.

        ``low_rank`` keeps the ``rank`` largest eigenvalues of each full covariance and puts their mean in place of the
        others, which is the best such covariance for the component (Tipping and Bishop 1999, eq. 8).

        Args:
            images: the data, ``(N, *shape)``.
            components: how many Gaussians.
            covariance: their kind.
            seed: of the initialization.
            rank: of the ``low_rank`` covariances.
            floor: a variance added to every direction; without it, directions in which a component does not vary make
                its likelihood infinite.

        Raises:
            InputError: if there are fewer images than components, the kind is unknown, an image is not finite, or the
                fit fails because ``floor`` is too small.

        Warns:
            SfumatoWarning: the fit has not converged.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        if covariance not in COVARIANCES:
            raise InputError(f"There is no covariance {covariance!r}{nearest(covariance, COVARIANCES)}")
        rows = _rows(images)
        if not 1 <= components <= len(rows) or len(rows) < 2:
            raise InputError(
                f"A mixture needs at least 1 component, and at least as many images and 2; got {components} components "
                f"for {len(rows)} images."
            )
        if rank < 1 or floor < 0.0:
            raise InputError(f"rank must be at least 1 and floor at least 0; got {rank} and {floor}.")
        model = GaussianMixture(
            components,
            covariance_type=COVARIANCES[covariance],
            reg_covar=floor,
            max_iter=500,
            random_state=random.fold(seed, "mixture") % 2**32,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                model.fit(rows.numpy())
            except ValueError as error:
                raise InputError(
                    f"The fit of {components} components failed: a component does not vary in some direction, or has "
                    f"too few images. Take fewer components or a floor above {floor:g}."
                ) from error
        if not model.converged_:
            warnings.warn(
                f"The fit of {components} components has not converged in 500 iterations; take fewer components.",
                SfumatoWarning,
                stacklevel=2,
            )
        found = torch.from_numpy(model.covariances_)
        if covariance == "diag":
            covariances = Covariances.diagonal(found)
        else:
            covariances = Covariances.full(found)
            covariances = _truncate(covariances, rank) if covariance == "low_rank" else covariances
        means = torch.from_numpy(model.means_).reshape(components, *images.shape[1:])
        return MixtureOracle(means, covariances, torch.from_numpy(model.weights_))

    @property
    def rows_at_once(self) -> int:
        return max(1, self.elements // self.means.numel())

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def no_density(self) -> str | None:
        flat = self.covariances.flat
        what = f"A covariance is singular, without variance in {flat} of {self.dimensions} directions"
        return f"{what}, so that the data have no density" if flat else None

    def log_prob_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> Float64[Tensor, "rows"]:
        return self._log_joint(self._split(x, alpha), self.covariances.at(alpha, sigma)).logsumexp(1)

    def posterior_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> tuple[Float64[Tensor, "rows dims"], Float64[Tensor, "rows dims"]]:
        c, z, s = self.covariances, self._split(x, alpha), self.covariances.at(alpha, sigma)
        weights = self._responsibilities(z, s)
        x0 = weights @ self.means + alpha[:, None] * c.mix(weights, self._shrink(s), z)
        return x0, sigma[:, None] * c.mix(weights, Eigenvalues(1.0 / s.along, 1.0 / s.across), z)

    def combine_rows(
        self,
        x: Float64[Tensor, "rows dims"],
        alpha: Float64[Tensor, "levels"],
        sigma: Float64[Tensor, "levels"],
        k0: Float64[Tensor, "levels"],
        k_eps: Float64[Tensor, "levels"],
    ) -> Float64[Tensor, "rows dims"]:
        c, z, s = self.covariances, self._split(x, alpha), self.covariances.at(alpha, sigma)
        weights = self._responsibilities(z, s)
        signal, noise = (k0 * alpha)[:, None], (k_eps * sigma)[:, None]
        along = (signal[..., None] * c.values + noise[..., None]) / s.along
        matrix = Eigenvalues(along, (signal * c.rest + noise) / s.across)
        return k0[:, None] * (weights @ self.means) + c.mix(weights, matrix, z)

    def trace_rows(
        self, x: Float64[Tensor, "rows dims"], alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]
    ) -> Float64[Tensor, "rows"]:
        c, z, s = self.covariances, self._split(x, alpha), self.covariances.at(alpha, sigma)
        weights, shrink = self._responsibilities(z, s), self._shrink(s)
        means = self.means + alpha[:, None, None] * c.apply(shrink, z)
        between = (means - torch.einsum("bk,bkd->bd", weights, means)[:, None]).square().sum(2)
        return (weights * (sigma.square()[:, None] * c.trace(shrink) + between)).sum(1)

    def marginal_cdf(self, x: Float[Tensor, "rows"], level: Level) -> Float[Tensor, "rows"]:
        r"""The distribution function of diffused data of one dimension,
        :math:`\sum_k w_k \Phi\!\left((x - \alpha \mu_k) / S_k^{1/2}\right)`.

        Raises:
            InputError: if the data have more than one dimension, or the level another shape than ``x``.
        """
        if self.dimensions != 1:
            raise InputError(f"A distribution function is of one dimension; these data have {self.dimensions}.")
        rows, alpha, sigma = self._rows(x.reshape(len(x), *self.shape), level)
        apart = rows - alpha[:, None] * self.means[:, 0]
        variance = self.covariances.trace(self.covariances.at(alpha, sigma)).expand_as(apart)
        # a component without spread is a step
        step = torch.where(apart < 0.0, -torch.inf, torch.inf)
        return (torch.special.ndtr(torch.where(variance > 0.0, apart / variance.sqrt(), step)) @ self.weights).to(x)

    def sample(
        self, count: int, seed: int, *, first: int = 0, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "batch *shape"]:
        check_count(count, first)
        bounds = self.weights.cumsum(0).cpu()
        choice = torch.searchsorted(bounds, random.uniform(seed, "oracle component", first, count), right=True)
        choice = choice.clamp(max=len(bounds) - 1).to(self.device)
        noise = random.normal(seed, "oracle", first, count, (self.dimensions,)).to(self.device, torch.float64)
        c = self.covariances
        # a basis for each row
        rows = max(1, self.elements // (self.dimensions * max(1, c.values.shape[1])))
        parts: list[Tensor] = []
        for k, row in zip(choice.split(rows), noise.split(rows), strict=True):
            of_each = Covariances(None if c.basis is None else c.basis[k], c.values[k], c.rest[k], c.dimensions)
            # each row has its own component here, so that the rows stand where components do
            root = Eigenvalues(of_each.values.sqrt()[None], of_each.rest.sqrt()[None])
            parts.append(self.means[k] + of_each.apply(root, of_each.split(row[None]))[0])
        return torch.cat(parts).to(dtype).reshape(count, *self.shape)

    def _split(self, x: Tensor, alpha: Tensor) -> Split:
        return self.covariances.split(x[:, None] - alpha[:, None, None] * self.means)

    def _shrink(self, s: Eigenvalues) -> Eigenvalues:
        """:math:`C_k S_k^{-1}`."""
        return Eigenvalues(self.covariances.values / s.along, self.covariances.rest / s.across)

    def _responsibilities(self, z: Split, s: Eigenvalues) -> Float64[Tensor, "rows components"]:
        # a single component has no need of its density
        return self._log_joint(z, s).softmax(1) if len(self.weights) > 1 else torch.ones_like(z.whole[..., 0])

    def _log_joint(self, z: Split, s: Eigenvalues) -> Float64[Tensor, "rows components"]:
        r""":math:`\log w_k + \log \mathcal N(x_t; \alpha \mu_k, S_k)`."""
        distance = (z.along.square() / s.along).sum(2)
        log_det = s.along.log().sum(2)
        across = self.covariances.across(z)
        if across is not None:
            distance = distance + across.square().sum(2) / s.across
            log_det = log_det + self.covariances.codimension * s.across.log()
        return self.weights.log() - 0.5 * (distance + log_det + self.dimensions * math.log(2.0 * math.pi))


class GaussianOracle(MixtureOracle):
    r"""The exact denoiser of Gaussian data, :math:`q(x_0) = \mathcal N(\mu, C)`: the Wiener filter.

    :math:`E[x_0 | x_t] = \mu + \alpha C (\alpha^2 C + \sigma^2 I)^{-1} (x_t - \alpha \mu)`.

    Args:
        mean: of the shape of a sample.
        covariance: ``(D, D)``, or one of :class:`Covariances`.

    Raises:
        InputError: if the dimensions differ or ``covariance`` is none.
    """

    def __init__(self, mean: Tensor, covariance: Tensor | Covariances) -> None:
        if not isinstance(covariance, Covariances):
            covariance = Covariances.full(covariance)
        super().__init__(finite(mean, "mean")[None], covariance)

    @staticmethod
    def fit(images: Float[Tensor, "batch *shape"]) -> GaussianOracle:  # pyright: ignore[reportIncompatibleMethodOverride]
        r"""The Gaussian with the mean and the covariance (:math:`\frac1N \sum`) of ``images``, ``(N, *shape)``.

        No image is too many or too few: the covariance has the rank that the images give it, 0 for a single one.

        Raises:
            InputError: if there is no image or one is not finite.
        """
        rows = _rows(images)
        # from the first image, so that what is constant is exactly 0
        apart = rows - rows[0]
        offset = apart.mean(0)
        _, singular, basis = torch.linalg.svd((apart - offset) / math.sqrt(len(rows)), full_matrices=False)
        rank = int((singular > singular[0] * max(rows.shape) * torch.finfo(torch.float64).eps).sum())
        values = singular[:rank].square()[None]
        covariance = Covariances(basis[:rank].mT.contiguous()[None], values, values.new_zeros(1), rows.shape[1])
        return GaussianOracle((rows[0] + offset).reshape(images.shape[1:]), covariance)

    @property
    def variances(self) -> Float64[Tensor, "dims"]:
        """The variances along all principal axes, falling."""
        c = self.covariances
        return torch.cat([c.values[0], c.rest.expand(c.codimension)]).sort(descending=True).values

    def principal_coordinates(self, x0: Float[Tensor, "batch *shape"], count: int) -> Float64[Tensor, "batch count"]:
        """The coordinates of clean data, less the mean, along the principal axes of largest variance.

        Raises:
            InputError: if ``x0`` has another shape, or the data vary along fewer than ``count`` axes.
        """
        c = self.covariances
        rows, alpha, _ = self._rows(x0, Level(0.0, 1.0, 0.0))
        order = c.values[0].argsort(descending=True, stable=True)[:count]
        if len(order) < count or not bool((c.values[0][order] > 0.0).all()):
            varied = int((c.values[0] > 0.0).sum())
            raise InputError(f"These data vary along {varied} principal axes; {count} were asked for.")
        return self._split(rows, alpha).along[:, 0, order]

    def flow(self, x: Float[Tensor, "batch *shape"], t: Level, s: Level) -> Float[Tensor, "batch *shape"]:
        r"""The exact solution of the probability flow from ``t`` to ``s``, which deterministic samplers approach.

        :math:`x_s = \alpha_s \mu + S_s^{1/2} S_t^{-1/2} (x_t - \alpha_t \mu)`, since :math:`S_t` and :math:`S_s` share
        their eigenvectors (the ODE of Y. Song et al. 2021, eq. 13, solved).

        Raises:
            InputError: if ``x`` or a level have another shape, or ``t`` is at ``sigma = 0`` and ``C`` singular.
        """
        rows, alpha, sigma = self._rows(x, t)
        if self.no_density is not None and bool((sigma == 0.0).any()):
            raise InputError(f"{self.no_density}; the flow starts at a level with sigma > 0.")
        _, alpha_s, sigma_s = self._rows(x, s)
        start, end = self.covariances.at(alpha, sigma), self.covariances.at(alpha_s, sigma_s)
        ratio = Eigenvalues((end.along / start.along).sqrt(), (end.across / start.across).sqrt())
        moved = self.covariances.apply(ratio, self._split(rows, alpha))[:, 0]
        return (broadcast(alpha_s, moved) * self.means + moved).to(x).reshape(x.shape)


def _rows(images: Tensor) -> Float64[Tensor, "batch dims"]:
    rows = finite(images, "images")
    if rows.ndim == 0 or rows.numel() == 0:
        raise InputError(f"A fit needs images of shape (N, *shape) with N at least 1; got {tuple(rows.shape)}.")
    return rows.cpu().reshape(len(rows), -1)


def _truncate(full: Covariances, rank: int) -> Covariances:
    """The ``rank`` largest eigenvalues, and the mean of the others across them."""
    assert full.basis is not None
    others = full.dimensions - rank
    if others <= 0:
        return full
    # eigenvalues rise
    rest = full.values[:, :others].mean(1)
    return Covariances(full.basis[:, :, others:], full.values[:, others:], rest, full.dimensions)
