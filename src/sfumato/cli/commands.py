"""The commands."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sfumato.cli import engine, flags
from sfumato.cli.flags import option
from sfumato.config import Best, BestGrid, Component, Config, SamplingConfig, merge, parse, read_file
from sfumato.errors import InputError, nearest
from sfumato.recipes.published import PRESETS

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sfumato.models.model import Model

Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="A run directory, such as runs/digits.")]

_TRAIN = """\
Train a denoising diffusion model, show it, evaluate it, and leave it in a run directory.

Every setting of the configuration is an option. Its default is that of the recipe for the data, and a file given
with --config comes between: recipe, then file, then options.
"""


def train_options(config: Component) -> type[Any]:
    """The options of ``train``: where and how, then every setting of the configuration."""

    fields = {
        "run": option(Path | None, "The run directory (default: runs/ and the name of the data).", None),
        "resume": option(Path | None, "Go on with this run where it stopped, bit for bit.", None),
        "overwrite": option(bool, "Replace a run that is there.", False),
        "config": option(Path | None, "A file of settings, TOML or JSON; the config.json of a run is one.", None),
        "recipe": option(
            str | None,
            "Settings to start from: digits, images, ddpm, vectors, or a published model by a name that "
            "sfumato info --presets lists (default: as suits DATA).",
            None,
        ),
    }
    inner = flags.mirror(config)
    made = dataclasses.make_dataclass(
        "Train",
        [(name, kind, default) for name, (kind, default) in fields.items()]
        + [(f.name, f.type, f) for f in dataclasses.fields(inner)],
    )
    return made


def _take(arguments: list[str], name: str) -> str | None:
    """The value of an option that must be known before the others can be read."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"--{name}="):
            return argument.partition("=")[2]
        if argument == f"--{name}" and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def train(arguments: list[str]) -> int:
    from sfumato import recipes

    source = arguments[0] if arguments and not arguments[0].startswith("-") else None
    arguments = arguments[1:] if source is not None else arguments
    source = source or _take(arguments, "data.source")
    resume, file, recipe = _take(arguments, "resume"), _take(arguments, "config"), _take(arguments, "recipe")
    if resume is not None:
        if source is not None or file is not None or recipe is not None:
            raise InputError("A run that is resumed has its data and settings; leave DATA, --config and --recipe out.")
        from sfumato.models.storage import read_config

        values: dict[str, Any] = read_config(Path(resume))[0].model_dump()
    else:
        over = read_file(file) if file is not None else {}
        group = over.get("data", {})
        told = group if isinstance(group, dict) else {}
        named, layout = source or told.get("source"), _take(arguments, "data.layout") or told.get("layout")
        values = merge(recipes.named(recipe, named, layout).model_dump(), over)
        if file is not None:
            parse(Config, values, origin=str(file))
        if source is not None:
            values = merge(values, {"data": {"source": source}})
    base = parse(Config, merge(values, flags.config_kinds(Config, arguments)))
    options = flags.parse(train_options(base), arguments, prog="sfumato train [DATA]", description=_TRAIN)
    given = {name: dataclasses.asdict(getattr(options, name)) for name in Config.model_fields}
    config = parse(Config, given, origin="the options")

    from sfumato.io.files import SaveError
    from sfumato.runs import train as runs
    from sfumato.runs.reporting import Terminal

    if options.resume is not None and (options.run is not None or options.overwrite):
        raise InputError("--resume goes on with a run as it is; leave --run and --overwrite out.")
    terminal = Terminal()
    try:
        runs.train(
            config,
            run=options.resume or options.run,
            resume=options.resume is not None,
            overwrite=options.overwrite,
            reporter=terminal,
        )
    except runs.Interrupted as stop:
        terminal.close()
        terminal.say(str(stop))
        return 128 + stop.signal_number
    except runs.Diverged as error:
        terminal.close()
        terminal.say(
            f"sfumato: {error} Training stopped; {error.saved}. "
            "Try a lower optimizer.learning-rate, a longer optimizer.warmup, or training.precision fp32."
        )
        return 1
    except SaveError as error:
        terminal.close()
        terminal.say(f"sfumato: {error}")
        return 1
    finally:
        terminal.close()
    return 0


def _sampling(arguments: list[str], run: Path) -> SamplingConfig:
    """The sampling of a run, with the kinds that the options ask for."""
    from sfumato.models.storage import read_config

    stored = read_config(run)[0].sampling
    values = merge(stored.model_dump(), flags.config_kinds(SamplingConfig, arguments))
    return parse(SamplingConfig, values)


