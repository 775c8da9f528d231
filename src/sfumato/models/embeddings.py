"""Embeddings of images and captions in one space (CLIP), and data with those of their images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.conditioning import Text
from sfumato.conditioning.base import take
from sfumato.conditioning.contrast import CAPTION, IMAGE, Contrast
from sfumato.conditioning.low_resolution import LowResolution
from sfumato.data import Dataset
from sfumato.data.arrays import standardized
from sfumato.data.dataset import Column, Units, as_tensor
from sfumato.errors import InputError
from sfumato.io.progress import Progress, progress_bar
from sfumato.metrics.cache import content_hash, kept
from sfumato.models.clip import is_clip, load_clip
from sfumato.models.model import Model, load
from sfumato.models.storage import read_config
from sfumato.random import Draws

_PART = 250  # images or captions that are embedded at once
_HASHED = 1024  # images by which data are known


def embed_images(model: Model, images: Any) -> Float[Tensor, "batch features"]:
    """The embeddings of images, of unit length, on the CPU.

    Args:
        model: the model of a run of ``train --task contrast``.
        images: ``(N, C, *space)`` of the shape that it was trained on, a tensor or an array: float32 in [-1, 1], or
            uint8.
    """
    contrast, shape = contrast_of(model), tuple(model.info.shape)
    values = images.numpy(force=True) if torch.is_tensor(images) else np.asarray(images)
    shape = (shape[0], *values.shape[2:]) if contrast.resizes else shape
    if values.ndim != len(shape) + 1 or values.shape[1:] != shape or str(values.dtype) not in ("uint8", "float32"):
        wanted = ", ".join(map(str, ("N", *shape)))
        raise InputError(
            f"The images are {values.dtype} of shape {values.shape}; expected uint8 or float32 of shape ({wanted})."
        )
    return embedded(model, len(values), lambda part: contrast.images(as_tensor(values[part]).to(model.device)))


def embed_captions(model: Model, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
    """The embeddings of captions, of unit length, on the CPU.

    Unknown words are left out with a warning; a caption of which no word is known is refused.
    """
    contrast = contrast_of(model)
    if not isinstance(contrast.condition, Text):
        raise InputError(
            f"{model.run or 'This model'} compares images with {contrast.condition.summary}, not captions."
        )
    given: Sequence[Any] = captions
    if isinstance(given, str) or not all(isinstance(one, str) and one.strip() for one in given):
        raise InputError("Captions are a list of texts, none of them empty.")

    def embed(part: slice) -> Tensor:
        parts = contrast.condition.given(captions[part], len(captions[part]))
        return contrast.texts(**{name: value.to(model.device) for name, value in parts.items()})

    return embedded(model, len(captions), embed)


def embed_descriptions(
    model: Model, columns: Mapping[str, Tensor], count: int, *, first: int = 0, seed: int = 0
) -> Float[Tensor, "count features"]:
    """The embeddings of what describes images, on the CPU, from columns of their data; it may be empty, as it is there.

    Args:
        model: as for :func:`embed_images`.
        columns: the columns, with a row for each image.
        count: how many images.
        first, seed: which random numbers a condition takes that needs some.
    """
    contrast = contrast_of(model)
    parts = contrast.condition.evaluation(torch.zeros(count, 1), columns, Draws(seed, first, count, count))
    return embedded(
        model, count, lambda at: contrast.texts(**{name: one[at].to(model.device) for name, one in parts.items()})
    )


def with_embeddings(data: Dataset, full: Dataset, embedder: Model, *, progress: Progress = None) -> Dataset:
    """Data with the columns :data:`IMAGE` and :data:`CAPTION`: the embeddings of their images and of what is said.

    They are kept in the user's cache, and are computed once for the same data and model.

    Args:
        data: the data that get the columns.
        full: the same images as the model sees them, with the columns that it needs.
        embedder: the model of a run of ``train --task contrast``.
        progress: as for :meth:`Model.sample`.
    """
    contrast, count = contrast_of(embedder), len(full)
    if full.shape != tuple(embedder.info.shape) and not contrast.resizes:
        here, there = ("x".join(map(str, shape)) for shape in (full.shape, embedder.info.shape))
        raise InputError(
            f"{embedder.run} embeds images of {there}, and those of {data.name} are {here} there; take the size of its "
            f"data, or images that its data.scale_down {embedder.config.data.scale_down} divides."
        )
    columns = {name: take(full.columns, name, full.name) for name in contrast.condition.columns}

    def images(part: slice) -> Tensor:
        return contrast.images(full.batch(_rows(part, count)).to(embedder.device))

    def captions(part: slice) -> Tensor:
        rows = _rows(part, count)
        found = {name: column.rows(rows) for name, column in columns.items()}
        return embed_descriptions(embedder, found, len(rows), first=part.start)

    # of some images only: all would have to be read, or drawn, at every start
    some = full.subset(np.unique(np.linspace(0, count - 1, min(count, _HASHED)).astype(np.int64)))
    identity, digest = embedder.fingerprint, hashlib.sha256(content_hash(some).encode())
    for start in range(0, count, _PART):
        rows = _rows(slice(start, start + _PART), count)
        for column in columns.values():
            digest.update(repr(column.texts(rows)).encode() if column.is_text else column.rows(rows).numpy().tobytes())
    meta = {"features": "image and caption", "identity": identity, "content": digest.hexdigest(), "count": count}

    def compute() -> Tensor:
        with progress_bar("embedding", 2 * count, progress) as advance:
            each = (
                embedded(embedder, count, images, lambda done: advance(done)),
                embedded(embedder, count, captions, lambda done: advance(count + done)),
            )
        return torch.stack(each, dim=1)

    values = kept(meta, compute, lambda found: None if found.shape[:2] == (count, 2) else "their number differs")
    found = {name: Column(values[:, k].numpy(), identity=identity) for k, name in enumerate((IMAGE, CAPTION))}
    return replace(data, columns={**data.columns, **found})


def of_embeddings(data: Dataset, units: Units | None = None) -> Dataset:
    """Data whose images are vectors, the standardized embeddings of the images; in ``units`` of other data, or own."""
    vectors, units = standardized(np.asarray(take(data.columns, IMAGE, data.name).values), data.name, units)
    return replace(data, images=np.asarray(vectors), units=units)


def as_seen(
    embedder: Model, pictures: Float[Tensor, "batch channels *space"]
) -> Float[Tensor, "batch channels *small"]:
    """Pictures at the size that a contrastive model takes: scaled down as its data were, if they are larger."""
    wanted, shape = tuple(embedder.info.shape), tuple(pictures.shape[1:])
    factor = shape[-1] // wanted[-1]
    if shape == wanted or contrast_of(embedder).resizes:
        return pictures
    if factor < 2 or shape != (wanted[0], *(side * factor for side in wanted[1:])):
        here, there = ("x".join(map(str, sides)) for sides in (shape, wanted))
        raise InputError(
            f"The pictures are {here}, and {embedder.run} takes {there}, or pictures so many times larger."
        )
    return LowResolution(factor=factor).of(pictures, {})


def contrast_of(model: Model) -> Contrast:
    """What embeds images and captions in a model that does."""
    if model.contrast is None:
        raise InputError(
            f"{model.run or 'This model'} embeds no images and captions; train one that does: sfumato train DATA "
            "--task contrast"
        )
    return model.contrast


def columns_of(place: Path) -> tuple[str, ...]:
    """The columns that an embedder needs of the data."""
    return ("caption",) if is_clip(place) else read_config(place)[0].columns


def load_embedder(place: Path, device: str | torch.device = "cpu", *, trust: bool = False) -> Model:
    """The contrastive model of a run, or of a folder with a CLIP that transformers saved."""
    return load_clip(place, device) if is_clip(place) else load(place, device, trust=trust)


@torch.no_grad()
def embedded(
    model: Model, count: int, embed: Callable[[slice], Tensor], advance: Callable[[int], None] | None = None
) -> Float[Tensor, "count features"]:
    """Embeddings of all, some at a time, of the network in evaluation mode."""
    training = model.module.training
    model.module.eval()
    found: list[Tensor] = []
    for start in range(0, count, _PART):
        found.append(embed(slice(start, min(start + _PART, count))).cpu())
        if advance is not None:
            advance(start + len(found[-1]))
    model.module.train(training)
    return torch.cat(found) if found else torch.zeros(0, model.config.model.features)


def _rows(part: slice, count: int) -> Any:
    return np.arange(count)[part]
