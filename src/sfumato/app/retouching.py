"""What the page does with a picture that is there: vary, blend, enlarge, fill in, sample again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sfumato.app import asking, pictures
from sfumato.app.jobs import Job
from sfumato.app.library import Library
from sfumato.errors import InputError
from sfumato.io.pictures import read_picture, write_picture
from sfumato.models import unclip
from sfumato.models.edit import sdedit
from sfumato.models.facts import facts_of
from sfumato.models.unclip import Unclip
from sfumato.models.upscale import upscale

_STEPS = 25  # of inversion and of sampling again, of unCLIP on the page
_STRENGTH = 0.5  # of variations by SDEdit
MOST_ENLARGED = 512
"""The largest side of a picture that is enlarged on the page."""


def unclip_of(library: Library, shape: tuple[int, ...] | None = None) -> tuple[str, Unclip] | None:
    """The first system of unCLIP, of pictures of that shape, and its name."""
    for name, entry in library.entries.items():
        if entry.system == "unclip" and (shape is None or entry.shape == shape):
            model = library.load(name)
            if isinstance(model, Unclip):
                return name, model
    return None


def variations(
    library: Library, path: Path, count: int, seed: int, job: Job, *, eta: float = 1.0
) -> tuple[Tensor, str]:
    """Variations of a picture, and how they were made: by the embedding, or by SDEdit of the model that made it."""
    with Image.open(pictures.checked(path)) as image:
        channels = 1 if image.mode in ("1", "L", "I", "I;16") else 3
        shape = (channels, image.height, image.width)
    found = unclip_of(library, shape)
    if found is not None:
        name, model = found
        job.note("inverting and sampling again")
        picture = pictures.of_model(str(path), shape)
        images = unclip.vary(model, picture, count, eta=eta, seed=seed, steps=_STEPS, progress=False)
        return images, f"Variation by its embedding ({name}, eta {eta:g})"
    asked = asking.restored(library, path)
    entry = library.entry(asked.model)
    if not entry.edits:
        raise InputError(
            f"Nothing here varies pictures of {entry.name}: that takes a system of unCLIP of the same size, or a "
            "single model of pictures."
        )
    model, given = library.load(entry.name), asking.conditions(entry, asked.prompt, asked.label)
    picture = pictures.of_model(str(path), entry.shape)
    images = sdedit(model, picture, _STRENGTH, count, seed=seed, progress=False, **given)
    return images, f"Variation by SDEdit ({entry.name}, strength {_STRENGTH:g})"


def enlarged(library: Library, path: Path, name: str | None, seed: int, folder: Path, job: Job) -> tuple[Path, str]:
    """A picture enlarged by a model of super-resolution, by default the one of photographs; its file and its size."""
    job.note("loading the model")
    model = library.load(name or "photos")
    picture = read_picture(pictures.checked(path))
    if max(picture.values.shape[1:]) > MOST_ENLARGED:
        raise InputError(
            f"The picture has {picture.size} pixels; the page enlarges up to {MOST_ENLARGED} a side, and "
            "sfumato upscale any size."
        )
    job.label = f"enlarging {picture.size}"

    def percent(done: int) -> None:
        job.advance(done, 100)

    values = upscale(model, picture.values, seed=seed, progress=percent)
    large = replace(picture, values=values)
    out = pictures.own_folder(folder) / f"{path.stem}-x{values.shape[1] // picture.values.shape[1]}.png"
    write_picture(large, out, facts_of(model, model.config.sampling, seed))
    return out, f"{picture.size} → {large.size}"


def blended(library: Library, first: str | None, second: str | None, count: int, job: Job) -> Tensor:
    """Pictures on the way from one to another, by their embeddings and noises."""
    found = unclip_of(library)
    if found is None:
        raise InputError("Blending takes a system of unCLIP: train one with sfumato train shapes --system unclip.")
    _, model = found
    job.note("inverting and blending")
    shape = tuple(model.info.shape)
    names = ("the first picture", "the second picture")
    both = [pictures.of_model(path, shape, name) for path, name in zip((first, second), names, strict=True)]
    return unclip.blend(model, torch.stack(both), count, steps=_STEPS, progress=False)
