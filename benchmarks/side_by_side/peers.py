"""What a peer is: a library's sampler in one configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from side_by_side.problem import Counted, Problem


@dataclass(frozen=True)
class Peer:
    """A sampler in one configuration.

    Attributes:
        name: library, sampler and configuration.
        schedules: the names of the schedules it knows.
        run: ``(problem, model, nfe)`` to the samples, with at most ``nfe`` calls of the model.
    """

    name: str
    schedules: tuple[str, ...]
    run: Callable[[Problem, Counted, int], Tensor]


@dataclass(frozen=True)
class Result:
    """How far a sampler ended from the exact solution, or why it did not end."""

    rms: float | None
    median: float | None
    calls: int
    failure: str | None = None


def measure(peer: Peer, problem: Problem, nfe: int) -> Result:
    """Run a peer; whatever it raises is its result."""
    model = problem.counted()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = peer.run(problem, model, nfe)
    except Exception as error:
        return Result(None, None, model.calls, f"{type(error).__name__}: {error}"[:200])
    if not bool(x.isfinite().all()):
        return Result(None, None, model.calls, "not finite")
    if model.calls > nfe:
        return Result(None, None, model.calls, f"{model.calls} calls where {nfe} were allowed")
    rms, median = problem.errors(x)
    return Result(rms, median, model.calls)
