"""Fitted solvers: a table of weights represents any solver that is linear in the start and the predictions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.variance import Gamma
from sfumato.errors import InputError
from sfumato.sampling.sample import Memory, Predict, Step


@dataclass(frozen=True)
class FittedSolver:
    r"""A grid of ``N`` noisy levels, and the weights of a solver on it.

    A deterministic solver with one evaluation per step, in any coordinate, of any order and corrector, reaches

    .. math:: x_{i+1} = w_{i,0}\, x_0 + \sum_{j \le i} w_{i,j+1}\, \hat x_0(x_j, \lambda_j),
        \qquad x_0 = \sigma_0 \epsilon,

    and :math:`x_N` is the sample (Shaul et al. 2024). The weights hold for their grid and the scale of their schedule.

    Attributes:
        log_snr: the log-SNR of the levels, strictly rising.
        weights: one row per step: the weight of the start, then those of the data estimates so far; ``i + 2`` numbers
            in row ``i``.
        error: the root mean square error per dimension against the exact probability flow, on held-out noise samples.
        baseline: the error of the best of the usual solvers on the same noise samples.
        noises: the number of noise samples it was fitted to.
        guidance: the guidance scale it was fitted with; 1 means no guidance.
    """

    log_snr: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    error: float = 0.0
    baseline: float = 0.0
    noises: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        count = len(self.log_snr)
        if count == 0 or [len(row) for row in self.weights] != list(range(2, count + 2)):
            raise InputError(
                "A fitted solver needs at least one level, and a row of weights for each: one for the start and one "
                f"per estimate so far; got {count} levels and rows of {[len(row) for row in self.weights]}."
            )
        if not all(map(math.isfinite, (*self.log_snr, *itertools.chain(*self.weights)))):
            raise InputError("The levels and weights of a fitted solver must be finite.")
        if any(a >= b for a, b in itertools.pairwise(self.log_snr)):
            raise InputError("The levels of a fitted solver must rise strictly in log-SNR.")

    @property
    def steps(self) -> int:
        return len(self.log_snr)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FittedSolver:
        try:
            weights = tuple(tuple(map(float, row)) for row in values["weights"])
            changed: dict[str, Any] = {"log_snr": tuple(map(float, values["log_snr"])), "weights": weights}
            return cls(**{**values, **changed})
        except (KeyError, TypeError, ValueError) as reason:
            raise InputError(f"These are not the values of a fitted solver ({reason!r}).") from None


@dataclass(frozen=True)
class Fitted:
    """Everything fitted to the weights of one trained denoiser, and valid only for these weights.

    It holds the table of Analytic-DPM, and solvers by their number of steps. If only fits to other weights exist,
    ``stale`` is the optimizer step of those weights.
    """

    gamma: Gamma | None = None
    solvers: Mapping[int, FittedSolver] = field(default_factory=dict[int, FittedSolver])
    stale: int | None = None

    def require_gamma(self) -> Gamma:
        if self.gamma is not None:
            return self.gamma
        why = "has none" if self.stale is None else f"has only one for other weights, from step {self.stale}"
        raise InputError(
            f"The analytic variance and the optimal grid need Gamma, and this model {why}: estimate it with "
            "sfumato tune RUN, or sfumato.tune(model)."
        )

    def require_solver(self, steps: int) -> FittedSolver:
        if steps in self.solvers:
            return self.solvers[steps]
        there = "none" if self.stale is None else f"only fits to other weights, from step {self.stale}"
        if self.solvers:
            there = f"only for {', '.join(map(str, sorted(self.solvers)))}"
        raise InputError(
            f"A fitted grid of {steps} steps is needed, and this model has {there}: fit one with "
            f"sfumato tune RUN --steps {steps}, or sfumato.tune(model, steps={steps})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        solvers = {str(steps): asdict(solver) for steps, solver in self.solvers.items()}
        return {"gamma": None if self.gamma is None else asdict(self.gamma), "solvers": solvers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fitted:
        gamma = values.get("gamma")
        solvers = {int(steps): FittedSolver.from_dict(solver) for steps, solver in values.get("solvers", {}).items()}
        return cls(None if gamma is None else Gamma.from_dict(gamma), solvers)


def fitted_grid(schedule: Schedule, plan: FittedSolver) -> Level:
    """The grid fitted to the model for this number of steps; needs sfumato tune --steps."""
    return with_data(schedule, torch.tensor(plan.log_snr, dtype=torch.float64))


def follow(denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory, *, plan: FittedSolver) -> Tensor:
    """The solver weights fitted together with the grid, one evaluation per step; needs sfumato tune --steps."""
    i = memory.index
    if i >= plan.steps or abs(float(t.log_snr) - plan.log_snr[i]) > 1e-6 * max(1.0, abs(plan.log_snr[i])):
        raise InputError(
            f"A fitted sampler of {plan.steps} steps works only on its own grid, from beginning to end: "
            "sample with --grid.kind fitted."
        )
    start: Tensor = memory.state.setdefault("start", x)
    estimates: list[Tensor] = memory.state.setdefault("estimates", [])
    estimates.append(denoise(x, t).x0)
    of_start, *rest = plan.weights[i]
    out = start.mul(of_start)
    for estimate, weight in zip(estimates, rest, strict=True):
        out.add_(estimate, alpha=weight)
    return out


def with_data(schedule: Schedule, log_snr: Float64[Tensor, "N"]) -> Level:
    """The grid with these levels, followed by the data."""
    return Level.cat([schedule.at(log_snr), schedule(0.0)])


def weights_of(step: Step, levels: Level) -> Float64[Tensor, "N N+1"]:
    """The weights of a deterministic solver on a grid, as in :class:`FittedSolver`, padded with zeros.

    They are found by applying the solver to unit vectors, one for the start and one for each of its ``N`` predictions.
    """
    units = iter(torch.eye(len(levels), dtype=torch.float64)[:, None])
    x = next(units)

    def denoise(x: Tensor, level: Level) -> Prediction:
        unit = next(units, None)
        if unit is None:
            raise InputError("Only a solver with one evaluation per step has weights; this one makes more.")
        return Prediction.of_x0(x, unit, level)

    def no_noise(x: Tensor) -> Tensor:
        raise InputError("Only a solver that adds no noise has weights; this one adds noise.")

    rows: list[Tensor] = []
    memory = Memory(no_noise)
    for memory.index, (t, s) in enumerate(itertools.pairwise(levels)):
        x = step(denoise, x, t, s, memory)
        rows.append(x)
    return torch.cat(rows)
