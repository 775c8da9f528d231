"""Denoisers that wrap denoisers: samplers and bounds cannot tell."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError


@dataclass(frozen=True, slots=True)
class Clipped:
    r"""A denoiser whose estimate of the data is held within their range (Ho et al. 2020, code).

    In much noise an error of the predicted noise is one of the data :math:`\sigma / \alpha` times as large, far beyond
    what data can be. The estimate of the noise is that which belongs to the clipped one of the data.

    Attributes:
        denoiser: what is wrapped.
        low: the least value of the data.
        high: the greatest.

    Raises:
        InputError: if the range is empty.
    """

    denoiser: Denoise
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"The range that data are clipped to is empty: {self.low} to {self.high}.")

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        found = self.denoiser(x, level, **cond)
        return Prediction.of_x0(x, found.x0.clamp(self.low, self.high), level, found.variance_fraction)
