"""A measured number with its standard error."""

from __future__ import annotations

from typing import NamedTuple


class Estimate(NamedTuple):
    """A number computed from samples, and how far it may lie from that of endlessly many."""

    value: float
    error: float | None = None  # one standard error; None where it has none
    method: str = ""  # how the error was found: "delta method", "jackknife over 10 blocks", ...
