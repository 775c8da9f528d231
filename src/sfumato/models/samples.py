"""Samples of a model for an evaluation, of which each process makes a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from sfumato.conditioning import Label, LowResolution
from sfumato.data import Dataset
from sfumato.io.progress import Progress
from sfumato.metrics.classes import classes_of
from sfumato.metrics.evaluator import Evaluator
from sfumato.models.data import examples
from sfumato.models.model import Model


class Samples(NamedTuple):
    """What was sampled, and what is known of it."""

    images: Tensor
    labels: Tensor | None  # the classes that were asked for
    truths: Tensor | None  # the real pictures that they are to be like
    down: Callable[[Tensor], Tensor] | None  # how low-resolution pictures come from the truths
    name: str


def sampled(
    model: Model, judge: Evaluator, count: int, seed: int, progress: Progress, options: Mapping[str, Any]
) -> Samples:
    """Samples of a model, with conditions from the data where nobody gives them."""
    like = judge.heldout if judge.heldout is not None else judge.real
    sampling, _, _, given = model.settings(options)
    parts, truths = ({}, None)
    if isinstance(like, Dataset):
        parts, truths = examples(model, like, count, seed=seed, given=options, sampling=sampling)
    images = gathered(of_process(model, count, seed, progress, options, parts))
    labels, guidance = None, sampling.guidance
    conditions = {n: c for n, c in model.asked(guidance).items() if isinstance(c, Label) and c.names}
    if len(conditions) == 1 and isinstance(judge.real, Dataset):
        ((name, condition),) = conditions.items()
        if tuple(condition.names) == classes_of(judge.real):
            labels = model.given({**given, **parts}, seed, 0, count, guidance=guidance)[name]
    lows = (c for n, c in model.conditions.items() if isinstance(c, LowResolution) and n not in model.supplied)
    low = next(lows, None)
    # how a column of low-resolution images was made is not known
    down = None if low is None or low.column is not None else partial(low.of, columns={})
    return Samples(images, labels, None if low is None else truths, down, name_of(model))


def name_of(model: Model) -> str:
    """What its samples are called."""
    return "samples" if model.run is None else str(model.run)


def of_process(
    model: Model, count: int, seed: int, progress: Progress, options: Mapping[str, Any], parts: Mapping[str, Any]
) -> Tensor:
    """The samples of this process, of ``count`` in all; ``parts`` are those of conditions, for all of them."""
    begin, end = share_of_process(count)
    more: dict[str, Any] = {name: _rows(value, count, begin, end) for name, value in options.items()}
    more |= {name: {k: v[begin:end] for k, v in part.items()} for name, part in parts.items()}
    return model.sample(end - begin, seed=seed, first=begin, progress=progress, **more)


def gathered(images: Tensor) -> Tensor:
    """The rows of all processes, in their order."""
    return torch.cat(of_all(images)) if processes() > 1 else images


def of_all(value: Any) -> list[Any]:
    """What each process has, in their order."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    distributed.all_gather_object(values, value)
    return values


def share_of_process(count: int) -> tuple[int, int]:
    """The first sample of this process, of ``count`` in all, and the first of the next process."""
    rank, world = (distributed.get_rank() if processes() > 1 else 0), processes()
    return count * rank // world, count * (rank + 1) // world


def processes() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return processes() == 1 or distributed.get_rank() == 0


def _rows(value: Any, count: int, begin: int, end: int) -> Any:
    """The part of a process of what is given for each sample."""
    if isinstance(value, list | tuple) and value and count > end - begin:
        # names of classes are those of the samples in turn
        return [value[i % len(value)] for i in range(begin, end)]
    return value[begin:end] if isinstance(value, Tensor) and value.ndim and len(value) == count else value
