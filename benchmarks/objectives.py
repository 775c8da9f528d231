"""Likelihood against sample quality, on scikit-learn's digits: each schedule, parameterization, objective and variance.

Every row is one training configuration of one small network, with the same steps, batches, learning rate and seed:
1,000 digits, without labels. The 797 that were held out tell their bits per dimension (17 grey levels):

* ``bound``: the variational bound, with its standard error over images, on the grid of the schedule itself (all steps
  of a table of betas, 1000 steps else), estimated from steps drawn for each image;
* ``common``: the bound on one grid for all, 250 steps from a noise of 30 (or the end of the schedule, if that is less)
  to a quarter of a bin. Here only what was learned differs;
* ``flow``: the likelihood of the probability-flow ODE, of dequantized data.

and the Frechet distance of samples in the features of a classifier, in units of the distance between real and real.
Samples take 50 steps: DDIM, or ancestral ones where reverse variances are compared. As in the code of Ho et al. 2020,
estimates of the data are held within [-1, 1] in samples and bounds (not in the flow, which needs their derivative).

    python benchmarks/objectives.py --json objectives.json
    python benchmarks/objectives.py --rows "weightings/*" --steps 1500
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.config import Config, merge, parse, reverse_variance
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import rk4
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.diffusion.variance import decoded
from sfumato.errors import InputError
from sfumato.metrics import Evaluator
from sfumato.models.calibrate import tune
from sfumato.models.data import read_data, training_data
from sfumato.models.likelihood import bits_per_dim, default_levels
from sfumato.models.model import Model
from sfumato.recipes import digits
from sfumato.runs.setup import describe, make_trainer
from sfumato.sampling import grids

BINS = 17
SAMPLING_STEPS = 50
COMMON_STEPS = 250
Over = dict[str, Any]

BASE: Over = {
    "conditions": {"label": None},
    "model": {
        "schedule": {"kind": "linear"},
        "parameterization": {"kind": "eps"},
        "network": {"time_scale": 1.0},
    },
    "objective": {"weight": {"kind": "simple"}, "times": {"kind": "uniform"}},
    "optimizer": {"method": {"kind": "adamw", "betas": (0.9, 0.99)}, "learning_rate": 4e-3},
    "sampling": {"sampler": {"kind": "ddim"}, "grid": {"kind": "uniform"}, "steps": SAMPLING_STEPS, "clip": True},
}
"""The lecture's recipe on the network of the digits: linear betas, noise prediction, L_simple, Adam."""


