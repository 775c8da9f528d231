"""``sfumato edit``: inpainting, SDEdit, DDIM inversion, interpolation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.commands import DEVICE, load_model, with_sampling
from sfumato.cli.flags import Fields, option, options_of
from sfumato.cli.output import OUT, check_out, out_of, write_images
from sfumato.errors import InputError, nearest
from sfumato.models.storage import is_system, read_config

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.models.model import Model

HELP = """\
usage: sfumato edit RUN HOW ...

Edit images with a trained model.

how:
  inpaint IMAGE --mask MASK      keep what is white (or opaque) in the mask, fill in the rest (RePaint)
  sdedit IMAGE --strength 0.6    sample an image again from its noisy version (SDEdit)
  invert IMAGE                   the noise of an image, and how well it gives the image back (DDIM inversion)
  interpolate --seeds 3 5        images between two, along the arc between their noises

An IMAGE is a file of the size and channels of the model (--fit makes it so), or an .npy array in [-1, 1] (of vectors in
the units of the data).
Each has its own help: sfumato edit inpaint --help
"""

_EDITS = "sfumato.models.edit"
_SEED = options_of("sfumato.models.model:Model.sample", "seed")
_IMAGE: Fields = {
    "image": option(Path, "An image file, or an .npy array.", ..., positional="IMAGE"),
    "fit": option(bool, "Scale, crop and recolour the image to what the model samples.", False),
    "value_range": option(
        tuple[float, float] | None,
        "The values of black and white in IMAGE (default: 0 255 in a file of 8 bits, those of the data of the run in a "
        "deeper one, -1 1 in an .npy).",
    ),
}
_SHARED: Fields = {**OUT, "device": DEVICE}


def edit(arguments: list[str]) -> int:
    helping = any(a in ("-h", "--help") for a in arguments)
    # RUN HOW or HOW RUN
    how = next((a for a in arguments[:2] if a in HOW), None)
    if not arguments or (helping and how is None):
        print(HELP, end="")
        return 0
    if how is None and len(arguments) > 1 and not arguments[1].startswith("-"):
        raise InputError(f"There is no edit {arguments[1]!r}{nearest(arguments[1], HOW)}")
    if how is None:
        raise InputError(f"Say which run, then how: sfumato edit RUN {'|'.join(HOW)}. See sfumato edit --help.")
    rest = list(arguments)
    rest.remove(how)
    return HOW[how](rest)


def _options(how: str, arguments: list[str], fields: Fields, text: str) -> tuple[Any, dict[str, Any]]:
    """The options, and those that the function takes: sampling and conditions."""
    text += "\n\nSampling options default to those of the run."
    options, sampling, given = with_sampling(f"sfumato edit {how}", arguments, {**fields, **_SHARED}, text)
    if is_system(options.run):
        # edits work on one of its stages, which this says
        read_config(options.run)
    check_out(options.out, getattr(options, "count", 1), overwrite=options.overwrite)
    return options, {"sampling": sampling, **given}


def _inpaint(arguments: list[str]) -> int:
    fields: Fields = {
        **_IMAGE,
        "mask": option(Path | None, "An image of the same size, opaque or white where to keep; or an .npy array."),
        **options_of(f"{_EDITS}:inpaint", "count", "repeats", "jump"),
        **_SEED,
    }
    text = (
        "Keep the part of an image that a mask shows and fill in the rest, by RePaint. The grid shows the part first."
    )
    options, settings = _options("inpaint", arguments, fields, text)
    if options.mask is None:
        raise InputError("Say what to keep: --mask MASK, an image that is opaque or white there.")
    import torch

    from sfumato.io import images as image_files
    from sfumato.models.edit import inpaint

    model = load_model(options)
    image = _read(options, model)
    mask = image_files.read_mask(options.mask, model.info.shape)
    more = {"repeats": options.repeats, "jump": options.jump, "seed": options.seed}
    images = inpaint(model, image, mask, options.count, **more, **settings)
    kept = torch.where(mask, image, 0.0)[None]
    _write(images, options, model, f"inpaint-{options.image.stem}", kept)
    return 0


def _sdedit(arguments: list[str]) -> int:
    fields: Fields = {**_IMAGE, **options_of(f"{_EDITS}:sdedit", "strength", "count"), **_SEED}
    text = "Sample an image again from its noisy version, by SDEdit. The grid shows the image first."
    options, settings = _options("sdedit", arguments, fields, text)
    from sfumato.models.edit import sdedit

    model = load_model(options)
    image = _read(options, model)
    images = sdedit(model, image, options.strength, options.count, seed=options.seed, **settings)
    _write(images, options, model, f"sdedit-{options.image.stem}", image[None])
    return 0


def _invert(arguments: list[str]) -> int:
    text = (
        "Find the noise that a deterministic sampler maps to an image, and sample from it again. The grid shows image, "
        "noise and reconstruction; an .npz holds them as images, noise and error."
    )
    options, settings = _options("invert", arguments, _IMAGE, text)
    import torch

    from sfumato.models.edit import invert

    model = load_model(options)
    image = _read(options, model)
    inversion = invert(model, image, **settings)
    error, steps = float(inversion.error), settings["sampling"].steps
    print(f"RMS of reconstruction less image: {error:.4g} in {steps} steps (values from -1 to 1)")
    shown = torch.cat([image[None], inversion.noise / max(1.0, float(inversion.noise.std(correction=0)))])
    more = {"noise": inversion.noise, "error": inversion.error}
    _write(inversion.reconstruction, options, model, f"invert-{options.image.stem}", shown, **more)
    return 0


def _interpolate(arguments: list[str]) -> int:
    fields: Fields = {
        "seeds": option(tuple[int, int], "The seeds whose first images are the ends.", (0, 1)),
        **options_of(f"{_EDITS}:interpolate", "count"),
    }
    text = "Sample images between two, from noises on the arc between theirs."
    options, settings = _options("interpolate", arguments, fields, text)
    from sfumato.models.edit import interpolate

    start, end = options.seeds
    model = load_model(options)
    images = interpolate(model, start, end, options.count, **settings)
    _write(images, options, model, f"between-{start}-{end}")
    return 0


def _read(options: Any, model: Model) -> Tensor:
    """The image as the model has it."""
    from sfumato.io import images as image_files

    ranges = {"value_range": options.value_range, "deep_range": model.config.data.value_range}
    image = image_files.read(options.image, model.info.shape, fit=options.fit, **ranges)
    return image if options.value_range is not None else model.info.standardized(image)


def _write(images: Tensor, options: Any, model: Model, name: str, given: Tensor | None = None, **more: Any) -> None:
    """Write what was sampled, by default into the run."""
    write_images(images, out_of(options, name), 0, given, info=model.info, overwrite=options.overwrite, more=more)


HOW: dict[str, Callable[[list[str]], int]] = {
    "inpaint": _inpaint,
    "sdedit": _sdedit,
    "invert": _invert,
    "interpolate": _interpolate,
}
"""What ``sfumato edit`` can do."""
