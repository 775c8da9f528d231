"""``sfumato upscale``: pictures of any size, enlarged by a model of super-resolution."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import pretrained
from sfumato.cli.commands import DEVICE, load_model, with_sampling
from sfumato.cli.flags import Fields, option, options_of
from sfumato.cli.output import check_free, free_name
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.analysis.panels import Enlargements
    from sfumato.config import SamplingConfig
    from sfumato.io.pictures import Picture
    from sfumato.models.model import Model

TEXT = """\
Enlarge pictures of any size with a super-resolution model: in tiles that fit together, with colour profile, opacity,
depth and the camera's metadata kept.

Sampling options default to those of the run."""

_UPSCALE = "sfumato.models.upscale:upscale"
FIELDS: Fields = {
    "pictures": option(tuple[Path, ...], "Image files.", ..., positional="PICTURE"),
    "model": option(
        Path | None, "The run of a super-resolution model (default: the model of photographs that comes with sfumato)."
    ),
    **options_of(_UPSCALE, "scale", "seed", "index"),
    "count": option(int, "Number of samples of each picture, from --index on.", 1),
    **options_of(_UPSCALE, "tile", "overlap"),
    "out": option(
        Path | None,
        "A .png, .jpg or .webp for one sample of one picture, or a folder (default: NAME-x4.png beside each picture, "
        "numbered if the name is taken).",
    ),
    "overwrite": option(bool, "Replace existing files.", False),
    "panel": option(
        Path | None, "Also write a figure, .png: the input, its enlargements with insets, and where samples differ."
    ),
    "regression": option(Path | None, "Also show, in the panel, the result of this run, a regression baseline."),
    "truth": option(Path | None, "Also show, in the panel, the ground truth that the input was downscaled from."),
    "device": DEVICE,
}


def upscale(arguments: list[str]) -> int:
    options, sampling, given = with_sampling(
        "sfumato upscale", arguments, FIELDS, TEXT, model=_embedded, systems=False, given="low_resolution"
    )
    from sfumato.io.pictures import format_for, read_picture
    from sfumato.models.facts import facts_of
    from sfumato.models.upscale import low_resolution_of, passes

    run: Path = options.model or _embedded()
    _check(options)
    if options.model is None:
        print(f"model: {pretrained.SAID['photos']} ({run / 'card.md'})")
    model = load_model(options, sampling, run)
    passes(model, options.scale)
    scale = options.scale or low_resolution_of(model)[1].factor
    tiles = {"tile": options.tile, "overlap": options.overlap}
    facts = facts_of(model, sampling, options.seed, scale=scale, input_noise=sampling.input_noise, **tiles, **given)
    settings: dict[str, Any] = {"seed": options.seed, "scale": scale, "sampling": sampling, **tiles, **given}
    written = set[Path]()
    failed = 0
    for path in options.pictures:
        try:
            picture = read_picture(path)
            # what can be wrong with a file or a panel is said before the work
            if _is_file(options.out):
                format_for(options.out, scale * max(picture.values.shape[1:]))
            shown = None if options.panel is None else _beside(model, picture, settings, options)
            samples = _enlarge(model, picture, path, settings, facts, options, written)
        except (InputError, OSError) as error:
            if len(options.pictures) == 1:
                raise
            print(f"sfumato: {error}", file=sys.stderr)
            failed += 1
            continue
        if shown is not None:
            _draw(model, replace(shown, samples=samples), f"{path.name}, {picture.size}", sampling, options)
    if failed:
        print(f"sfumato: {failed} of {len(options.pictures)} pictures were not enlarged.", file=sys.stderr)
    return 1 if failed else 0


def _embedded() -> Path:
    """The model of photographs that comes along with the package."""
    return pretrained.path("photos")


def _is_file(out: Path | None) -> bool:
    """Whether ``--out`` names one picture, and no folder."""
    return out is not None and (out.is_file() or (bool(out.suffix) and not out.is_dir()))


def _check(options: Any) -> None:
    """Refuse, before any work, what could not be written or drawn."""
    from sfumato.io.pictures import format_for

    if not options.pictures:
        raise InputError("Name a picture: sfumato upscale PICTURE. See sfumato upscale --help.")
    one = len(options.pictures) == 1
    if options.count < 1:
        raise InputError(f"There is at least one sample of a picture; --count is {options.count}.")
    if _is_file(options.out):
        format_for(options.out)
        if not one or options.count > 1:
            raise InputError(f"{options.out} is one file, and there will be several pictures; name a folder.")
        check_free(options.out, options.overwrite)
    for name in ("regression", "truth"):
        if options.panel is None and getattr(options, name) is not None:
            raise InputError(f"--{name} belongs into a panel; name one with --panel FILE.png.")
    if options.panel is not None:
        if not one or options.panel.suffix.lower() != ".png":
            raise InputError("A panel shows one picture and is written as .png.")
        check_free(options.panel, options.overwrite)


def _enlarge(
    model: Model,
    picture: Picture,
    path: Path,
    settings: dict[str, Any],
    facts: dict[str, Any],
    options: Any,
    written: set[Path],
) -> list[Tensor]:
    """Write the samples of a picture; they come back where a panel shows them.

    What this command has ``written`` is not overwritten: pictures of several folders can have one name.
    """
    from sfumato.io.pictures import write_picture
    from sfumato.models.upscale import upscale

    kept: list[Tensor] = []
    for index in range(options.index, options.index + options.count):
        large = replace(picture, values=upscale(model, picture.values, index=index, **settings))
        out: Path | None = options.out
        if out is None or not _is_file(out):
            folder = path.parent if out is None else out
            name = f"{path.stem}-x{settings['scale']}" + (f"-{index}" if options.count > 1 else "")
            out = folder / f"{free_name(folder, name, ['.png'], options.overwrite, written)}.png"
            written.add(out)
        write_picture(large, out, {**facts, "index": index, "picture": path.name})
        print(f"{picture.size} -> {large.size}: {out}")
        kept += [large.values] if options.panel is not None else []
    return kept


def _beside(model: Model, picture: Picture, settings: dict[str, Any], options: Any) -> Enlargements:
    """What a panel shows of a picture beside its samples."""
    from sfumato.analysis.panels import Enlargements
    from sfumato.io.pictures import read_picture
    from sfumato.models.upscale import low_resolution_of, upscale

    down = low_resolution_of(model)[1].down
    truth = None if options.truth is None else read_picture(options.truth).values
    shown = Enlargements(picture.values, [], [], settings["scale"], down, truth=truth)
    if options.regression is None:
        return shown
    same = {name: settings[name] for name in ("scale", "seed", "tile", "overlap")}
    return replace(shown, regression=upscale(load_model(options, run=options.regression), picture.values, **same))


def _draw(model: Model, shown: Enlargements, what: str, sampling: SamplingConfig, options: Any) -> None:
    """The panel of one picture."""
    from sfumato.analysis import panels

    name = model.run.name if model.run is not None else "the model"
    steps = "1 step" if sampling.steps == 1 else f"{sampling.steps} steps"
    made = f"{name}, {steps} ({sampling.sampler.kind}), guidance {sampling.guidance.scale:g}"
    made += f", temperature {sampling.temperature:g}"
    if sampling.guidance.consistent is not False:
        made += ", consistent"
    names = [f"seed {options.seed}, index {options.index + number}" for number in range(len(shown.samples))]
    panels.save(panels.enlargements(replace(shown, names=names), f"{what}, x{shown.scale}: {made}"), options.panel)
    print(f"panel: {options.panel}")
