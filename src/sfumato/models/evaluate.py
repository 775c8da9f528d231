"""Evaluating a model on its data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import metrics, random
from sfumato.config import Config, EvaluationConfig
from sfumato.data import Dataset, Loader
from sfumato.diffusion.denoiser import Denoise
from sfumato.errors import InputError, check_arguments
from sfumato.io.progress import Progress
from sfumato.metrics import Evaluation
from sfumato.models.model import Model, as_model, load
from sfumato.models.storage import write_record

_MOST_VALUES = 1 << 28
"""The most pixel values of real images that an evaluation takes: 1 GiB of float32, 87,000 images of 3x32x32."""

SPLIT_SEED = 0
"""The split into training and held-out images belongs to the data, not to the run: every run has the same."""


GIVEN = "python:"
"""What the source of data begins with that were given in Python, and can't be read again."""


def read_data(config: Config) -> tuple[Dataset, Dataset]:
    """The training and the held-out images of a configuration, with the columns that its conditions need."""
    if config.data.source.startswith(GIVEN):
        raise InputError("The data of this run were given in Python; pass them again, such as evaluate(run, data).")
    columns = {column for condition in config.conditions.values() for column in condition.build().columns}
    data: Dataset = config.data.build(columns=tuple(sorted(columns)))
    return data.split(config.data.holdout, SPLIT_SEED)


def data_of(model: Model) -> tuple[Dataset, Dataset]:
    """The training and the held-out images of a model: those given in Python, or those that its run names."""
    if model.data is None and not model.configured:
        raise InputError("This model was made around a denoiser and does not know its data; pass them.")
    return read_data(model.config) if model.data is None else model.data


def given_data(data: Any, heldout: Any = None) -> tuple[Dataset, Dataset]:
    """Training and held-out images of what a person passes; without held-out ones they are a tenth."""
    train_set = Dataset.of(data)
    return train_set.split(0.1, SPLIT_SEED) if heldout is None else (train_set, Dataset.of(heldout))


def training_data(config: Config, data: tuple[Dataset, Dataset] | None = None) -> tuple[Loader, Dataset]:
    """The stream of training samples of a configuration, and the held-out images.

    Args:
        config: the configuration.
        data: the training and the held-out images, where they were given in Python.
    """
    train_set, heldout = read_data(config) if data is None else data
    return Loader(train_set, config.training.seed, config.data.flip, config.data.random_crop), heldout


def sample_count(config: Config) -> int:
    """The images that are sampled for an evaluation: as configured, or the usual number where that is none."""
    return config.evaluation.samples or EvaluationConfig().samples


def evaluate(
    model: Model | Denoise | str | Path,
    data: Any = None,
    *,
    heldout: Any = None,
    samples: int | None = None,
    seed: int | None = None,
    trust: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
    **options: Any,
) -> Evaluation:
    """Sample, and compare the samples with the training and the held-out images; as ``sfumato evaluate``.

    For a model with a run directory the result is also written to its ``evaluation.json``. Of more than 1 GiB of images
    (in float32) a random part is compared with.

    Args:
        model: a model, its run directory, or any denoiser with a schedule.
        data: the training images, anything that :meth:`sfumato.data.Dataset.of` takes; by default those of the run.
        heldout: images that were not trained on; by default those of the run, or a tenth of ``data``.
        samples: number of images to sample; by default as the configuration says, or 1,000 where that is none.
        seed: the seed of those images.
        trust: for a run directory, as for :func:`sfumato.load`.
        overwrite: replace an ``evaluation.json`` of the same weights that rests on more samples; else it is kept.
        progress, options: as for :meth:`sfumato.Model.sample`.
    """
    check_arguments(evaluate, locals())
    if isinstance(model, str | Path):
        model = load(model, trust=trust)
    if data is not None:
        train_set, rest = given_data(data, heldout)
        model = as_model(model, train_set.shape)
    elif isinstance(model, Model):
        train_set, rest = data_of(model)
    else:
        raise InputError("A denoiser does not know its data; pass them: evaluate(denoiser, data).")
    count = sample_count(model.config) if samples is None else samples
    if len(rest) < 2:
        raise InputError("An evaluation needs held-out images; train with data.holdout of at least 2.")
    if model.config.data.random_crop is None and train_set.shape != model.info.shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (train_set.shape, model.info.shape))
        raise InputError(
            f"The data {train_set.name} are {theirs} and the model samples {ours}; name the data of an imported model: "
            "sfumato import WEIGHTS --run RUN --data DATA."
        )
    seed = model.config.evaluation.seed if seed is None else seed
    images = model.sample(count, seed=seed, progress=progress, **options)
    (known, train_labels), (fresh, heldout_labels) = _images(train_set, model), _images(rest, model)
    result = metrics.evaluate(images, known, fresh, train_labels=train_labels, heldout_labels=heldout_labels)
    if model.run is not None and data is None:
        sampling = model.settings(options)[0]
        value = {"step": model.step, "seed": seed, "sampling": sampling.model_dump(mode="json"), **result.to_dict()}
        write_record(model.run / "evaluation.json", value, "samples", overwrite=overwrite)
    return result


def _images(data: Dataset, model: Model) -> tuple[Tensor, Tensor | None]:
    """The images of a data set, in the windows that the model was trained on, with their classes.

    Of a data set of more than :data:`_MOST_VALUES` values it is a random part, the same for every model.
    """
    crop = model.config.data.random_crop
    most = max(2, _MOST_VALUES // math.prod(model.info.shape))
    if crop is None:
        if len(data) > most:
            data = data.subset(np.sort(random.permutation(SPLIT_SEED, "evaluation", 0, len(data))[:most]))
        images, columns = data.batch(range(len(data))), data.rows(range(len(data)))
    else:
        batch = Loader(data, SPLIT_SEED, crop=crop).batch(0, min(len(data), most))
        images, columns = batch.x0, batch.cond
    # the classifier whose features are compared is trained on the first column of classes
    named = [name for name, column in data.columns.items() if column.names]
    return images, torch.as_tensor(columns[named[0]]) if named else None