def with_sampling(
    prog: str, arguments: list[str], fields: dict[str, tuple[Any, Any]], description: str
) -> tuple[Any, SamplingConfig]:
    """Options of a command that draws samples: its own fields, then those of the run's sampling."""
    asked = any(a in ("-h", "--help") for a in arguments)
    run = next((a for a in arguments[:1] if not a.startswith("-")), None)
    if run is None and not asked:
        raise InputError(f"Say which run, before the options: {prog} RUN. See {prog} --help.")
    base = _sampling(arguments, Path(run)) if run is not None and not asked else SamplingConfig()
    inner = flags.mirror(base)
    own = [(name, kind, default) for name, (kind, default) in fields.items()]
    made = dataclasses.make_dataclass(
        "Options", [("run", Run, dataclasses.field()), *own, *[(f.name, f.type, f) for f in dataclasses.fields(inner)]]
    )
    options = flags.parse(made, arguments, prog=prog, description=description)
    given = dataclasses.asdict(options)
    sampling = parse(SamplingConfig, {k: given[k] for k in SamplingConfig.model_fields}, origin="the options")
    return options, sampling


def _with_fit(sampling: SamplingConfig, model: Model, arguments: list[str]) -> SamplingConfig:
    """The sampling with what was fitted for its number of steps, where no sampler and no grid is named."""
    if any(argument.startswith(("--sampler.", "--grid.")) for argument in arguments):
        return sampling
    found = sampling.model_copy(update={"sampler": Best(), "grid": BestGrid()}).tuned(model.fitted)
    return found if found.needs_plan else sampling


OUT = option(
    Path | None,
    "A .png for one grid, an .npz for the numbers, or a folder for single pictures "
    "(default: a grid in the samples of the run).",
    None,
)
DEVICE = option(str | None, "Where to compute: cpu, cuda, ... (default: a GPU if there is one).", None)


def sample(arguments: list[str]) -> int:
    fields = {
        "count": option(int, "How many images.", 64),
        "seed": option(int, "Which images: image i of a seed is always the same.", 0),
        "first": option(int, "The number of the first image of the seed.", 0),
        "label": option(
            str | None, "The class to draw, by name or number (default: all, as often as in the data).", None
        ),
        "out": OUT,
        "film": option(Path | None, "Also write the way from noise to images as an animation, .gif or .webp.", None),
        "film_x0": option(bool, "In the film, show the estimate of the images beside.", False),
        "device": DEVICE,
        **engine.ENGINE,
    }
    options, sampling = with_sampling(
        "sfumato sample",
        arguments,
        fields,
        "Draw images from a trained model.\n\nThe options of sampling start from those the run was trained with.",
    )
    from sfumato.io import images as pictures
    from sfumato.runs.reporting import bar

    check_out(options.out)
    if options.film is None and options.film_x0:
        raise InputError("--film-x0 says what a film shows; name one, such as --film out.gif.")
    if options.film is not None and options.film.suffix.lower() not in pictures.FILMS:
        raise InputError(f"A film is written as {' or '.join(pictures.FILMS)}; got {options.film}.")
    model = load_model(options.run, engine.device(options))
    sampling = _with_fit(sampling, model, arguments)
    model = engine.within(model, options, sampling)
    asked: dict[str, Any] = {
        "seed": options.seed,
        "first": options.first,
        "labels": class_label(options.label, model.facts.classes),
        "sampling": sampling,
    }
    if options.film is None:
        with bar("sampling", options.count) as advance:
            images = model.sample(options.count, progress=advance, **asked)
    else:
        if options.count > sampling.batch_size:
            raise InputError(
                f"A film shows one batch, {sampling.batch_size} images at most; --count is {options.count}."
            )
        with bar("sampling", sampling.steps) as advance:
            images, shown = _film(model, options.count, asked, options.film_x0, advance)
        pictures.save_film(shown, options.film)
        print(f"{len(shown)} frames: {options.film}")
    name = f"seed-{options.seed}-{options.first}-{options.first + options.count - 1}.png"
    write_images(images, options.out or options.run / "samples" / name, options.first)
    return 0


FRAMES = 100
"""About the most frames of a film; of more steps, every n-th is shown."""


