"""``sfumato edit``: paint what is missing in an image, redraw it, find its noise, go between two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.cli.commands import DEVICE, OUT, check_out, class_label, load_model, option, with_sampling, write_images
from sfumato.errors import InputError, nearest

HELP = """\
usage: sfumato edit RUN HOW ...

Edit images with a trained model.

how:
  inpaint IMAGE --mask MASK      keep what is white in the mask, paint the rest (RePaint)
  sdedit IMAGE --strength 0.6    redraw an image from its noisy version (SDEdit)
  invert IMAGE                   the noise of an image, and how well it gives the image back (DDIM inversion)
  interpolate --seeds 3 5        images between two, along the arc between their noises

An image is a picture of the size and channels that the model draws (--fit makes it so), or an .npy array in [-1, 1].
Each has its own help: sfumato edit inpaint --help
"""

_IMAGE = (
    Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE", help="A picture, or an .npy array.")],
    dataclasses.field(),
)
_FIT = option(bool, "Scale, crop and recolour the picture to what the model draws.", False)
_SEED = option(int, "Which answers: answer i of a seed is always the same.", 0)
_LABEL = option(str | None, "The class, by name or number (default: as sample draws them).", None)
_COUNT = option(int, "How many answers.", 15)


def edit(arguments: list[str]) -> int:
    asked = any(a in ("-h", "--help") for a in arguments)
    # RUN HOW or HOW RUN
    how = next((a for a in arguments[:2] if a in HOW), None)
    if not arguments or (asked and how is None):
        print(HELP, end="")
        return 0
    if how is None and len(arguments) > 1 and not arguments[1].startswith("-"):
        raise InputError(f"There is no edit {arguments[1]!r}{nearest(arguments[1], HOW)}")
    if how is None:
        raise InputError(f"Say which run, then how: sfumato edit RUN {'|'.join(HOW)}. See sfumato edit --help.")
    rest = list(arguments)
    rest.remove(how)
    return HOW[how](rest)


def _options(how: str, arguments: list[str], fields: dict[str, tuple[Any, Any]], text: str) -> tuple[Any, Any]:
    text += "\n\nThe options of sampling start from those the run was trained with."
    options, sampling = with_sampling(f"sfumato edit {how}", arguments, fields, text)
    check_out(options.out)
    return options, sampling


def _inpaint(arguments: list[str]) -> int:
    fields = {
        "image": _IMAGE,
        "mask": option(Path | None, "A picture of the same size, white where to keep; or an .npy array.", None),
        "count": _COUNT,
        "repeats": option(int, "How often each stretch of the way is walked, for the new to fit the old.", 10),
        "jump": option(int, "The length of a stretch in steps.", 1),
        "seed": _SEED,
        "label": _LABEL,
        "fit": _FIT,
        "out": OUT,
        "device": DEVICE,
    }
    text = "Keep the part of an image that a mask shows and paint the rest, by RePaint. The grid shows the part first."
    options, sampling = _options("inpaint", arguments, fields, text)
    if options.mask is None:
        raise InputError("Say what to keep: --mask MASK, a picture that is white there.")
    import torch

    from sfumato.io import images as pictures
    from sfumato.models.edit import inpaint
    from sfumato.runs.reporting import bar

    model = load_model(options.run, options.device)
    image = pictures.read(options.image, model.facts.shape, fit=options.fit)
    mask = pictures.read_mask(options.mask, model.facts.shape)
    with bar("inpainting", options.count) as advance:
        images = inpaint(
            model,
            image,
            mask,
            options.count,
            repeats=options.repeats,
            jump=options.jump,
            seed=options.seed,
            labels=class_label(options.label, model.facts.classes),
            sampling=sampling,
            progress=advance,
        )
    kept = torch.where(mask, image, 0.0)[None]
    write_images(images, options.out or _default(options, f"inpaint-{options.image.stem}"), given=kept)
    return 0


def _sdedit(arguments: list[str]) -> int:
    fields = {
        "image": _IMAGE,
        "strength": option(float, "How much is drawn anew, above 0 and up to 1.", 0.5),
        "count": _COUNT,
        "seed": _SEED,
        "label": _LABEL,
        "fit": _FIT,
        "out": OUT,
        "device": DEVICE,
    }
    text = "Redraw an image from its noisy version, by SDEdit. The grid shows the image first."
    options, sampling = _options("sdedit", arguments, fields, text)
    from sfumato.io import images as pictures
    from sfumato.models.edit import sdedit
    from sfumato.runs.reporting import bar

    model = load_model(options.run, options.device)
    image = pictures.read(options.image, model.facts.shape, fit=options.fit)
    with bar("redrawing", options.count) as advance:
        images = sdedit(
            model,
            image,
            options.strength,
            options.count,
            seed=options.seed,
            labels=class_label(options.label, model.facts.classes),
            sampling=sampling,
            progress=advance,
        )
    write_images(images, options.out or _default(options, f"sdedit-{options.image.stem}"), given=image[None])
    return 0


def _invert(arguments: list[str]) -> int:
    fields = {"image": _IMAGE, "label": _LABEL, "fit": _FIT, "out": OUT, "device": DEVICE}
    text = (
        "Find the noise that a deterministic sampler draws an image from, and draw it again. The grid shows image, "
        "noise and reconstruction; an .npz holds them as images, noise and error."
    )
    options, sampling = _options("invert", arguments, fields, text)
    import torch

    from sfumato.io import images as pictures
    from sfumato.models.edit import invert

    model = load_model(options.run, options.device)
    image = pictures.read(options.image, model.facts.shape, fit=options.fit)
    found = invert(model, image, labels=class_label(options.label, model.facts.classes), sampling=sampling)
    print(f"RMS of reconstruction less image: {float(found.error):.4g} in {sampling.steps} steps (values from -1 to 1)")
    shown = torch.cat([image[None], found.noise / max(1.0, float(found.noise.std(correction=0)))])
    out = options.out or _default(options, f"invert-{options.image.stem}")
    write_images(found.reconstruction, out, given=shown, noise=found.noise, error=found.error)
    return 0


def _interpolate(arguments: list[str]) -> int:
    fields = {
        "seeds": option(tuple[int, int], "The seeds whose first images are the ends.", (0, 1)),
        "count": option(int, "How many images, both ends among them.", 8),
        "label": option(str | None, "The class of all, by name or number (default: that of the first image).", None),
        "out": OUT,
        "device": DEVICE,
    }
    text = "Draw images between two, from noises on the arc between theirs."
    options, sampling = _options("interpolate", arguments, fields, text)
    from sfumato.models.edit import interpolate
    from sfumato.runs.reporting import bar

    model = load_model(options.run, options.device)
    start, end = options.seeds
    with bar("interpolating", options.count) as advance:
        images = interpolate(
            model,
            start,
            end,
            options.count,
            labels=class_label(options.label, model.facts.classes),
            sampling=sampling,
            progress=advance,
        )
    write_images(images, options.out or _default(options, f"between-{start}-{end}"))
    return 0


def _default(options: Any, name: str) -> Path:
    return options.run / "samples" / f"{name}.png"


HOW: dict[str, Callable[[list[str]], int]] = {
    "inpaint": _inpaint,
    "sdedit": _sdedit,
    "invert": _invert,
    "interpolate": _interpolate,
}
"""What ``sfumato edit`` can do."""
