"""Data that are known in closed form, from two dimensions to those of CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato import random
from sfumato.data.embedded import digits
from sfumato.diffusion.oracle import Covariances, EmpiricalOracle, MixtureOracle, Oracle

Noise = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Target:
    """Data, and the standard normal noise of a seed that samplers start from.

    Attributes:
        dimensions: of the data. Samples may be fewer numbers than that: see :func:`low_rank`.
        noise: standard normal noise ``(count, numbers)`` of ``(seed, count)``.
        std: the standard deviation of all numbers of the data, which a model knows of those that it was trained on.
    """

    name: str
    oracle: Oracle
    dimensions: int
    noise: Noise
    std: float

    def rms(self, difference: Tensor) -> Tensor:
        """The root of the mean square over the dimensions, of each sample."""
        return (difference.square().sum(1) / self.dimensions).sqrt()


def _normal(numbers: int) -> Noise:
    return lambda seed, count: random.normal(seed, "prior", 0, count, (numbers,)).double()


def ring(radius: float = 2.0, std: float = 0.2) -> Target:
    """Eight equal Gaussians on a circle."""
    angle = torch.arange(8, dtype=torch.float64) * (torch.pi / 4.0)
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    oracle = MixtureOracle(means, Covariances.isotropic(torch.full((8,), std * std), 2))
    return Target("ring", oracle, 2, _normal(2), (0.5 * radius**2 + std**2) ** 0.5)


def _digits() -> Tensor:
    return torch.from_numpy(digits().images).reshape(-1, 64).double()


def digits_mixture(cache: Path, components: int = 10, floor: float = 1e-3) -> Target:
    """A mixture of full Gaussians fitted to scikit-learn's digits."""

    def fit() -> MixtureOracle:
        return MixtureOracle.fit(_digits(), components, floor=floor)

    oracle = _cached(cache / f"digits-{components}-{floor:g}.npz", fit, 0)
    return Target("digits mixture", oracle, 64, _normal(64), float(_digits().std()))


def digits_themselves() -> Target:
    """The distribution of scikit-learn's digits themselves: points."""
    return Target("empirical digits", EmpiricalOracle(_digits()), 64, _normal(64), float(_digits().std()))


@dataclass(frozen=True, slots=True)
class _WithHidden(Covariances):
    """Covariances in a space of which one axis stands for ``hidden`` more that have the same variance."""

    hidden: int = 0

    @property
    def codimension(self) -> int:
        return self.dimensions + self.hidden - self.values.shape[1]


def low_rank(images: Tensor, cache: Path, components: int = 8, rank: int = 16) -> tuple[Target, Tensor]:
    r"""A mixture of Gaussians of low rank plus a multiple of the identity, fitted to ``images`` ``(N, D)``.

    The images are assigned to the nearest of ``components`` centres (k-means), and each group becomes a Gaussian with
    its largest eigenvalues and the mean of the others (Tipping and Bishop 1999, eq. 8).

    All means and eigenvectors span ``m = K + K r`` directions. Across them every component is isotropic without a mean,
    so that there the exact denoiser only scales ``x``, by a factor that depends on the length of ``x`` there. A solver
    whose steps are combinations of ``x`` and of predictions never leaves the direction in which it started, and its
    length is one number. Samples are therefore ``m + 1`` numbers: coordinates in the span, and that length. It is the
    same mixture in ``D`` dimensions, turned, at a twentieth of the cost.

    Returns:
        the target, and the axes ``(D, m)`` of its first coordinates.
    """
    dimensions = images.shape[1]
    key = f"low-rank-{len(images)}-{dimensions}-{components}-{rank}.npz"
    path = cache / key
    if not path.exists():
        _fit_low_rank(images, path, components, rank)
    stored = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    axes = stored.pop("axes")
    oracle = _restore(stored, dimensions - axes.shape[1] - 1)

    def noise(seed: int, count: int) -> Tensor:
        rows = random.normal(seed, "prior", 0, count, (dimensions,)).double()
        inside = rows @ axes
        across = (rows.square().sum(1) - inside.square().sum(1)).sqrt()
        return torch.cat([inside, across[:, None]], 1)

    return Target("CIFAR-10 mixture", oracle, dimensions, noise, float(images.double().std())), axes


def _fit_low_rank(images: Tensor, path: Path, components: int, rank: int) -> None:
    from sklearn.cluster import KMeans

    rows = images.double()
    centred = rows - rows.mean(0)
    # distances are nearly those between the projections on the first principal axes
    _, _, main = torch.svd_lowrank(centred.float(), 64)
    labels = KMeans(components, n_init=1, random_state=0).fit_predict((centred.float() @ main).numpy())
    means, bases, values, rest, counts = [], [], [], [], []
    for k in range(components):
        group = rows[torch.from_numpy(labels) == k]
        apart = group - group.mean(0)
        # eigenvectors of the covariance by way of the smaller matrix of inner products
        found, left = torch.linalg.eigh(apart @ apart.mT / len(group))
        top = apart.mT @ left[:, -rank:]
        means.append(group.mean(0))
        bases.append(torch.linalg.qr(top).Q)
        values.append(found[-rank:])
        rest.append((apart.square().sum() / len(group) - found[-rank:].sum()) / (rows.shape[1] - rank))
        counts.append(len(group))
    axes = torch.linalg.qr(torch.cat([torch.stack(means, 1), *bases], 1)).Q
    inside = torch.stack([axes.mT @ basis for basis in bases])
    no_length = torch.zeros(components, 1, rank, dtype=torch.float64)
    weights = torch.tensor(counts, dtype=torch.float64)
    _save(
        path,
        means=torch.cat([torch.stack(means) @ axes, torch.zeros(components, 1, dtype=torch.float64)], 1),
        basis=torch.cat([inside, no_length], 1),
        values=torch.stack(values),
        rest=torch.stack(rest),
        weights=weights / weights.sum(),
        axes=axes,
    )


def cifar10(folder: Path, cache: Path, mosaics: int = 2) -> Target:
    """The low-rank mixture fitted to some of CIFAR-10, of mosaics of 50 x 50 images."""
    from PIL import Image

    parts = []
    for path in sorted(folder.glob("train_*.webp"))[:mosaics]:
        mosaic = np.asarray(Image.open(path).convert("RGB"))
        parts.append(mosaic.reshape(50, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(2500, -1))
    images = torch.from_numpy(np.concatenate(parts)).float() / 127.5 - 1.0
    return low_rank(images, cache)[0]


def _cached(path: Path, fit: Callable[[], MixtureOracle], hidden: int) -> MixtureOracle:
    if not path.exists():
        oracle = fit()
        c = oracle.covariances
        assert c.basis is not None
        _save(path, means=oracle.means, basis=c.basis, values=c.values, rest=c.rest, weights=oracle.weights)
    return _restore({name: torch.from_numpy(value) for name, value in np.load(path).items()}, hidden)


def _save(path: Path, **tensors: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})


def _restore(stored: dict[str, Tensor], hidden: int) -> MixtureOracle:
    means, basis = stored["means"], stored["basis"]
    covariances = _WithHidden(basis, stored["values"], stored["rest"], means.shape[1], hidden)
    return MixtureOracle(means, covariances, stored["weights"])
