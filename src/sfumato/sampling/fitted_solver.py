"""Plans: any solver whose steps are linear in the start and in the predictions, written out as a table of weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InputError
from sfumato.sampling.sample import Memory, Step

Weights = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Plan:
    r"""A grid of ``N`` noisy levels, and the weights of a solver on it.

    A deterministic solver, of one evaluation per step, reaches

    .. math:: x_{i+1} = w_{i,0}\, x_0 + \sum_{j \le i} w_{i,j+1}\, \hat x_0(x_j, \lambda_j),
        \qquad x_0 = \sigma_0 \epsilon,

    whatever coordinate, order or corrector it was derived with, and :math:`x_N` is the sample (the non-stationary
    solvers of Shaul et al. 2024). The weights hold for the grid, and for the scale of the schedule, that they are of.

    Attributes:
        log_snr: the levels, rising strictly.
        weights: a row per step: of the start, then of the estimates of the data so far, ``i + 2`` numbers in row ``i``.
        error: the root mean square per dimension to the exact probability flow, over noises that were held out.
        stock: that of the best of the usual solvers, on those noises.
        noises: from how many noises it was fitted.
        guidance: the guidance scale that it was fitted with; 1 is none.

    Raises:
        InputError: if the shapes do not fit, a number is not finite or the levels do not rise.
    """

    log_snr: tuple[float, ...]
    weights: Weights
    error: float = 0.0
    stock: float = 0.0
    noises: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        count = len(self.log_snr)
        if count == 0 or [len(row) for row in self.weights] != list(range(2, count + 2)):
            raise InputError(
                "A plan needs at least one level, and for each a row of weights: of the start and of the estimates "
                f"so far; got {count} levels and rows of {[len(row) for row in self.weights]}."
            )
        if not all(map(math.isfinite, (*self.log_snr, *itertools.chain(*self.weights)))):
            raise InputError("The levels and weights of a plan must be finite.")
        if any(a >= b for a, b in itertools.pairwise(self.log_snr)):
            raise InputError("The levels of a plan must rise strictly in log-SNR.")

    @property
    def steps(self) -> int:
        """How many steps it has, of one evaluation each."""
        return len(self.log_snr)

    def levels(self, schedule: Schedule) -> Level:
        """The grid, with the data at its end.

        Raises:
            InputError: if the schedule ends at more signal than the plan begins with.
        """
        return with_data(schedule, torch.tensor(self.log_snr, dtype=torch.float64))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        weights = [list(row) for row in self.weights]
        facts = {"error": self.error, "stock": self.stock, "noises": self.noises, "guidance": self.guidance}
        return {"log_snr": list(self.log_snr), "weights": weights, **facts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that :meth:`to_dict` gave.

        Raises:
            InputError: if these are not the values of one.
        """
        try:
            weights = tuple(tuple(float(number) for number in row) for row in values["weights"])
            log_snr = tuple(float(number) for number in values["log_snr"])
            error, stock, guidance = (float(values[name]) for name in ("error", "stock", "guidance"))
            return cls(log_snr, weights, error, stock, int(values["noises"]), guidance)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"These are not the values of a plan ({type(error).__name__}: {error}).") from None


def with_data(schedule: Schedule, log_snr: Float64[Tensor, "N"]) -> Level:
    """The grid of these levels, with the data at its end."""
    noisy, data = schedule.at(log_snr), schedule(torch.zeros(1, dtype=torch.float64))
    pairs = ((noisy.t, data.t), (noisy.alpha, data.alpha), (noisy.sigma, data.sigma))
    return Level(*(torch.cat([torch.as_tensor(a), torch.as_tensor(b)]) for a, b in pairs))


def weights_of(step: Step, levels: Level) -> Float64[Tensor, "N N+1"]:
    """The weights of a solver on a grid, row by row as in :class:`Plan`, with zeros after their end.

    They are what the solver makes of unit vectors, one for the start and one for each prediction.

    Args:
        step: a deterministic step of one evaluation, linear in ``x`` and in the predictions.
        levels: a grid of ``N`` steps that ends at the data.

    Raises:
        InputError: if the step makes more evaluations than one, or adds noise.
    """
    grid = list(levels)
    count = len(grid) - 1
    units = iter(torch.eye(count + 1, dtype=torch.float64)[:, None])
    x = next(units)

    def denoise(x: Tensor, level: Level) -> Prediction:
        found = next(units, None)
        if found is None:
            raise InputError("A plan is of a solver that makes one evaluation per step; this one makes more.")
        return Prediction.of_x0(x, found, level)

    rows: list[Tensor] = []
    memory = Memory(_no_noise)
    for memory.index, (t, s) in enumerate(itertools.pairwise(grid)):
        x = step(denoise, x, t, s, memory)
        rows.append(x)
    return torch.cat(rows)


def _no_noise(x: Tensor) -> Tensor:
    raise InputError("A plan is of a solver that adds no noise; this one does.")


def follow(
    denoise: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level, memory: Memory, *, plan: Plan
) -> Tensor:
    """A step of a plan; one evaluation of the denoiser.

    Raises:
        InputError: if the step does not start at the level that the plan has there.
    """
    i = memory.index
    if i >= plan.steps or abs(float(t.log_snr) - plan.log_snr[i]) > 1e-6 * max(1.0, abs(plan.log_snr[i])):
        raise InputError(
            f"A fitted sampler of {plan.steps} steps takes those of its own grid, from its beginning to its end: "
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
