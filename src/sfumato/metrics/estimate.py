"""A measured number with its standard error, and what is known of a share."""

from __future__ import annotations

import math
from typing import NamedTuple


class Estimate(NamedTuple):
    """A number computed from samples, and how far it may lie from that of endlessly many."""

    value: float
    error: float | None = None  # one standard error; None where it has none
    method: str = ""  # how the error was found: "delta method", "jackknife over 10 blocks", ...


DEVIATIONS = 1.959964
"""Standard deviations to each side that hold 95 % of a normal distribution."""


def wilson(right: int, count: int, deviations: float = DEVIATIONS) -> tuple[float, float]:
    r"""Wilson's interval (1927) of a share :math:`p`, of which ``right`` of ``count`` were seen.

    .. math::
        \frac{1}{1 + z^2 / n} \left( p + \frac{z^2}{2 n} \pm z \sqrt{\frac{p (1 - p)}{n} + \frac{z^2}{4 n^2}} \right)

    It lies within [0, 1], and has a width also when all or none are right.

    Args:
        right: of 0 ... count.
        count: at least 1.
        deviations: :math:`z`, by default that of 95 %.
    """
    share, square = right / count, deviations**2 / count
    middle = (share + square / 2.0) / (1.0 + square)
    half = deviations * math.sqrt(share * (1.0 - share) / count + square / (4.0 * count)) / (1.0 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(right: int, count: int) -> Estimate:
    """The share ``right / count``; its error is half the width of Wilson's interval at one standard deviation."""
    low, high = wilson(right, count, 1.0)
    return Estimate(right / count, (high - low) / 2.0, "half of Wilson's interval at one standard deviation")
