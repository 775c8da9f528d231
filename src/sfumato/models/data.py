"""The data of a model: those that its run names, or those that were given in Python."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.conditioning.base import Condition
from sfumato.conditioning.contrast import CAPTION, IMAGE
from sfumato.conditioning.low_resolution import LowResolution, augmented
from sfumato.config import Config, SamplingConfig
from sfumato.data import Dataset, Loader
from sfumato.data.dataset import Units
from sfumato.data.edges import CHANNELS
from sfumato.data.edges import edges as edges_of
from sfumato.data.selection import LAZY, Made
from sfumato.errors import InputError, require_memory
from sfumato.models.embeddings import columns_of, load_embedder, of_embeddings, with_embeddings
from sfumato.models.model import Model

SPLIT_SEED = 0
"""The split into training and held-out images belongs to the data, not to the run: every run has the same."""


GIVEN = "python:"
"""What the source of data begins with that were given in Python, and can't be read again."""


def read_data(config: Config) -> tuple[Dataset, Dataset]:
    """The training and the held-out images of a configuration, with the columns that it needs."""
    if config.data.source.startswith(GIVEN):
        raise InputError("The data of this run were given in Python; pass them again, such as evaluate(run, data).")
    data: Dataset = config.data.build(columns=_columns(config))
    return prepared(data, config.data).split(config.data.holdout, SPLIT_SEED)


def _columns(config: Config) -> tuple[str, ...]:
    """The columns of its source that a configuration needs, also those that a contrastive model needs."""
    if config.data.embedder is None:
        return config.columns
    more = columns_of(config.data.embedder)
    return tuple(sorted({*(name for name in config.columns if name not in (IMAGE, CAPTION)), *more}))


def prepared(data: Dataset, config: Any, units: Units | None = None) -> Dataset:
    """The images as a model is trained on them, by the settings ``data`` of a configuration.

    Where it is trained on embeddings of them, they are in the ``units`` of other data, or in their own.
    """
    if config.embeddings and config.embedder is None:
        raise InputError("Embeddings are those of a contrastive model; say which: data.embedder RUN.")
    images = scaled_down(data, config.scale_down, edges=config.edges)
    if config.embedder is None:
        return images
    embedder = load_embedder(config.embedder, "cuda" if torch.cuda.is_available() else "cpu")
    images = with_embeddings(images, scaled_down(data, embedder.config.data.scale_down), embedder)
    return of_embeddings(images, units) if config.embeddings else images


_SCALED = 2**24
"""Values that are scaled down at once."""


