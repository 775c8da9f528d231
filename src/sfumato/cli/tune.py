"""``sfumato tune``: what is fitted to a trained model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.cli import flags
from sfumato.cli.commands import load_model

_DESCRIPTION = """\
Fit to a trained model what samples and bounds gain from, and keep it in the run.

By default this is the Gamma of Analytic-DPM, estimated in one pass over training images: the optimal variance of the
reverse process follows from it, on any grid (--sampler.variance analytic), and so does the grid of the lowest bound
(--grid.kind optimal).

With --steps it is a grid of so many steps, and the weights of a solver on it, whose images are nearly those of very
many steps. Sampling in that number of steps takes them, unless another sampler or grid is named.
"""


@dataclasses.dataclass
class _Tune:
    run: Annotated[
        Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="A run directory, such as runs/digits.")
    ]
    steps: Annotated[int | None, flags.described("Fit a grid of so many steps, in place of Gamma.")] = None
    coefficients: Annotated[
        bool, tyro.conf.arg(help="Of a grid: fit the weights of the solver with it, in place of those of a usual one.")
    ] = True
    noises: Annotated[int, tyro.conf.arg(help="Of a grid: from how many noises.")] = 256
    images: Annotated[int, tyro.conf.arg(help="Of Gamma: training images that are looked at, at most.")] = 500
    levels: Annotated[int, tyro.conf.arg(help="Of Gamma: noise levels, evenly spread in log-SNR.")] = 100
    seed: Annotated[int, tyro.conf.arg(help="Which noise.")] = 0
    device: Annotated[str | None, flags.described("Where to compute (default: a GPU if there is one).")] = None


def tune(arguments: list[str]) -> int:
    options = flags.parse(_Tune, arguments, prog="sfumato tune", description=_DESCRIPTION)
    if options.steps is not None:
        return _grid(options, options.steps)
    from sfumato.models import calibrate as tuning
    from sfumato.runs.reporting import bar

    model = load_model(options.run, options.device)
    count = min(options.images, model.facts.train)
    with bar("estimating Gamma", count) as advance:
        tuning.tune(model, images=count, levels=options.levels, seed=options.seed, progress=advance)
    print(f"Gamma at {options.levels} levels, from {count} images: {options.run / 'fitted.json'}")
    print(f"use it    sfumato sample {options.run} --sampler.kind ancestral --sampler.variance analytic")
    return 0


def _grid(options: _Tune, steps: int) -> int:
    from sfumato.models import calibrate as tuning
    from sfumato.runs.reporting import bar
    from sfumato.sampling import fitting

    model = load_model(options.run, options.device)
    with bar("fitting", fitting.most_iterations(options.coefficients)) as advance:
        found = tuning.tune(
            model,
            seed=options.seed,
            steps=steps,
            coefficients=options.coefficients,
            noises=options.noises,
            progress=advance,
        )
    plan = found.plans[steps]
    print(
        f"a grid of {steps} steps, from {options.noises} noises: {options.run / 'fitted.json'}\n"
        f"error     {plan.error:.3g} to the exact flow, of noises that were held out; the best usual solver: "
        f"{plan.stock:.3g}\n"
        f"use it    sfumato sample {options.run} --steps {steps}"
    )
    return 0
