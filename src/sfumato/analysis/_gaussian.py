"""The Gaussian fitted to data, as a denoiser: the closed form that the views set beside a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError


@dataclass(frozen=True, slots=True)
class FittedGaussian:
    r"""A Gaussian by its principal axes :math:`u_i` and their variances :math:`\lambda_i`, zero along all others.

    Its denoiser is the linear one of Wiener,

    .. math::
        \hat x_0 = m + \sum_i \frac{\alpha \lambda_i}{\alpha^2 \lambda_i + \sigma^2} u_i u_i^\top (x - \alpha m).
    """

    mean: Float64[Tensor, "dims"]
    axes: Float64[Tensor, "rank dims"]
    variances: Float64[Tensor, "rank"]

    def __call__(self, x: Float[Tensor, "batch *shape"], level: Level, **cond: Tensor) -> Prediction:
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (level.alpha, level.sigma))
        gain = alpha * self.variances / (alpha.square() * self.variances + sigma.square())
        along = (x.detach().cpu().flatten(1).double() - alpha * self.mean) @ self.axes.mT
        x0 = self.mean + (gain * along) @ self.axes
        return Prediction.of_x0(x, x0.reshape(x.shape).to(x), level)

    def loss(self, levels: Level) -> Float64[Tensor, "levels"]:
        r"""The least loss of a denoiser of this Gaussian, per dimension, on the error of :math:`\hat\epsilon`.

        :math:`\frac1D \mathbb E \lVert \hat\epsilon - \epsilon \rVert^2 =
        \frac1D \sum_i \frac{\alpha^2 \lambda_i}{\alpha^2 \lambda_i + \sigma^2}`: the posterior variance of the data
        times :math:`\alpha^2 / \sigma^2`.
        """
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (levels.alpha, levels.sigma))
        signal = alpha.square() * self.variances
        # at sigma = 0 the limit: an axis without spread adds nothing, however small the noise
        shares = torch.where(signal > 0.0, signal / (signal + sigma.square()).clamp(min=1e-300), 0.0)
        return shares.sum(1) / len(self.mean)


def fit(images: Float[Tensor, "batch *shape"]) -> FittedGaussian:
    """The Gaussian of greatest likelihood: mean and covariance of the data.

    Raises:
        InputError: for fewer than two data.
    """
    if len(images) < 2:
        raise InputError(f"A Gaussian is fitted to at least 2 data; got {len(images)}.")
    flat = images.detach().cpu().flatten(1).double()
    mean = flat.mean(0)
    _, singular, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    return FittedGaussian(mean, axes, singular.square() / len(flat))
