"""The lecture's figures: functions that compute a view, apart from those that plot it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channels *space"]
"""A batch of vectors, signals or images."""


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spaced, both ends among them."""
    return [round(i * (count - 1) / (most - 1)) for i in range(most)] if count > most else list(range(count))
