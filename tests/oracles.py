"""A denoiser that is known in closed form."""

from __future__ import annotations

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level


class GaussianOracle:
    """The exact denoiser of data N(mean, std^2 I), and the exact solution of its probability flow."""

    def __init__(self, mean: float = 0.4, std: float = 0.6) -> None:
        self.mean, self.std = mean, std
        self.calls: list[float] = []

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        self.calls.append(level.sigma)
        assert level.sigma > 0.0
        gain = level.alpha * self.std**2 / (level.alpha**2 * self.std**2 + level.sigma**2)
        return Prediction.of_x0(x, self.mean + gain * (x - level.alpha * self.mean), level)

    def spread(self, level: Level) -> float:
        return (level.alpha**2 * self.std**2 + level.sigma**2) ** 0.5

    def flow(self, x: Tensor, t: Level, s: Level) -> Tensor:
        return s.alpha * self.mean + self.spread(s) / self.spread(t) * (x - t.alpha * self.mean)
