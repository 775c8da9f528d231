"""Evaluating a model on the data of its run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato import metrics, random
from sfumato.config import Config, EvaluationConfig, SamplingConfig
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError
from sfumato.io.files import write_json
from sfumato.metrics import Evaluation
from sfumato.models.model import Model, load

_MOST_VALUES = 1 << 28
"""The most pixel values of real images that an evaluation takes: 1 GiB of float32, 87,000 images of 3x32x32."""

SPLIT_SEED = 0
"""The split into training and held-out images belongs to the data, not to the run: every run has the same."""


def read_data(config: Config) -> tuple[Dataset, Dataset]:
    """The training and the held-out images of a configuration, with the labels that the source has."""
    return config.data.build().split(config.data.holdout, SPLIT_SEED)


def training_data(config: Config) -> tuple[Loader, Dataset]:
    """The stream of training samples of a configuration, with labels if it asks for them, and the held-out images."""
    train_set, heldout = read_data(config)
    if not config.data.labels:
        train_set = dataclasses.replace(train_set, labels=None, classes=())
    return Loader(train_set, config.training.seed, config.data.flip, config.data.random_crop), heldout


def sample_count(config: Config) -> int:
    """The images that are drawn for an evaluation: as configured, or the usual number where that is none."""
    return config.evaluation.samples or EvaluationConfig().samples


def evaluate(
    model: Model | str | Path,
    *,
    samples: int | None = None,
    seed: int | None = None,
    sampling: SamplingConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Draw samples and compare them with the training and the held-out images; the same job as ``sfumato evaluate``.

    The result is also written to ``evaluation.json`` in the run directory.

    Args:
        model: a model, or its run directory.
        samples: how many images to draw; by default as the configuration says, or 1,000 where that is none.
        seed: which images.
        sampling: the sampler; by default that of the configuration.
        progress: called with the number of images drawn so far.

    Of very many images, more than 1 GiB of them in float32, a random part is compared with.

    Raises:
        InputError: if the data hold out fewer than 2 images or are of another shape than the samples, or there are
            fewer than 2 samples.
    """
    if not isinstance(model, Model):
        model = load(model)
    count = sample_count(model.config) if samples is None else samples
    train_set, heldout = read_data(model.config)
    if len(heldout) < 2:
        raise InputError("An evaluation needs held-out images; train with data.holdout of at least 2.")
    if model.config.data.random_crop is None and train_set.shape != model.facts.shape:
        found, drawn = ("x".join(map(str, shape)) for shape in (train_set.shape, model.facts.shape))
        raise InputError(
            f"The data {model.config.data.source} of this run are {found} and the model draws {drawn}; an imported "
            "model must be told the data it is compared with: sfumato import WEIGHTS --run RUN --data DATA."
        )
    sampling = sampling or model.config.sampling
    which = model.config.evaluation.seed if seed is None else seed
    images = model.sample(count, seed=which, sampling=sampling, progress=progress)
    (known, train_labels), (fresh, heldout_labels) = _images(train_set, model), _images(heldout, model)
    result = metrics.evaluate(images, known, fresh, train_labels=train_labels, heldout_labels=heldout_labels)
    if model.run is not None:
        value = {"step": model.step, "seed": which, "sampling": sampling.model_dump(mode="json"), **result.to_dict()}
        write_json(model.run / "evaluation.json", value)
    return result


def _images(data: Dataset, model: Model) -> tuple[Tensor, Tensor | None]:
    """The images of a data set, in the windows that the model was trained on, with their labels.

    Of a data set of more than :data:`_MOST_VALUES` values it is a random part, the same for every model.
    """
    crop = model.config.data.random_crop
    most = max(2, _MOST_VALUES // math.prod(model.facts.shape))
    if crop is None:
        if len(data) > most:
            data = data.subset(np.sort(random.permutation(SPLIT_SEED, "evaluation", 0, len(data))[:most]))
        return data.batch(range(len(data))), None if data.labels is None else torch.from_numpy(data.labels)
    whole = Loader(data, SPLIT_SEED, crop=crop).batch(0, min(len(data), most))
    return whole.x0, whole.labels
