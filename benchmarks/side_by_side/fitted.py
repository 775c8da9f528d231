"""What is fitted to a denoiser from noises of another seed than those it is measured on; kept between runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from sfumato.io.files import atomic_write
from sfumato.sampling import fitting
from sfumato.sampling.fitted_solver import FittedSolver, fitted_grid, follow
from side_by_side.own import final
from side_by_side.peers import Result
from side_by_side.problem import Problem

NUMBERS = (5, 10)
"""The numbers of evaluations that are fitted."""

SEED = 1_000_003
"""Of the noises that are fitted to."""


class Solvers:
    """Fitted solvers by problem and number of evaluations, in a JSON file; only what is missing is fitted."""

    def __init__(self, path: Path, noises: int) -> None:
        self.path, self.noises = path, noises
        self.found: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, problem: Problem, nfe: int) -> Result:
        """The error of the solver of ``nfe`` evaluations."""
        plan = self._get(problem, nfe)
        levels = fitted_grid(problem.schedule, plan)
        model = problem.counted()
        x = final(model, problem.noise * next(iter(levels)).sigma, levels, partial(follow, plan=plan))
        rms, median = problem.errors(x)
        return Result(rms, median, model.calls)

    def _get(self, problem: Problem, nfe: int) -> FittedSolver:
        key = f"{problem.key} | {nfe} | {self.noises} of seed {SEED}"
        if key not in self.found:
            target = problem.target
            known = fitting.examples(
                target.oracle,
                problem.schedule,
                target.noise(SEED, self.noises),
                evaluations=128,
                dimensions=target.dimensions,
                batch=256,
            )
            self.found[key] = fitting.fit(known, nfe).to_dict()
            atomic_write(self.path, lambda temporary: temporary.write_text(json.dumps(self.found)))
        return FittedSolver.from_dict(self.found[key])
