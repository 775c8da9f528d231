"""The labels of the images that are drawn: given, or by a law."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sfumato import random
from sfumato.errors import InputError


def drawn_labels(
    law: str, classes: int, frequencies: Sequence[float], seed: int, first: int, count: int
) -> Int[Tensor, "count"]:
    """The classes of images ``first ... first + count - 1`` of a seed, the same whatever else is drawn.

    Args:
        law: "uniform", every class in turn, or "frequency", each as often as its frequency says.
        classes: how many classes there are.
        frequencies: the fraction of each class, together 1; only for the law "frequency".
        seed: which images.
        first: the number of the first image.
        count: how many images.
    """
    if law == "uniform":
        return torch.arange(first, first + count) % classes
    # evenly spread quantiles, shifted by the seed: class frequencies hold in any run of images
    shift = float(random.uniform(seed, "label", 0, 1))
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    quantile = (shift + golden * torch.arange(first, first + count, dtype=torch.float64)) % 1.0
    edges = torch.tensor(frequencies, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(edges, quantile, right=True).clamp(max=classes - 1)


def given_labels(labels: Int[Tensor, "count"] | int | str, classes: Sequence[str], count: int) -> Int[Tensor, "count"]:
    """A class (its number or its name) for all images, or one number for each, as numbers; -1 is none.

    Raises:
        InputError: if a label is unknown, or there are no classes.
    """
    if not classes:
        raise InputError("This model was trained without labels, so it can't be asked for a class.")
    if isinstance(labels, str):
        if labels not in classes:
            raise InputError(f"There is no class {labels!r}; the classes are {', '.join(classes)}.")
        labels = classes.index(labels)
    chosen = torch.as_tensor(labels)
    if chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
        raise InputError(f"Labels must be whole numbers; got {chosen.dtype}.")
    chosen = (chosen.expand(count) if chosen.ndim == 0 else chosen).long()
    if tuple(chosen.shape) != (count,) or bool(((chosen < -1) | (chosen >= len(classes))).any()):
        raise InputError(f"Labels must be {count} numbers from 0 to {len(classes) - 1} (or -1 for none).")
    return chosen
