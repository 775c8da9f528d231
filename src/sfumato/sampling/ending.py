"""The step to the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling.coordinate import Numbers, ratio
from sfumato.sampling.sample import Memory

STEEPEST = 20.0
"""The greatest sum of the absolute weights with which the last step extrapolates predictions to the data."""

Estimate = tuple[Level, Prediction]
"""A prediction and where it was made."""


def lagrange(places: Sequence[float], j: int, at: Numbers) -> Numbers:
    """The polynomial that is 1 at the ``j``-th of the places and 0 at the others."""
    found = np.ones_like(at)
    for k, place in enumerate(places):
        if k != j:
            found *= (at - place) / (places[j] - place)
    return found


def to_data(estimates: Sequence[Estimate], s: Level, most: int) -> Tensor:
    r"""The data, from the predictions :math:`\hat x_0` at the last levels.

    Along the flow :math:`\hat x_0` is a smooth function of :math:`\hat\sigma^2`, whose value at 0 is the sample:
    :math:`x = \sum_j w_j \hat x_0^{(j)}` with :math:`w_j = \prod_{k \ne j} \hat\sigma_k^2 / (\hat\sigma_k^2 -
    \hat\sigma_j^2)`. With one prediction it is the step of DDIM, which stays :math:`O(\hat\sigma^2)` from the data.
    Fewer are taken where levels so close to each other would multiply the errors of predictions: the sum of
    :math:`|w_j|` is at most ``STEEPEST``.

    Args:
        estimates: the last predictions of one trajectory, the latest first.
        s: the level of the data.
        most: how many are taken, at most.

    Raises:
        InputError: if ``most`` is out of range.
    """
    check_ending(most)
    squares = [ratio(level) ** 2 for level, _ in estimates]
    weights, zero = [1.0], np.zeros(1)
    for count in range(2, min(most, len(squares)) + 1):
        if not squares[count - 1] < math.inf:
            break
        trial = [float(lagrange(squares[:count], j, zero)[0]) for j in range(count)]
        if math.fsum(map(abs, trial)) > STEEPEST:
            break
        weights = trial
    if len(weights) == 1:
        return estimates[0][1].mix(s.alpha, 0.0)
    # a new tensor: an estimate may be the network's own output, or be shown to the user
    out = estimates[0][1].x0.mul(float(s.alpha) * weights[0])
    for (_, prediction), weight in zip(estimates[1:], weights[1:], strict=False):
        out.add_(prediction.x0, alpha=float(s.alpha) * weight)
    return out


def remember(memory: Memory, level: Level, prediction: Prediction, count: int) -> list[Estimate]:
    """The last ``count`` predictions of a step that remembers no others, with this one as the first."""
    estimates: list[Estimate] = [(level, prediction), *memory.state.get("estimates", ())][:count]
    memory.state["estimates"] = estimates
    return estimates


def check_ending(most: int) -> None:
    """Check the number of predictions that a last step extrapolates.

    Raises:
        InputError: if it is out of range.
    """
    if not 1 <= most <= 4:
        raise InputError(f"The step to the data takes from 1 (first order) to 4 predictions; got {most}.")
