"""``sfumato likelihood``: bits per dimension of the data of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.cli import flags
from sfumato.config.sampling import Variance
from sfumato.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from sfumato.models.likelihood import Likelihood

_DESCRIPTION = """\
Bits per dimension of the data of a run: the variational bound, term by term, and the likelihood of the flow.

Of data that are not quantized there is only the flow. Several processes share the images: accelerate launch -m sfumato
likelihood RUN. The ledger of all steps, image by image, is written to likelihood.json in the run.
"""


@dataclasses.dataclass
class _Likelihood:
    run: Annotated[
        Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="A run directory, such as runs/digits.")
    ]
    images: Annotated[int, tyro.conf.arg(help="How many images, at most.")] = 100
    split: Annotated[Literal["heldout", "training"], tyro.conf.arg(help="Which images.")] = "heldout"
    bins: Annotated[
        int | None, flags.described("Values that a pixel can take (default: as the data have, 256 for 8-bit images).")
    ] = None
    steps: Annotated[
        int | None, flags.described("Steps of the bound (default: those of a table of betas, or 1000).")
    ] = None
    draws: Annotated[
        int | None, flags.described("Estimate the bound from this many steps per image (default: all).")
    ] = None
    variance: Annotated[
        Variance | None, flags.described("Reverse variance of the bound (default: learned, or small).")
    ] = None
    what: Annotated[
        Literal["both", "bound", "flow"], tyro.conf.arg(help="The bound, the probability flow, or both.")
    ] = "both"
    integrator: Annotated[
        Literal["rk4", "adaptive"], tyro.conf.arg(help="Of the flow: 100 fixed steps, or Dormand-Prince.")
    ] = "rk4"
    probes: Annotated[
        int | None,
        flags.described("Hutchinson probes of the flow, 0 for the exact divergence (default: 1 above 16 values)."),
    ] = None
    seed: Annotated[int, tyro.conf.arg(help="Which noise.")] = 0
    batch_size: Annotated[int, tyro.conf.arg(help="Images that are computed at once.")] = 64
    device: Annotated[str | None, flags.described("Where to compute (default: a GPU if there is one).")] = None
    json: Annotated[bool, tyro.conf.arg(help="Print JSON in place of a table.")] = False


def likelihood(arguments: list[str]) -> int:
    options = flags.parse(_Likelihood, arguments, prog="sfumato likelihood", description=_DESCRIPTION)
    if options.images < 1:
        raise InputError(f"A likelihood needs at least 1 image; --images is {options.images}.")
    from rich.console import Console

    from sfumato.cli.commands import load_model
    from sfumato.diffusion.likelihood import dormand_prince, rk4
    from sfumato.io.files import write_json
    from sfumato.models.evaluate import training_data
    from sfumato.models.likelihood import bits_per_dim
    from sfumato.runs.reporting import bar
    from sfumato.runs.train import engine

    accelerator = engine()
    several = accelerator.num_processes > 1
    model = load_model(options.run, str(accelerator.device) if several else options.device)
    loader, heldout = training_data(model.config)
    data = heldout if options.split == "heldout" else loader.dataset
    if len(data) == 0:
        raise InputError("This run holds out no images; take --split training.")
    if data.shape != model.facts.shape:
        raise InputError(
            "This run was trained on random windows; the likelihood of whole images is not that of a model."
        )
    data = data.subset(range(min(options.images, len(data))))
    bins = options.bins if options.bins is not None else data.bins
    if bins is None and options.what == "bound":
        raise InputError("These data are continuous, and have no bound in bits; take --what flow.")
    with bar("likelihood", -(-len(data) // accelerator.num_processes)) as advance:
        found = bits_per_dim(
            model,
            data,
            bins=bins,
            bound=options.what != "flow" and bins is not None,
            flow=options.what != "bound",
            steps=options.steps,
            variance=options.variance,
            draws=options.draws,
            probes=options.probes,
            integrator=rk4 if options.integrator == "rk4" else dormand_prince,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=advance,
        )
    if accelerator.is_main_process:
        value = {"step": model.step, "split": options.split, "images": len(data), **found.to_dict()}
        write_json(options.run / "likelihood.json", value)
        if options.json:
            print(json.dumps({key: v for key, v in value.items() if key != "ledger"}, indent=2))
        else:
            Console().print(_table(found, len(data), options.split))
    accelerator.end_training()
    return 0


def _table(found: Likelihood, images: int, split: str) -> Table:
    from rich.table import Table

    of = "continuous values" if found.bins is None else f"{found.bins} grey values"
    which = "held-out" if split == "heldout" else "training"
    made = Table(title=f"{images} {which} images of {found.dimensions} pixels with {of}", title_style="")
    for column in ("term", "bits/dim", "standard error"):
        made.add_column(column, justify="left" if column == "term" else "right")
    if found.bound is not None:
        bound = found.bound
        levels = list(bound.levels)
        made.add_row("L_T, the prior", f"{float(bound.prior.mean()):.4f}", "")
        made.add_row(f"L_1 to L_T-1, {bound.steps.shape[1]} steps", f"{float(bound.steps.sum(1).mean()):.4f}", "")
        made.add_row(f"L_0, the decoder at t = {float(levels[-2].t):.3g}", f"{float(bound.decoder.mean()):.4f}", "")
        made.add_row("variational bound", f"{bound.mean:.4f}", f"{bound.standard_error:.4f}", end_section=True)
    if found.flow is not None:
        flow = found.flow
        how = "exact divergence" if flow.probes == 0 else f"{flow.probes} Hutchinson probe{'s' * (flow.probes > 1)}"
        what = "density" if found.bins is None else "uniformly dequantized"
        made.add_row(f"probability flow, {what}, {how}", f"{flow.mean:.4f}", f"{flow.standard_error:.4f}")
    return made
