"""``sfumato tune`` and ``sfumato likelihood``: what is computed with the data of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from sfumato.cli import flags
from sfumato.cli.commands import DEVICE, RUN, TRUST, load_model
from sfumato.cli.flags import Fields, option, options_of
from sfumato.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from sfumato.models.likelihood import Likelihood

_TUNE = """\
Fit to a trained model what samples and bounds gain from, and keep it in the run.

By default this is the Gamma of Analytic-DPM, estimated in one pass over training images: the optimal variance of the
reverse process follows from it, on any grid (--sampler.variance analytic), and so does the grid of the lowest bound
(--grid.kind optimal).

With --steps it is a grid of that many steps, and the weights of a solver on it, whose images are nearly those of very
many steps. Sampling in that number of steps uses them, unless another sampler or grid is named.
"""


def tune(arguments: list[str]) -> int:
    names = ("steps", "coefficients", "noises", "images", "levels", "estimator", "seed")
    fields: Fields = {
        "run": RUN,
        **options_of("sfumato.models.calibrate:tune", *names),
        "device": DEVICE,
        "trust": TRUST,
    }
    options = flags.parse(fields, arguments, prog="sfumato tune", description=_TUNE)
    from sfumato.models.calibrate import tune as fit

    model = load_model(options)
    settings = {name: getattr(options, name) for name in names}
    if options.steps is None:
        settings["images"] = min(options.images, model.info.train)
    fitted = fit(model, **settings)
    where = options.run / "fitted.json"
    if options.steps is None:
        print(f"Gamma at {options.levels} levels, from {settings['images']} images: {where}")
        print(f"use it    sfumato sample {options.run} --sampler.kind ancestral --sampler.variance analytic")
        return 0
    plan = fitted.solvers[options.steps]
    print(
        f"a grid of {options.steps} steps, from {options.noises} noises: {where}\n"
        f"error     {plan.error:.3g} to the exact flow on held-out noises; best usual solver: {plan.baseline:.3g}\n"
        f"use it    sfumato sample {options.run} --steps {options.steps}"
    )
    return 0


_LIKELIHOOD = """\
Bits per dimension of a run's data: the variational bound, term by term, and the likelihood of the flow.

Data that are not quantized have only the flow. Several processes share the images: accelerate launch -m sfumato
likelihood RUN. The ledger of all steps, image by image, is written to likelihood.json in the run; one of more images of
the same weights is kept.
"""
_BITS = "sfumato.models.likelihood:bits_per_dim"


def likelihood(arguments: list[str]) -> int:
    fields: Fields = {
        "run": RUN,
        "images": option(int, "Number of images, at most.", 100),
        "split": option(Literal["heldout", "training"], "Which images.", "heldout"),
        "bins": option(int | None, "Values that a pixel can take (default: as the data have, 256 for 8-bit images)."),
        **options_of(_BITS, "steps", "draws"),
        "variance": option(
            Literal["small", "large", "learned", "analytic"] | None,
            "Reverse variance of the bound (default: learned, or small).",
        ),
        "what": option(Literal["both", "bound", "flow"], "The bound, the probability flow, or both.", "both"),
        "integrator": option(
            Literal["rk4", "adaptive"], "Of the flow: 100 fixed steps, or Dormand-Prince's adaptive ones.", "rk4"
        ),
        **options_of(_BITS, "probes", "seed", "batch_size"),
        "device": DEVICE,
        "json": option(bool, "Print JSON instead of a table.", False),
        "overwrite": option(bool, "Replace the likelihood.json of more images of the same weights.", False),
        "trust": TRUST,
    }
    options = flags.parse(fields, arguments, prog="sfumato likelihood", description=_LIKELIHOOD)
    if options.images < 1:
        raise InputError(f"A likelihood needs at least 1 image; --images is {options.images}.")
    from rich.console import Console

    from sfumato.diffusion.likelihood import dormand_prince, rk4
    from sfumato.models.data import read_data
    from sfumato.models.likelihood import bits_per_dim
    from sfumato.models.storage import write_record
    from sfumato.runs.setup import accelerator_without_settings

    accelerator = accelerator_without_settings()
    if accelerator.num_processes > 1:
        options.device = str(accelerator.device)
    model = load_model(options)
    model.require_denoiser()
    train_set, heldout = read_data(model.config)
    data = heldout if options.split == "heldout" else train_set
    if len(data) == 0:
        raise InputError("This run holds out no images; take --split training.")
    if data.shape != model.info.shape:
        raise InputError(
            "This run was trained on random windows; the likelihood of whole images is not that of a model."
        )
    data = data.subset(range(min(options.images, len(data))))
    bins = options.bins if options.bins is not None else data.bins
    if bins is None and options.what == "bound":
        raise InputError("These data are continuous, and have no bound in bits; take --what flow.")
    result = bits_per_dim(
        model,
        data,
        bins=bins,
        bound=options.what != "flow" and bins is not None,
        flow=options.what != "bound",
        integrator=rk4 if options.integrator == "rk4" else dormand_prince,
        **{name: getattr(options, name) for name in ("steps", "variance", "draws", "probes", "seed", "batch_size")},
    )
    if accelerator.is_main_process:
        value = {"step": model.step, "split": options.split, "images": len(data), **result.to_dict()}
        write_record(options.run / "likelihood.json", value, "images", overwrite=options.overwrite)
        if options.json:
            print(json.dumps({key: v for key, v in value.items() if key != "ledger"}, indent=2))
        else:
            Console().print(_table(result, len(data), options.split))
    accelerator.end_training()
    return 0


def _table(result: Likelihood, images: int, split: str) -> Table:
    from rich.table import Table

    values = "continuous values" if result.bins is None else f"{result.bins} grey values"
    which = "held-out" if split == "heldout" else "training"
    table = Table(title=f"{images} {which} images of {result.dimensions} pixels with {values}", title_style="")
    for column in ("term", "bits/dim", "standard error"):
        table.add_column(column, justify="left" if column == "term" else "right")
    if result.bound is not None:
        bound = result.bound
        table.add_row("L_T, the prior", f"{float(bound.prior.mean()):.4f}", "")
        table.add_row(f"L_1 to L_T-1, {bound.steps.shape[1]} steps", f"{float(bound.steps.sum(1).mean()):.4f}", "")
        last = float(bound.levels[-2].t)
        table.add_row(f"L_0, the decoder at t = {last:.3g}", f"{float(bound.decoder.mean()):.4f}", "")
        table.add_row("variational bound", f"{bound.mean:.4f}", f"{bound.standard_error:.4f}", end_section=True)
    if result.flow is not None:
        flow = result.flow
        how = "exact divergence" if flow.probes == 0 else f"{flow.probes} Hutchinson probe{'s' * (flow.probes > 1)}"
        what = "density" if result.bins is None else "uniformly dequantized"
        table.add_row(f"probability flow, {what}, {how}", f"{flow.mean:.4f}", f"{flow.standard_error:.4f}")
    return table
