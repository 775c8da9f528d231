"""Judging a classifier of noisy data: its accuracy at each noise level."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato import random
from sfumato.config import Config
from sfumato.data import Dataset, Loader
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError
from sfumato.io.progress import Progress, progress_bar
from sfumato.metrics.classes import label_accuracy
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.report import Report, row
from sfumato.models.data import SPLIT_SEED, heldout_of
from sfumato.models.model import Model
from sfumato.models.storage import write_record

RATIOS = (0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""The noise levels of an evaluation, as sigma / alpha, as far as the schedule has them."""

_PART = 250  # images that are classified at once


@torch.no_grad()
def evaluate_classifier(
    model: Model,
    heldout: Dataset | None = None,
    *,
    samples: int | None = None,
    seed: int | None = None,
    keep: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
) -> Report:
    """The accuracy of a classifier of noisy data on images that it was not trained on, at each noise level.

    The first row is the mean over these levels. The noise of an image is the same for every classifier.

    Args:
        model: the model of a run of ``train --task classify``.
        heldout: images with classes; by default those that the run holds out.
        samples: how many of them, at most; by default as the configuration says.
        seed: the seed of their noise.
        keep, overwrite, progress: as for :func:`sfumato.models.evaluate.judged`.
    """
    classifier, config = model.classifier, model.config
    if classifier is None:
        raise InputError("The accuracy at each noise level is that of a classifier of noisy data; this model is none.")
    heldout, count = heldout_of(model, heldout, samples)
    seed = config.evaluation.seed if seed is None else seed
    images, classes = _of(heldout, count, config)
    levels = _levels(classifier.schedule)
    training = model.module.training
    model.module.eval()
    right: list[Tensor] = []
    with progress_bar("classifying", len(levels) * count, progress) as advance:
        for k, level in enumerate(levels):
            found: list[Tensor] = []
            for start in range(0, count, _PART):
                x0 = images[start : start + _PART]
                noise = random.normal(seed, "classifier", start, len(x0), tuple(x0.shape[1:]), step=k)
                x = diffuse(x0, level, noise.to(x0)).to(model.device)
                found.append(classifier(x, level).argmax(1).cpu())
                advance(k * count + start + len(x0))
            right.append(torch.cat(found) == classes)
    model.module.train(training)
    each = torch.stack(right).double().mean(0)
    error = float(each.std()) / count**0.5
    rows = [row("accuracy", None, Estimate(float(each.mean()), error, "spread over images"), better="higher")]
    for level, hits in zip(levels, right, strict=True):
        value = label_accuracy(hits.long(), torch.ones(count, dtype=torch.long))
        rows.append(row(f"accuracy at σ/α {float(level.noise_to_signal):.3g}", None, value, better="higher"))
    counts = {"training": model.info.train, "held-out": count}
    settings = {"step": model.step, "seed": seed, "classes": list(model.info.classes)}
    notes = ("The first row is the mean over the noise levels below it.",)
    report = Report(str(model.run or "classifier"), counts, tuple(rows), settings, notes)
    if keep and model.run is not None:
        value = {"step": model.step, "samples": count, **report.to_dict()}
        write_record(model.run / "evaluation.json", value, "samples", overwrite=overwrite)
    return report


def _of(heldout: Dataset, count: int, config: Config) -> tuple[Tensor, Tensor]:
    """The first images in a fixed order, in windows where these are trained on, and their classes."""
    batch = Loader(heldout, SPLIT_SEED, crop=config.data.random_crop).batch(0, count)
    return batch.x0, batch.cond[config.objective.column]


def _levels(schedule: Schedule) -> list[Level]:
    """The levels of :data:`RATIOS`, of a table of betas the nearest steps."""
    last = float(torch.as_tensor(schedule(1.0).noise_to_signal))
    found = [schedule.at(-2.0 * torch.tensor(ratio, dtype=torch.float64).log()) for ratio in RATIOS if ratio <= last]
    times = [float(torch.as_tensor(level.t)) for level in found]
    if isinstance(schedule, Discrete):
        times = [max(1, round(t * schedule.steps)) / schedule.steps for t in times]
    return [schedule(t) for t in dict.fromkeys(times)]
