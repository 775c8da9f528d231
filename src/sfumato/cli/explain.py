"""``sfumato explain``: the lecture's figures, from a run, from data or in closed form."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Any

from sfumato.cli import flags
from sfumato.cli.commands import TRUST
from sfumato.cli.output import check_free, free_name
from sfumato.config import DataConfig, parse
from sfumato.errors import InputError, nearest


def _topics() -> dict[str, str]:
    tree = ast.parse((Path(__file__).parents[1] / "analysis" / "topics.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("explain_")]
    return {function.name.removeprefix("explain_"): ast.get_docstring(function) or "" for function in functions}


TOPICS = _topics()
"""Every topic and what it shows, from the docstrings of :mod:`sfumato.analysis.topics` as text: that needs no torch."""

_DESCRIPTION = """\
Plot a figure of the lecture as PNG and SVG, and say what it shows.

SOURCE is a run, or data by name or path as for train (default: digits; an example density for marginals and flow).
Without a run, the denoiser is that of a Gaussian fitted to the data, in closed form, on the cosine schedule.
The topic stitch takes a second run for the detail: sfumato explain stitch RUN RUN2.
"""


_OPTIONS: flags.Fields = {
    "out": flags.option(
        Path | None, "Folder to write to (default: explain in the run, or explain/; numbered if the name is taken)."
    ),
    "overwrite": flags.option(bool, "Replace existing figures.", False),
    "count": flags.option(int, "Number of images to look at, at most.", 512),
    "seed": flags.option(int, "Seed of the noise.", 0),
    "device": flags.option(str | None, "Device to compute on (default: a GPU if there is one)."),
    "trust": TRUST,
}


def explain(arguments: list[str]) -> int:
    if not arguments:
        print("usage: sfumato explain TOPIC [RUN or DATA] [--out DIR]\n\ntopics:")
        for name, text in TOPICS.items():
            print(f"  {name:<10} {text}")
        return 0
    words = list(itertools.takewhile(lambda a: not a.startswith("-"), arguments))
    topic, *sources = words or [""]
    if not topic and not {"-h", "--help"} & set(arguments):
        raise InputError("Say which topic before any option: sfumato explain TOPIC. See sfumato explain.")
    if topic and topic not in TOPICS:
        raise InputError(f"There is no topic {topic!r}{nearest(topic, TOPICS)}")
    if len(sources) > (2 if topic == "stitch" else 1):
        raise InputError(
            f"There is one source too many, {words[-1]!r}: a topic takes one run or data, and stitch up to two runs."
        )
    source = sources[0] if sources else None
    run = Path(source) if source is not None and (Path(source) / "config.json").is_file() else None
    fields = {**_OPTIONS, "data": flags.group(parse(DataConfig, {"source": source or "digits"}))}
    options = flags.parse(
        fields, arguments[len(words) :], prog="sfumato explain TOPIC [SOURCE]", description=_DESCRIPTION
    )
    data = parse(DataConfig, options.data.model_dump(), origin="the options")
    if len(sources) > 1 and run is None:
        raise InputError(f"Two runs are stitched, and {source} is not one; give the directories of two runs.")
    if run is not None and any(a.startswith("--data.") for a in arguments):
        raise InputError("A run has its own data; leave the options of data out.")
    if options.count < 2:
        raise InputError(f"Views need at least 2 images; --count is {options.count}.")

    import torch

    from sfumato.analysis import plots, topics

    if options.out is not None and (options.out.suffix.lower() in plots.SUFFIXES or options.out.is_file()):
        raise InputError(f"--out is the folder of the PNG and the SVG of a figure; got {options.out}.")
    ends = plots.SUFFIXES
    folder: Path = options.out or (run or Path()) / "explain"
    for end in ends if options.out is not None else ():
        check_free(folder / f"{topic}{end}", options.overwrite)
    name = free_name(folder, topic, ends, options.overwrite)

    if run is None:
        given = source is not None or data.source != "digits"
        subject = topics.of_data(data.build(), given=given, count=options.count, seed=options.seed)
    else:
        second = Path(sources[1]) if len(sources) > 1 else None
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        more: dict[str, Any] = {"count": options.count, "seed": options.seed, "device": device, "trust": options.trust}
        subject = topics.of_run(run, second, **more)
    figure, sentence = topics.TOPICS[topic](subject)
    for path in plots.save(figure, folder, name):
        print(path)
    print(sentence[:1].upper() + sentence[1:])
    return 0