@dataclass(frozen=True)
class Row:
    """A line of the table: a configuration, and the reverse variance of its bound (and samples, if ancestral)."""

    group: str
    name: str
    over: Over = field(default_factory=dict[str, Any])
    variance: Variance = "small"
    ancestral: bool = False

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"

    def config(self, steps: int) -> Config:
        length = {"training": {"steps": steps}, "optimizer": {"warmup": max(1, steps // 20)}}
        return parse(Config, merge(merge(merge(digits(), BASE), self.over), length))


def of(schedule: Mapping[str, Any] | None = None, output: str | None = None, **weighting: Any) -> Over:
    """Overrides: a schedule, what the network predicts, and the objective."""
    model: Over = {}
    if schedule is not None:
        model["schedule"] = dict(schedule)
        if schedule["kind"] in ("edm", "learned"):
            # these tell the network log sigma, which spans a few units, and not an index up to 1000
            model["network"] = {"time_scale": 250.0}
    if output is not None:
        model["parameterization"] = {"kind": output}
    over: Over = {"model": model}
    if "weight" in weighting:
        over["objective"] = {"weight": {"kind": weighting.pop("weight"), **weighting}}
    return over


QUADRATIC = [(0.01 + (math.sqrt(0.02) - 0.01) * i / 999) ** 2 for i in range(1000)]
LOG_NORMAL: Over = {"objective": {"times": {"kind": "log_normal", "mean": -0.6, "std": 0.9}}}
BETWEEN: Over = {"objective": {"times": {"kind": "between_steps"}}}
# a hundred strata fill in the first steps of a short run
IMPORTANCE: Over = {"objective": {"times": {"kind": "loss_second_moment", "strata": 100}}}
KARRAS: Over = {"sampling": {"grid": {"kind": "karras"}}}
EDM = merge(merge(of({"kind": "edm", "sigma_max": 30.0}, "edm", weight="edm"), LOG_NORMAL), KARRAS)
ZERO = {"kind": "zero_terminal_snr", "table": {"kind": "linear"}}
# half a bin of 17 grey levels is three standard deviations of the noise there, as 13.3 is for 8-bit data
LEARNED = {"kind": "learned", "log_snr_max": 7.7}
HYBRID: Over = {"model": {"learned_variance": True}}

OF_SIMPLE: tuple[Variance, ...] = ("small", "large", "analytic")
OF_HYBRID: tuple[Variance, ...] = ("small", "learned", "analytic")

ROWS: list[Row] = [
    Row("schedules", "linear"),
    Row("schedules", "cosine", of({"kind": "cosine"})),
    Row("schedules", "sigmoid", of({"kind": "sigmoid"})),
    Row("schedules", "table: quadratic betas", of({"kind": "table", "betas": QUADRATIC})),
    Row("schedules", "linear, zero terminal SNR (v)", of(ZERO, "v", weight="output")),
    Row("schedules", "continuous linear", of({"kind": "continuous_linear"})),
    Row("schedules", "continuous cosine", of({"kind": "continuous_cosine"})),
    Row("schedules", "EDM (EDM output, weight, times)", EDM),
    Row("schedules", "rectified flow (velocity)", of({"kind": "flow"}, "velocity", weight="output")),
    Row("schedules", "learned (continuous VLB)", of(LEARNED, weight="vlb_continuous")),
    *(Row("parameterizations", kind, of(output=kind)) for kind in ("eps", "x0", "v", "score", "velocity", "edm")),
    # its L_simple is hopeless: the mean differs from x by a hundredth (Ho et al. 2020, table 2, found the same)
    Row("parameterizations", "mean, VLB", of(output="mean", weight="vlb")),
    Row("weightings", "L_simple"),
    Row("weightings", "L_simple, gamma between the steps", BETWEEN),
    Row("weightings", "VLB, small variance", of(weight="vlb")),
    Row("weightings", "VLB, large variance", of(weight="vlb", variance="large")),
    Row("weightings", "continuous VLB", of({"kind": "continuous_linear"}, weight="vlb_continuous")),
    Row("weightings", "P2, k = 1, gamma = 0.5", of(weight="p2", gamma=0.5)),
    Row("weightings", "P2, k = 1, gamma = 1", of(weight="p2", gamma=1.0)),
    Row("weightings", "min-SNR, gamma = 5", of(weight="min_snr")),
    Row("weightings", "soft min-SNR, gamma = 4", of(weight="soft_min_snr")),
    Row("weightings", "EDM, log-normal sigma", merge(of(weight="edm"), LOG_NORMAL)),
    Row("weightings", "sigmoid, b = 2", of(weight="sigmoid")),
    Row("weightings", "output, of v", of(output="v", weight="output")),
    Row("weightings", "VLB, importance sampling", merge(of(weight="vlb"), IMPORTANCE)),
    Row("weightings", "hybrid, learned variance", HYBRID, "learned"),
    *(Row("reverse variances", f"L_simple: {kind}", {}, kind, True) for kind in OF_SIMPLE),
    *(Row("reverse variances", f"hybrid: {kind}", HYBRID, kind, True) for kind in OF_HYBRID),
]


def common_levels(schedule: Schedule) -> Level:
    """One grid for all schedules, as far as they reach."""
    end = float(schedule(1.0).noise_to_signal)
    return grids.karras(schedule, COMMON_STEPS, sigma_min=0.5 / (BINS - 1), sigma_max=min(30.0, end))


def fresh(config: Config) -> Model:
    """A model before its training, the same for the same configuration."""
    loader, heldout = training_data(config)
    torch.manual_seed(0)
    return Model.build(config, describe(loader, len(heldout), config))


def train(model: Model, prepare: Callable[[Model], None] | None = None) -> float:
    """Train to the end and adopt the averaged weights; returns the seconds."""
    if prepare is not None:
        prepare(model)
    trainer = make_trainer(model, training_data(model.config)[0])
    began = time.perf_counter()
    for _ in trainer.run(model.config.training.steps):
        pass
    spent = time.perf_counter() - began
    with torch.no_grad():
        for name, parameter in model.denoiser.named_parameters():
            parameter.copy_(trainer.ema.average[name])
    model.denoiser.eval()
    return spent


@dataclass(frozen=True)
class Effort:
    """How much is computed for a row: training steps, samples, held-out images, terms of a bound, steps of the flow."""

    steps: int
    samples: int
    images: int
    draws: int
    flow_steps: int = 100


class Bench:
    """The evaluator that is common to all rows, and the models that were trained so far."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        train_set, heldout = read_data(parse(Config, digits()))
        self.heldout = heldout.batch(range(len(heldout)))
        self.judge = Evaluator(train_set, heldout, measures=("fd", "neighbours"))
        self.models: dict[str, tuple[Model, float, float]] = {}
        self.rows: dict[tuple[str, str, bool], dict[str, Any]] = {}

    def model(self, row: Row) -> tuple[Model, float, float]:
        """The trained model, the bound before its training, and the seconds; one training per configuration."""
        config = row.config(self.effort.steps)
        key = config.model_dump_json()
        if key not in self.models:
            model = fresh(config)
            before = self.bound(model, "small", common_levels(model.denoiser.schedule), 20)[0]
            self.models[key] = (model, before, train(model))
        return self.models[key]

    def bound(self, model: Model, kind: Variance, levels: Level, draws: int, own: bool = False) -> tuple[float, float]:
        if kind == "analytic" and model.fitted.gamma is None:
            tune(model, images=100)
        reverse = reverse_variance(kind, model.denoiser, levels, model.fitted, decoder=True)
        if kind != "analytic" and not (own and isinstance(model.denoiser.schedule, Discrete)):
            reverse = decoded(reverse)
        options: dict[str, Any] = {"levels": levels, "variance": reverse, "draws": draws, "batch_size": 250}
        found = bits_per_dim(model, self.heldout[: self.effort.images], bins=BINS, flow=False, **options).bound
        assert found is not None
        return found.mean, found.standard_error

    def flow(self, model: Model) -> tuple[float, float] | tuple[None, None]:
        images = self.heldout[: self.effort.images]
        try:
            integrator = partial(rk4, steps=self.effort.flow_steps)
            found = bits_per_dim(
                model.denoiser, images, bins=BINS, bound=False, integrator=integrator, batch_size=250
            ).flow
        except InputError:
            # a posterior mean that is not learned to a hundredth makes estimates that the integrator can't follow
            return None, None
        assert found is not None
        return found.mean, found.standard_error

    def draw(self, model: Model, row: Row) -> Tensor:
        sampler = {"solver": {"kind": "ancestral", "variance": row.variance}} if row.ancestral else {}
        return model.sample(self.effort.samples, seed=1, progress=False, **sampler)

    def __call__(self, row: Row) -> dict[str, Any]:
        """The numbers of a row; a configuration that is in the table twice is computed once."""
        key = (row.config(self.effort.steps).model_dump_json(), row.variance, row.ancestral)
        if key not in self.rows:
            self.rows[key] = self.compute(row)
        return {"group": row.group, "name": row.name, **self.rows[key]}

    def compute(self, row: Row) -> dict[str, Any]:
        model, untrained, seconds = self.model(row)
        schedule = model.denoiser.schedule
        draws, levels = self.effort.draws, default_levels(schedule, bins=BINS)
        bound, bound_error = self.bound(model, row.variance, levels, draws, own=True)
        common, common_error = self.bound(model, row.variance, common_levels(schedule), draws)
        # the flow knows no reverse variance
        flow, flow_error = (None, None) if row.ancestral else self.flow(model)
        scores = self.judge(self.draw(model, row))
        return {
            "bound": bound,
            "bound_error": bound_error,
            "common": common,
            "common_error": common_error,
            "untrained": untrained,
            "flow": flow,
            "flow_error": flow_error,
            "frechet": scores["FD"].value,
            "frechet_reference": scores["FD"].floor,
            "frechet_over_floor": scores["FD"].ratio,
            "neighbour_ratio": scores["nearest / real (classifier)"].value,
            "seconds": round(seconds, 1),
        }


HEADINGS = ("", "bound", "common", "flow", "Frechet / real")


def line(found: Mapping[str, Any]) -> str:
    def cell(name: str) -> str:
        value, error = found[name], found[f"{name}_error"]
        return "-" if value is None else f"{value:.3f} ± {error:.3f}"

    cells = (found["name"], cell("bound"), cell("common"), cell("flow"), f"{found['frechet_over_floor']:.2f}")
    return f"| {cells[0]:33} | {' | '.join(f'{c:>15}' for c in cells[1:])} |"


def table(rows: list[Row], bench: Bench, out: Path | None) -> list[dict[str, Any]]:
    """Every row, printed as it comes: a table that is also Markdown."""
    found: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        if index == 0 or row.group != rows[index - 1].group:
            print(f"\n| {row.group:33} | {' | '.join(f'{h:>15}' for h in HEADINGS[1:])} |")
            print(f"|{'-' * 35}|{'|'.join('-' * 16 + ':' for _ in HEADINGS[1:])}|", flush=True)
        found.append(bench(row))
        print(line(found[-1]), flush=True)
        if out is not None:
            out.write_text(json.dumps(found, indent=2) + "\n")
    return found


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="*", help="rows whose group/name matches, such as 'weightings/*'")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each row")
    parser.add_argument("--samples", type=int, default=1000, help="samples for the Frechet distance")
    parser.add_argument("--images", type=int, default=64, help="held-out images for bits per dimension")
    parser.add_argument("--draws", type=int, default=200, help="steps of the bound that are drawn for each image")
    parser.add_argument("--quick", action="store_true", help="a few steps, images and terms: whether it runs")
    parser.add_argument("--json", type=Path, default=None, help="a file for the numbers")
    options = parser.parse_args(arguments)
    effort = Effort(options.steps, options.samples, options.images, options.draws)
    if options.quick:
        effort = Effort(steps=120, samples=100, images=8, draws=20, flow_steps=20)
    rows = [row for row in ROWS if fnmatch.fnmatch(row.key, options.rows)]
    if not rows:
        parser.error(f"no row matches {options.rows!r}; they are: {', '.join(row.key for row in ROWS)}")
    return table(rows, Bench(effort), options.json)


if __name__ == "__main__":
    main()
