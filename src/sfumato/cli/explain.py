"""``sfumato explain``: the lecture's figures, drawn from a run, from data or in closed form."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli import flags
from sfumato.config import Config, DataConfig, parse
from sfumato.errors import InputError, nearest

if TYPE_CHECKING:
    from sfumato.analysis.topics import Other, Subject
    from sfumato.models.model import Model

TOPICS = {
    "forward": "an image on its way to noise, step by step",
    "marginals": "how a density in one dimension diffuses, and the lines of its probability flow",
    "flow": "the same in the plane",
    "schedules": "signal, noise, log-SNR and beta of the noise schedules",
    "reverse": "a sample on its way from noise, with what the denoiser sees in it",
    "loss": "the loss at each time, beside the closed form of a Gaussian fitted to the data",
    "spectrum": "which frequencies of the data drown in the noise, and when",
    "content": "what of an image survives when it is diffused and drawn anew",
    "stitch": "one denoiser for the content, another for the detail (needs a run; a second one may follow)",
    "hierarchy": "the bits that each latent carries: the terms of the variational bound",
}
"""Every topic, and what it shows; here, so that listing them costs no torch."""

_DESCRIPTION = """\
Draw a figure of the lecture as PNG and SVG, and say what it shows.

SOURCE is a run, or data by name or path as for train (default: digits; a drawn density for marginals and flow).
Without a run, the denoiser is that of a Gaussian fitted to the data, in closed form, on the cosine schedule.
The topic stitch takes a second run, which draws the detail: sfumato explain stitch RUN RUN2.
"""


def explain(arguments: list[str]) -> int:
    if not arguments:
        _list()
        return 0
    asked = any(a in ("-h", "--help") for a in arguments)
    words = list(itertools.takewhile(lambda a: not a.startswith("-"), arguments))
    if not asked and not words:
        raise InputError("Say which topic before any option: sfumato explain TOPIC. See sfumato explain.")
    if words and words[0] not in TOPICS:
        raise InputError(f"There is no topic {words[0]!r}{nearest(words[0], TOPICS)}")
    if len(words) > (3 if words[:1] == ["stitch"] else 2):
        raise InputError(
            f"There is one source too many, {words[-1]!r}: a topic takes one run or data, and stitch up to two runs."
        )
    source = words[1] if len(words) > 1 else None
    options = _options(source, arguments[len(words) :])
    run = Path(source) if source is not None and (Path(source) / "config.json").is_file() else None
    second = Path(words[2]) if len(words) > 2 else None
    if second is not None and run is None:
        raise InputError(f"Two runs are stitched, and {source} is not one; give the directories of two runs.")
    if run is not None and any(a.startswith("--data.") for a in arguments):
        raise InputError("A run has its own data; leave the options of data out.")
    if options.count < 2:
        raise InputError(f"Views need at least 2 images; --count is {options.count}.")

    from sfumato.analysis import style, topics

    subject = _of_run(run, options, second) if run is not None else _of_data(source, options)
    drawn, sentence = topics.TOPICS[words[0]](subject)
    folder: Path = options.out or (run / "explain" if run is not None else Path("explain"))
    for path in style.save(drawn, folder, words[0]):
        print(path)
    print(sentence[:1].upper() + sentence[1:])
    return 0


def _list() -> None:
    print("usage: sfumato explain TOPIC [RUN or DATA] [--out DIR]\n\ntopics:")
    for name, text in TOPICS.items():
        print(f"  {name:<10} {text}")


def _options(source: str | None, arguments: list[str]) -> Any:
    fields = {
        "out": flags.option(Path | None, "Where to write (default: explain in the run, or explain/).", None),
        "count": flags.option(int, "How many images to look at, at most.", 512),
        "seed": flags.option(int, "Which noise.", 0),
        "device": flags.option(str | None, "Where to compute (default: a GPU if there is one).", None),
    }
    data = flags.mirror(DataConfig(source=source or "digits"))
    made = dataclasses.make_dataclass(
        "Explain",
        [(name, kind, default) for name, (kind, default) in fields.items()]
        + [("data", data, dataclasses.field(default_factory=data))],
    )
    return flags.parse(made, arguments, prog="sfumato explain TOPIC [SOURCE]", description=_DESCRIPTION)


def _fitted(size: int, dimensions: int) -> int:
    """How many of ``size`` training images a Gaussian is fitted to: the time grows with their square."""
    return min(size, math.isqrt(10**10 // dimensions))


def _of_data(source: str | None, options: Any) -> Subject:
    from sfumato.analysis import topics
    from sfumato.diffusion.schedule import ContinuousCosine
    from sfumato.random import permutation
    from sfumato.sampling.ddim import ddim
    from sfumato.sampling.grids import uniform

    config = parse(DataConfig, dataclasses.asdict(options.data), origin="the options")
    data = config.build()
    chosen = permutation(options.seed, "explain", 0, len(data))
    training, schedule = data.batch(chosen[: _fitted(len(data), math.prod(data.shape))]), ContinuousCosine()
    return topics.Subject(
        data.name,
        source is not None or config.source != "digits",
        data.batch(chosen[: options.count]),
        {},
        training,
        None,
        f"the Gaussian of {data.name}",
        schedule,
        uniform(schedule, 100),
        ddim,
        options.seed,
    )


def _of_run(run: Path, options: Any, second: Path | None = None) -> Subject:
    import torch

    from sfumato.analysis import topics
    from sfumato.models.model import load
    from sfumato.runs.train import training_data

    model = load(run, options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.denoiser.eval()
    config: Config = model.config
    loader, heldout = training_data(config)
    training = loader.batch(0, _fitted(len(loader.dataset), math.prod(loader.shape))).x0
    if len(heldout) >= 2 and heldout.shape == model.facts.shape:
        # what the model was not trained on, as far as there is any
        count = min(options.count, len(heldout))
        images, labels = heldout.batch(range(count)), heldout.labels
    else:
        batch = loader.batch(0, min(options.count, len(loader.dataset)))
        images, labels = batch.x0, None if batch.labels is None else batch.labels.numpy()
    cond: dict[str, Any] = {}
    if model.facts.classes and labels is not None:
        cond["label"] = torch.as_tensor(labels[: len(images)]).to(model.device)
    denoise, levels, step = model.sampler()
    return topics.Subject(
        loader.dataset.name,
        True,
        images.to(model.device),
        cond,
        training,
        denoise,
        f"run {run.resolve().name}",
        model.denoiser.schedule,
        levels,
        step,
        options.seed,
        None if second is None else _other(second, model),
    )


def _other(run: Path, first: Model) -> Other:
    from sfumato.analysis import topics
    from sfumato.models.model import load

    model = load(run, first.device)
    model.denoiser.eval()
    facts = model.facts
    same, name = facts.classes == first.facts.classes, run.resolve().name
    # of two runs with one name, the second is told by its path
    who = f"run {run}" if first.run is not None and first.run.resolve().name == name else f"run {name}"
    return topics.Other(who, facts.shape, model.denoiser, model.denoiser.schedule, same)
