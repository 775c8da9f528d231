"""The step to the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.sampling.coordinates import ratio
from sfumato.sampling.sample import Memory

APART = 1.3
r"""The least ratio of the :math:`\sigma / \alpha` of predictions that are extrapolated to the data."""

Estimate = tuple[Level, Prediction | Tensor]
"""Where a prediction was made, and it or its estimate of the data."""


def to_data(estimates: Sequence[Estimate], s: Level, most: int) -> Tensor:
    r"""The data, from the predictions :math:`\hat x_0` at the last levels.

    Along the flow :math:`\hat x_0` is a smooth function of :math:`\hat\sigma^2`, whose value at 0 is the sample:
    :math:`x = \sum_j w_j \hat x_0^{(j)}` with :math:`w_j = \prod_{k \ne j} \hat\sigma_k^2 / (\hat\sigma_k^2 -
    \hat\sigma_j^2)`. With one prediction it is the step of DDIM, which stays :math:`O(\hat\sigma^2)` from the data.
    Those are left out whose level is within a factor ``APART`` of one that is taken, since levels close to each other
    would multiply the errors of predictions: the sum of :math:`|w_j|` is at most 13.

    Args:
        estimates: the last predictions of one trajectory, the latest first.
        s: the level of the data.
        most: how many are taken, at most.

    Raises:
        InputError: if ``most`` is out of range.
    """
    check_ending(most)
    taken = [estimates[0]]
    for level, estimate in estimates[1:]:
        if len(taken) < most and APART * ratio(taken[-1][0]) <= ratio(level) < math.inf:
            taken.append((level, estimate))
    squares = [ratio(level) ** 2 for level, _ in taken]
    weights = [
        float(s.alpha) * math.prod(other / (other - own) for k, other in enumerate(squares) if k != j)
        for j, own in enumerate(squares)
    ]
    # a new tensor: an estimate may be the network's own output, or be shown to the user
    data = (one if isinstance(one, Tensor) else one.x0 for _, one in taken)
    out = next(data).mul(weights[0])
    for x0, weight in zip(data, weights[1:], strict=True):
        out.add_(x0, alpha=weight)
    return out


def remember(memory: Memory, level: Level, estimate: Prediction | Tensor, most: int) -> list[Estimate]:
    """The predictions that the step to the data may extrapolate, this one first: of small steps not all are kept.

    Args:
        memory: where they are kept from step to step.
        level: the level of the latest.
        estimate: the latest.
        most: how many are kept.
    """
    before: list[Estimate] = memory.state.get("estimates", [])
    kept: list[Estimate] = [(level, estimate)]
    for k, one in enumerate(before):
        # one is not needed between two neighbours that are not far from each other
        if k + 1 == len(before) or ratio(before[k + 1][0]) > APART**2 * ratio(kept[-1][0]):
            kept.append(one)
    memory.state["estimates"] = kept[:most]
    return kept[:most]


def check_ending(most: int) -> None:
    """Check the number of predictions that a last step extrapolates.

    Raises:
        InputError: if it is out of range.
    """
    if not 1 <= most <= 4:
        raise InputError(f"The step to the data takes from 1 (first order) to 4 predictions; got {most}.")
