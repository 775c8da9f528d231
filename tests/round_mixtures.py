"""Mixtures of isotropic Gaussians whose denoiser and density are known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level


class Mixture:
    """The exact denoiser, and the density, of a mixture of isotropic Gaussians in any dimension."""

    def __init__(self, means: list[list[float]], stds: list[float], weights: list[float]) -> None:
        self.means = torch.tensor(means, dtype=torch.float64)
        self.stds = torch.tensor(stds, dtype=torch.float64)
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()

    def _log_parts(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = (torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1) for value in (alpha, sigma))
        spread = alpha**2 * self.stds**2 + sigma**2
        off = x[:, None] - alpha[..., None] * self.means
        dimensions = x.shape[1]
        log_p = -0.5 * off.square().sum(-1) / spread - 0.5 * dimensions * (2.0 * math.pi * spread).log()
        return self.log_weights + log_p, off, spread

    def log_p(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        return self._log_parts(x.double(), alpha, sigma)[0].logsumexp(-1)

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        parts, off, spread = self._log_parts(x.double(), level.alpha, level.sigma)
        alpha = torch.as_tensor(level.alpha, dtype=torch.float64).reshape(-1, 1)
        each = self.means + (alpha * self.stds**2 / spread)[..., None] * off
        return Prediction.of_x0(x, (parts.softmax(-1)[..., None] * each).sum(1).to(x), level)

    def draw(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.log_weights.exp(), count, True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[which] + self.stds[which, None] * noise


GAUSSIAN = Mixture([[0.3, -0.1, 0.2]], [0.5], [1.0])
ONE_D = Mixture([[-0.6], [0.5]], [0.1, 0.2], [0.3, 0.7])
TWO_D = Mixture([[-0.5, 0.2], [0.4, -0.3]], [0.2, 0.1], [0.6, 0.4])
