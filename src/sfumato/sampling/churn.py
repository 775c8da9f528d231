"""Fresh noise before a step, as in EDM."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling.coordinates import ratio
from sfumato.sampling.sample import Memory


@dataclass(frozen=True, slots=True)
class Churn:
    r"""The noise that EDM's stochastic sampler adds before each step (Karras et al. 2022, algorithm 2), any schedule.

    In :math:`\hat x = x / \alpha` and :math:`\hat\sigma = \sigma / \alpha`, the level rises to
    :math:`\hat\sigma' = (1 + \gamma) \hat\sigma` and :math:`\hat x' = \hat x + S_{noise} \sqrt{\hat\sigma'^2 -
    \hat\sigma^2}\; z`. It does not rise above the end of the schedule, and not where nothing of the data is left.

    Attributes:
        schedule: where the raised level is found.
        gamma: the rise in each step, :math:`S_{churn} / N` for ``N`` steps; no more than :math:`\sqrt 2 - 1` is used.
        low: the least :math:`\hat\sigma` with noise, :math:`S_{tmin}`.
        high: the most, :math:`S_{tmax}`.
        noise: the standard deviation of the noise, :math:`S_{noise}`.

    Raises:
        InputError: if a number is negative or the range empty.
    """

    schedule: Schedule
    gamma: float
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not self.gamma >= 0.0 or not self.noise >= 0.0 or not 0.0 <= self.low < self.high:
            raise InputError(
                "Churn needs gamma and noise of at least 0 and 0 <= low < high; "
                f"got gamma = {self.gamma}, noise = {self.noise}, {self.low} and {self.high}."
            )

    def __call__(self, x: Tensor, t: Level, memory: Memory) -> tuple[Tensor, Level]:
        """``x`` with more noise, and its level."""
        start = ratio(t)
        gamma = min(self.gamma, math.sqrt(2.0) - 1.0)
        if gamma == 0.0 or not self.low <= start <= self.high or t.alpha == 0.0:
            return x, t
        end = min((1.0 + gamma) * start, ratio(self.schedule(1.0)))
        if end <= start:
            return x, t
        raised = self.schedule.at(-2.0 * math.log(end))
        spread = float(raised.alpha) * self.noise * math.sqrt(end * end - start * start)
        return x.mul(float(raised.alpha / t.alpha)).add_(memory.noise(x), alpha=spread), raised