def scaled_down(data: Dataset, factor: int, *, edges: bool = False) -> Dataset:
    """Images whose sides are ``factor`` times smaller, as :class:`~sfumato.conditioning.LowResolution` makes them.

    They stay of the type that they are: those of 8 bits are rounded to it. Those that are read or made when they are
    needed are scaled down then. With ``edges`` they are float32, and have those of the full images as more channels
    (:func:`sfumato.data.edges.edges`).
    """
    if factor == 1 and not edges:
        return data
    if edges and (len(data.shape) != 3 or min(data.shape[1:]) < 2):
        raise InputError(f"Edges are those of images (C, H, W) of 2 pixels and more; {data.name} has {data.shape}.")
    low, size = LowResolution(factor=factor), max(1, _SCALED // math.prod(data.shape))

    def scaled(rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        full = data.batch(rows)
        images = low.of(full, {}).numpy() if factor > 1 else full.numpy()
        if edges:
            return np.concatenate([images, edges_of(full, factor).numpy()], axis=1)
        return np.rint((images + 1.0) * 127.5).astype(np.uint8) if data.images.dtype == np.uint8 else images

    if isinstance(data.images, LAZY):
        channels = data.shape[0] + (CHANNELS if edges else 0)
        shape = (len(data), channels, *(side // factor for side in data.shape[1:]))
        return replace(data, images=Made(scaled, np.dtype(np.float32) if edges else data.images.dtype, shape))
    rows = np.arange(len(data))
    return replace(data, images=np.concatenate([scaled(rows[i : i + size]) for i in range(0, len(data), size)]))


def data_of(model: Model) -> tuple[Dataset, Dataset]:
    """The training and the held-out images of a model: those given in Python, or those that its run names."""
    if model.data is None and not model.configured:
        raise InputError("This model was made around a denoiser and does not know its data; pass them.")
    return read_data(model.config) if model.data is None else model.data


def heldout_of(model: Model, heldout: Dataset | None, samples: int | None) -> tuple[Dataset, int]:
    """The images on which a model that samples nothing is judged, and how many of them: at most ``samples``.

    By default they are those that its run holds out, and as many as its configuration says.
    """
    heldout = data_of(model)[1] if heldout is None else heldout
    usual = model.config.evaluation.samples or type(model.config.evaluation)().samples
    count = min(len(heldout), usual if samples is None else samples)
    if count < 2:
        raise InputError(
            f"An evaluation needs at least 2 held-out images; {len(heldout)} are held out (data.holdout), and {count} "
            "would be taken (samples)."
        )
    return heldout, count


def given_sets(config: Config, data: Any, heldout: Any = None) -> tuple[Dataset, Dataset] | None:
    """The training and the held-out images of what a person passes for a training, if anything, as configured."""
    if data is None:
        return None
    train = prepared(Dataset.of(data), config.data)
    if heldout is None:
        return train.split(config.data.holdout, SPLIT_SEED)
    return train, prepared(Dataset.of(heldout), config.data, train.units)


def given_data(data: Any) -> tuple[Dataset, Dataset]:
    """Training and held-out images of what a person passes, of which a tenth is held out."""
    return Dataset.of(data).split(0.1, SPLIT_SEED)


def training_data(config: Config, data: tuple[Dataset, Dataset] | None = None) -> tuple[Loader, Dataset]:
    """The stream of training samples of a configuration, and the held-out images.

    Args:
        config: the configuration.
        data: the training and the held-out images, where they were given in Python.
    """
    train_set, heldout = read_data(config) if data is None else data
    return Loader(train_set, config.training.seed, config.data.flip, config.data.random_crop), heldout


def examples(
    model: Model,
    data: Dataset,
    count: int,
    *,
    seed: int = 0,
    first: int = 0,
    given: Collection[str] = (),
    sampling: SamplingConfig | None = None,
) -> tuple[dict[str, Any], Tensor | None]:
    """The conditions of samples ``first ...`` of a seed, from data, where nobody gives one that has no default.

    All that nobody gives are then of the same images: the class with the low-resolution image.

    Args:
        model: the model.
        data: the images that the samples are to be like.
        count, seed, first: as for :meth:`Model.sample`.
        given: the conditions that somebody gives.
        sampling: how is sampled; by default as the configuration says.

    Returns:
        What :meth:`Model.sample` takes for them, by name; and the images that the samples are to be like, ``(count, C,
        *space)``, if there are such conditions. Samples take the images in a fixed order, and from the start again
        when all were taken.
    """
    here = _without_default(model, seed, first, given, sampling)
    if not here or not len(data):
        return {}, None
    require_memory(count * math.prod(model.info.shape), f"{count} images", "the number of images")
    batch = Loader(data, SPLIT_SEED, crop=model.config.data.random_crop).batch(first, count)
    parts = _like(here, batch.x0, batch.cond, seed, first)
    return parts, batch.x0 if parts else None


def examples_of(
    model: Model,
    x0: Float[Tensor, "count channels *space"],
    columns: Mapping[str, Tensor],
    *,
    seed: int = 0,
    given: Collection[str] = (),
    sampling: SamplingConfig | None = None,
) -> dict[str, Any]:
    """As :func:`examples`, of samples that are to be like just these images and their columns, in this order."""
    return _like(_without_default(model, seed, 0, given, sampling), x0, columns, seed, 0)


def _without_default(
    model: Model, seed: int, first: int, given: Collection[str], sampling: SamplingConfig | None
) -> dict[str, Condition]:
    """The conditions that nobody gives, if one of them has no default."""
    conditions = augmented(model.conditions, (sampling or model.config.sampling).input_noise)
    here = {n: c for n, c in conditions.items() if n not in given and n not in model.supplied}
    return {} if all(c.default(seed, first, 1) is not None for c in here.values()) else here


def _like(
    conditions: Mapping[str, Condition], x0: Tensor, columns: Mapping[str, Tensor], seed: int, first: int
) -> dict[str, Any]:
    """The parts of the conditions whose columns are there."""
    known = {n: c for n, c in conditions.items() if all(column in columns for column in c.columns)}
    return {n: c.example(x0, columns, seed=seed, first=first) for n, c in known.items()}
