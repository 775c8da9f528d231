"""Covariance matrices by their eigenvectors, so that a noise level only changes eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.diffusion.oracle.base import finite
from sfumato.errors import InputError


@dataclass(frozen=True, slots=True)
class Split:
    """Vectors, and their coordinates along the eigenbases of their components."""

    whole: Float64[Tensor, "rows components dims"]
    along: Float64[Tensor, "rows components rank"]


@dataclass(frozen=True, slots=True)
class Eigenvalues:
    """The eigenvalues of matrices with the eigenvectors of the covariances: one per basis vector, one for the rest."""

    along: Float64[Tensor, "levels components rank"]
    across: Float64[Tensor, "levels components"]


@dataclass(frozen=True, slots=True)
class Covariances:
    r"""The covariances of the components of a mixture, :math:`C_k = U_k \Lambda_k U_k^\top + r_k (I - U_k U_k^\top)`.

    At a level, :math:`\alpha^2 C_k + \sigma^2 I` has the same eigenvectors, so that inverse, determinant and posterior
    are algebra of eigenvalues. A variance of 0 is exact: the data do not vary in that direction.
    Make them with :meth:`full`, :meth:`diagonal`, :meth:`low_rank` or :meth:`isotropic`.

    Attributes:
        basis: orthonormal columns :math:`U_k`, or None for the axes.
        values: the variances along the basis.
        rest: the variance in all directions across the basis, if there are any.
        dimensions: the size of the space.
    """

    basis: Float64[Tensor, "components dims rank"] | None
    values: Float64[Tensor, "components rank"]
    rest: Float64[Tensor, "components"]
    dimensions: int

    @staticmethod
    def full(matrices: Tensor) -> Covariances:
        """Any covariances, ``(K, D, D)`` or ``(D, D)`` for one; eigenvalues within rounding of 0 become 0.

        Raises:
            InputError: if a matrix is not square, not finite, not symmetric or has a negative eigenvalue.
        """
        c = finite(matrices, "covariances")
        c = c[None] if c.ndim == 2 else c
        if c.ndim != 3 or c.shape[1] != c.shape[2]:
            raise InputError(f"Covariances must have shape (K, D, D); got {tuple(c.shape)}.")
        if float((c - c.mT).abs().max()) > 1e-6 * float(c.abs().max()):
            raise InputError("A covariance must be symmetric.")
        values, basis = torch.linalg.eigh(0.5 * (c + c.mT))
        rounding = values.abs().amax(1, keepdim=True) * c.shape[1] * torch.finfo(torch.float64).eps
        if bool((values < -1e-6 * values.abs().amax(1, keepdim=True)).any()):
            raise InputError(f"A covariance can't have a negative eigenvalue; the lowest is {float(values.min()):.4g}.")
        values = torch.where(values > rounding, values, 0.0)
        return Covariances(basis, values, torch.zeros_like(values[:, 0]), c.shape[1])

    @staticmethod
    def diagonal(variances: Tensor) -> Covariances:
        """Independent dimensions with variances ``(K, *shape)``.

        Raises:
            InputError: if a variance is negative or not finite.
        """
        values = _variances(variances)
        values = values.reshape(len(values), -1)
        return Covariances(None, values, torch.zeros_like(values[:, 0]), values.shape[1])

    @staticmethod
    def isotropic(variances: Tensor, dimensions: int) -> Covariances:
        """Multiples of the identity, ``variances`` ``(K,)``; 0 is a point mass.

        Raises:
            InputError: if a variance is negative or not finite.
        """
        rest = _variances(variances).reshape(-1)
        return Covariances(rest.new_zeros(len(rest), dimensions, 0), rest.new_zeros(len(rest), 0), rest, dimensions)

    @staticmethod
    def low_rank(factors: Tensor, diagonal: Tensor) -> Covariances:
        r"""The sums :math:`F_k F_k^\top + \operatorname{diag}(d_k)` of ``factors`` ``(K, D, r)`` and a diagonal.

        With a ``diagonal`` ``(K,)`` of one number per component, only ``(K, D, r)`` numbers are kept. One of ``(K, D)``
        numbers leaves no eigenvectors but those of the whole matrix, so that ``(K, D, D)`` are kept.

        Raises:
            InputError: if the shapes do not fit, a number is not finite or a variance is negative.
        """
        f, d = finite(factors, "factors"), _variances(diagonal)
        if f.ndim != 3 or d.shape not in (f.shape[:1], f.shape[:2]):
            raise InputError(
                "A low-rank covariance needs factors of shape (K, D, r) and a diagonal of shape (K,) or (K, D); "
                f"got {tuple(f.shape)} and {tuple(d.shape)}."
            )
        if d.ndim == 2:
            return Covariances.full(f @ f.mT + torch.diag_embed(d))
        basis, singular, _ = torch.linalg.svd(f, full_matrices=False)
        return Covariances(basis, singular.square() + d[:, None], d, f.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def codimension(self) -> int:
        """The number of directions across the basis."""
        return self.dimensions - self.values.shape[1]

    @property
    def flat(self) -> int:
        """The largest number of directions without variance of a component."""
        across = self.codimension * (self.rest == 0.0)
        return int(((self.values == 0.0).sum(1) + across).max())

    def at(self, alpha: Float64[Tensor, "levels"], sigma: Float64[Tensor, "levels"]) -> Eigenvalues:
        r"""The eigenvalues of :math:`\alpha^2 C_k + \sigma^2 I`."""
        signal, noise = alpha.square()[:, None], sigma.square()[:, None]
        return Eigenvalues(signal[..., None] * self.values + noise[..., None], signal * self.rest + noise)

    def split(self, z: Float64[Tensor, "rows components dims"]) -> Split:
        """Vectors of each component in its own basis."""
        return Split(z, z if self.basis is None else torch.einsum("bkd,kdr->bkr", z, self.basis))

    def across(self, z: Split) -> Float64[Tensor, "rows components dims"] | None:
        """What of vectors lies across the basis; None where it spans the whole space."""
        if self.basis is None or self.codimension == 0:
            return None
        if self.codimension == self.dimensions:
            return z.whole
        return z.whole - torch.einsum("bkr,kdr->bkd", z.along, self.basis)

    def apply(self, matrix: Eigenvalues, z: Split) -> Float64[Tensor, "rows components dims"]:
        """The product of the matrices of those eigenvalues with vectors, back in the space of the data."""
        along = self._beyond(matrix) * z.along
        if self.basis is not None:
            along = torch.einsum("bkr,kdr->bkd", along, self.basis)
        return along + matrix.across[..., None] * z.whole if self.codimension else along

    def mix(
        self, weights: Float64[Tensor, "rows components"], matrix: Eigenvalues, z: Split
    ) -> Float64[Tensor, "rows dims"]:
        """The weighted sum over components of what :meth:`apply` gives, without the terms."""
        along = weights[..., None] * self._beyond(matrix) * z.along
        if self.basis is None:
            return along.sum(1)
        inside = along.flatten(1) @ self.basis.mT.reshape(-1, self.dimensions)
        if not self.codimension:
            return inside
        return inside + torch.einsum("bk,bkd->bd", weights * matrix.across, z.whole)

    def _beyond(self, matrix: Eigenvalues) -> Float64[Tensor, "levels components rank"]:
        r"""The eigenvalues along the basis, less that of the rest: :math:`U M U^\top + m (I - U U^\top)` is
        :math:`U (M - m I) U^\top + m I`, which spares a product with the basis."""
        return matrix.along - matrix.across[..., None] if self.codimension else matrix.along

    def trace(self, matrix: Eigenvalues) -> Float64[Tensor, "levels components"]:
        """The traces of the matrices of those eigenvalues."""
        along = matrix.along.sum(-1)
        return along + self.codimension * matrix.across if self.codimension else along


def _variances(values: Tensor) -> Tensor:
    tensor = finite(values, "variances")
    if bool((tensor < 0.0).any()):
        raise InputError(f"A variance can't be negative; got {float(tensor.min()):.4g}.")
    return tensor