def _film(
    model: Model, count: int, asked: dict[str, Any], estimates: bool, advance: Callable[[int], None]
) -> tuple[Tensor, list[Image]]:
    """Sampled images, and the pictures of the way there."""
    from sfumato.io import images as pictures

    steps: int = asked["sampling"].steps
    every = math.ceil(steps / FRAMES)
    shown: list[Image] = []
    frame = None
    for done, frame in enumerate(model.frames(count, **asked)):
        if (steps - done) % every == 0 or done == 0:
            # in units of its own size, so that the noise of every schedule looks alike
            size = math.hypot(float(frame.level.alpha), float(frame.level.sigma))
            sheets = [pictures.grid(frame.x / max(size, 1.0))]
            if estimates:
                sheets.append(pictures.grid(frame.x * 0.0 if frame.x0 is None else frame.x0))
            shown.append(pictures.beside(sheets))
        advance(done)
    assert frame is not None
    return frame.x.clamp(-1.0, 1.0).float().cpu(), shown


def check_out(out: Path | None) -> None:
    """Check that images can be written there.

    Raises:
        InputError: if not.
    """
    if out is not None and out.suffix not in ("", ".png", ".npz"):
        raise InputError(f"Images are written as .png, .npz or into a folder; got {out}.")


def write_images(images: Tensor, out: Path, first: int = 0, given: Tensor | None = None, **more: Tensor) -> None:
    """Write images as :data:`OUT` says, a grid with what was ``given`` at its start, and say where."""
    import torch

    from sfumato.io import images as pictures

    if out.suffix == ".png":
        pictures.save_grid(images if given is None else torch.cat([given, images]), out)
    elif out.suffix == ".npz":
        pictures.save_array(images, out, **more)
    else:
        pictures.save_each(images, out, first)
    print(f"{len(images)} images: {out}")


def class_label(text: str | None, classes: tuple[str, ...]) -> int | str | None:
    """A class by its name, else by its number."""
    return int(text) if text is not None and text not in classes and re.fullmatch("-?[0-9]+", text) else text


def load_model(run: Path, device: str | None) -> Model:
    """The model of a run, on the device that was asked for or on the best there is."""
    import torch

    from sfumato.models.model import load

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"There is no device {device!r} here that torch can use; cpu always works.") from None
    return load(run, device)


def evaluate(arguments: list[str]) -> int:
    fields = {
        "samples": option(int | None, "How many images to draw (default: as the run says; 1000 if none).", None),
        "seed": option(int | None, "Which images (default: as the run says).", None),
        "device": option(str | None, "Where to compute (default: a GPU if there is one).", None),
        "json": option(bool, "Print JSON in place of a table.", False),
        **engine.ENGINE,
    }
    options, sampling = with_sampling(
        "sfumato evaluate",
        arguments,
        fields,
        "Compare samples with the training images and with images that were held out.",
    )
    from rich.console import Console

    from sfumato import metrics
    from sfumato.models.evaluate import evaluate as run_evaluation
    from sfumato.models.evaluate import sample_count
    from sfumato.runs.reporting import bar

    model = load_model(options.run, engine.device(options))
    sampling = _with_fit(sampling, model, arguments)
    model = engine.within(model, options, sampling)
    count = options.samples if options.samples is not None else sample_count(model.config)
    with bar("sampling", count) as advance:
        result = run_evaluation(model, samples=count, seed=options.seed, sampling=sampling, progress=advance)
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        Console().print(metrics.table(result))
    return 0


@dataclasses.dataclass
class _Info:
    run: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="RUN",
            help="A run directory, or a published model by name: " + ", ".join(PRESETS) + ".",
            help_behavior_hint="",
        ),
    ] = None
    presets: Annotated[bool, tyro.conf.arg(help="List the published models and what they cost.")] = False
    settings: Annotated[
        Literal["changed", "all"], tyro.conf.arg(help="Which settings to list: those that are not defaults, or all.")
    ] = "changed"


def info(arguments: list[str]) -> int:
    options = flags.parse(
        _Info,
        arguments,
        prog="sfumato info",
        description="Say what a run is: data, model, settings, progress. Or what a published model is.",
    )
    from rich.console import Console

    from sfumato.models.model import load
    from sfumato.runs.reporting import presets_table, published_summary, summary

    if (options.run is None) != options.presets:
        raise InputError("A run directory, the name of a published model, or --presets alone is required.")
    if options.run is None:
        Console().print(presets_table(), highlight=False)
        return 0
    name, everything = str(options.run), options.settings == "all"
    if not options.run.exists() and name not in PRESETS and (near := nearest(name, PRESETS)).startswith("; did"):
        raise InputError(f"There is no run directory {name}, and no published model of that name{near}")
    if name in PRESETS and not options.run.exists():
        said = published_summary(name, PRESETS[name](), everything)
    else:
        said = summary(load(options.run), everything)
    Console().print(said, highlight=False)
    return 0
