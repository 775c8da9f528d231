"""``sfumato evaluate``: runs, pictures and arrays against real pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sfumato.cli import flags
from sfumato.cli.commands import DEVICE, ENGINE, load_model, with_sampling
from sfumato.cli.flags import SEVERAL, Fields, option
from sfumato.cli.output import check_free
from sfumato.cli.sweep import evaluate_sweep
from sfumato.config import SamplingConfig
from sfumato.config.evaluation import FEATURES, MEASURES
from sfumato.errors import InputError
from sfumato.io.ranges import FLAG

if TYPE_CHECKING:
    from sfumato.metrics.report import Report

_TEXT = """\
Judge samples against real pictures: each measure with its standard error, beside what real pictures reach.

A SET is a run, which is sampled from and compared with the held-out pictures of its data; or a folder of pictures, an
.npy or .npz file, data by name, or an .npz of published statistics (mu and sigma), compared with --against REAL.

Several sets make one table: sfumato evaluate A B --against REAL. Options of sampling are for runs. Several processes
share the samples of a run: torchrun --nproc-per-node 2 -m -- sfumato evaluate RUN.
"""


_READING = ("size", "channels", "value_range", "most", "weights", "resize", "cache")


def evaluate(arguments: list[str]) -> int:
    fields: Fields = {
        "run": option(str, "A run directory, a folder of pictures, an array, or data by name.", ..., positional="SET"),
        "against": option(
            str | None, "Real pictures, as a SET; or heldout or training, those of the run (default: heldout)."
        ),
        "size": option(int | None, "The side that pictures of folders are resized to (default: as they are)."),
        "channels": option(Literal["grey", "rgb", "rgba"] | None, "The channels that pictures are converted to."),
        **flags.options_of("sfumato.data.sources:load", "value_range"),
        **flags.options_of("sfumato.models.evaluate:evaluate", "most"),
        "weights": option(Path | None, "The file of the weights of the features, where they are not included."),
        "resize": option(str | None, "How pictures are resized for Inception: pytorch-fid, clean-fid, torch-fidelity."),
        "cache": option(Path | None, "The folder that keeps features of real pictures (default: that of the user)."),
        "page": option(Path | None, "Also write a page with samples, their neighbours and curves, such as page.html."),
        "features": option(
            tuple[str, ...], f"In which features: {', '.join(FEATURES)} (default: what suits the data).", ()
        ),
        "measures": option(
            tuple[str, ...], f"Which measures: {', '.join(MEASURES)} (default: what suits the data).", ()
        ),
        "samples": option(int | None, "Number of images to sample (default: as the run says; 1000 if none)."),
        "captions": option(
            int | None, "Captions of each kind whose agreement is measured, of shapes (default: as the run says)."
        ),
        "embedder": option(
            Path | None,
            "A run of train --task contrast, which says how well samples fit their captions: CLIP score, R@1.",
        ),
        "seed": option(int | None, "The seed of those images (default: as the run says)."),
        "overwrite": option(
            bool, "Replace the page, and the evaluation.json of more samples of the same weights.", False
        ),
        "sweep": option(
            SEVERAL,
            "Judge a run at each value of a setting of sampling, in one table and one figure of fidelity against "
            "diversity: --sweep guidance.scale 0 1 2 4; with --guidance.classifier, both kinds of guidance.",
        ),
        "device": DEVICE,
        "json": option(bool, "Print JSON instead of a table.", False),
        **ENGINE,
    }
    scanned = flags.scan(arguments, {**fields, "label": option(SEVERAL, "")}, SamplingConfig)
    sets = scanned.words or [""]
    if len(sets) > 1 and "page" in scanned.values:
        raise InputError("A page shows one set; leave the others or --page out.")
    lines = [[word, *scanned.options] if word else scanned.options for word in sets]
    parsed = [with_sampling("sfumato evaluate", line, fields, _TEXT) for line in lines]
    check_free(parsed[0][0].page, parsed[0][0].overwrite)
    from sfumato.models.evaluate import evaluate as judge
    from sfumato.models.evaluate import is_run
    from sfumato.runs.setup import accelerator_without_settings

    of_runs = [
        name
        for name in scanned.values
        if name in ("samples", "captions", "embedder", "seed") or name.partition(".")[0] not in fields
    ]
    if of_runs and not any(is_run(word) for word in sets):
        raise InputError(
            f"--{of_runs[0].replace('_', '-')} is for runs, which are sampled from; all of a set is judged."
        )
    accelerator = accelerator_without_settings()
    if parsed[0][0].sweep is not None:
        options, sampling, given = parsed[0]
        real = options.against not in (None, "heldout", "training")
        if len(sets) > 1 or not is_run(sets[0]) or options.page is not None or real:
            raise InputError("A sweep judges one run by its own data; leave other sets, --against DATA and --page out.")
        if accelerator.num_processes > 1:
            options.device = str(accelerator.device)
        options.run = Path(options.run)
        judging = {name: getattr(options, name) for name in ("against", "most", "weights", "resize", "cache", "device")}
        judging |= {"spaces": options.features, "measures": options.measures}
        evaluate_sweep(options, sampling, given, judging, main=accelerator.is_main_process)
        accelerator.end_training()
        return 0
    reports: list[Report] = []
    options = parsed[0][0]
    for options, sampling, given in parsed:
        if accelerator.num_processes > 1:
            options.device = str(accelerator.device)
        subject: Any = options.run
        more = {name: getattr(options, name) for name in _READING}
        if is_run(subject):
            options.run = Path(subject)
            subject = load_model(options, sampling)
            asked = {name: getattr(options, name) for name in ("samples", "captions", "embedder", "seed")}
            more |= {"sampling": sampling, **asked, **given}
        own = options.against in (None, "heldout", "training")
        try:
            report = judge(
                subject,
                None if own else options.against,
                against=options.against if own else None,
                features=options.features,
                measures=options.measures,
                page=options.page,
                device=options.device,
                trust=options.trust,
                overwrite=options.overwrite,
                **more,
            )
        except InputError as error:
            # options of the data of a run have other names here
            said = str(error).replace(FLAG, "--value-range").replace("--data.size", "--size")
            raise InputError(said.replace("--data.channels", "--channels")) from error
        reports.append(report)
    if accelerator.is_main_process:
        _show(reports, options)
    accelerator.end_training()
    return 0


def _show(reports: list[Report], options: Any) -> None:
    from rich.console import Console

    from sfumato.metrics.report import table

    if options.json:
        values = [report.to_dict() for report in reports]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=2))
    else:
        Console().print(table(*reports))
    if options.page is not None:
        print(f"page: {options.page}")
