"""The lecture's figures: functions that compute a view, apart from those that plot it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channels *space"]
"""A batch of vectors, signals or images."""
