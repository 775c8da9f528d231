"""Judging embeddings of images and captions (CLIP): who finds whom, and which captions are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import random
from sfumato.conditioning import Text
from sfumato.conditioning.contrast import Contrast, same_descriptions
from sfumato.conditioning.swaps import Groups, exchanged, groups_of, replaced
from sfumato.data import Dataset, Loader
from sfumato.data.dataset import as_tensor
from sfumato.data.shapes import SPLITS, Parsed, agreement, facts_of
from sfumato.data.shapes.scenes import PICTURE_SIZES
from sfumato.errors import InputError
from sfumato.io.progress import Progress, progress_bar
from sfumato.io.text import unpacked
from sfumato.metrics.estimate import Estimate, wilson
from sfumato.metrics.report import Report, Row
from sfumato.models.agreement import asked
from sfumato.models.data import SPLIT_SEED, heldout_of, prepared
from sfumato.models.model import Model
from sfumato.models.storage import write_record
from sfumato.random import Draws

_PART = 250  # images or captions that are embedded at once
KINDS: Mapping[str, Callable[[str, Groups], list[str]]] = {"words exchanged": exchanged, "a word replaced": replaced}
"""How a caption is changed so that it is wrong."""


def embed_images(model: Model, images: Any) -> Float[Tensor, "batch features"]:
    """The embeddings of images, of unit length, on the CPU.

    Args:
        model: the model of a run of ``train --task contrast``.
        images: ``(N, C, *space)`` of the shape that it was trained on, a tensor or an array: float32 in [-1, 1], or
            uint8.
    """
    contrast, shape = _contrast(model), tuple(model.info.shape)
    values = images.numpy(force=True) if torch.is_tensor(images) else np.asarray(images)
    if values.ndim != len(shape) + 1 or values.shape[1:] != shape or str(values.dtype) not in ("uint8", "float32"):
        wanted = ", ".join(map(str, ("N", *shape)))
        raise InputError(
            f"The images are {values.dtype} of shape {values.shape}; expected uint8 or float32 of shape ({wanted})."
        )
    return _embedded(model, len(values), lambda part: contrast.images(as_tensor(values[part]).to(model.device)))


def embed_captions(model: Model, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
    """The embeddings of captions, of unit length, on the CPU.

    Unknown words are left out with a warning; a caption of which no word is known is refused.
    """
    contrast = _contrast(model)
    if not isinstance(contrast.condition, Text):
        raise InputError(
            f"{model.run or 'This model'} compares images with {contrast.condition.summary}, not captions."
        )
    given: Sequence[Any] = captions
    if isinstance(given, str) or not all(isinstance(one, str) and one.strip() for one in given):
        raise InputError("Captions are a list of texts, none of them empty.")

    def embedded(part: slice) -> Tensor:
        parts = contrast.condition.given(captions[part], len(captions[part]))
        return contrast.texts(**{name: value.to(model.device) for name, value in parts.items()})

    return _embedded(model, len(captions), embedded)


@torch.no_grad()
def evaluate_contrast(
    model: Model,
    heldout: Dataset | None = None,
    *,
    samples: int | None = None,
    seed: int | None = None,
    keep: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
) -> Report:
    """How well images and captions that were not trained on find each other, and wrong captions are told from right.

    R@1 is the share of images whose nearest description among all is theirs, or the same as theirs, and the other way
    round. A caption is changed as :data:`KINDS` says, with the words of the training, once for each image; the share is
    that of the images that are nearer to their own. Of pictures of shapes this is measured for each of their splits,
    with captions that state everything, and only with changed ones that are wrong.

    Args:
        model: the model of a run of ``train --task contrast``.
        heldout: images with captions; by default those that the run holds out.
        samples: how many of them, at most; by default as the configuration says.
        seed: of the choice of the changes.
        keep, overwrite, progress: as for :func:`sfumato.models.evaluate.judged`.
    """
    contrast, config = _contrast(model), model.config
    heldout, count = heldout_of(model, heldout, samples)
    seed = config.evaluation.seed if seed is None else seed
    batch = Loader(heldout, SPLIT_SEED, crop=config.data.random_crop).batch(0, count)
    columns, sets = contrast.condition.columns, dict[str, tuple[list[str], Tensor, Sequence[Parsed] | None]]()
    groups = groups_of(getattr(config.objective, "swaps", ()))
    if isinstance(contrast.condition, Text) and groups:
        size = model.info.shape[-1] * config.data.scale_down
        if config.data.source.partition(":")[0] == "shapes" and size in PICTURE_SIZES:
            for split in SPLITS:
                found = asked(split, count, size, seed)
                pictures = prepared(Dataset.of(found.pictures), config.data).batch(range(count))
                sets[split] = found.captions, pictures, found.shown
        else:
            sets["held-out"] = unpacked(batch.cond[columns[0]]), batch.x0, None
    with progress_bar("embedding", (1 + len(sets)) * count, progress) as advance:
        images = embed_images(model, batch.x0)
        parts = contrast.condition.evaluation(batch.x0, batch.cond, Draws(seed, 0, count, count))
        texts = _embedded(
            model, count, lambda at: contrast.texts(**{n: p[at].to(model.device) for n, p in parts.items()})
        )
        advance(count)
        rows = _found(images, texts, [batch.cond[name] for name in columns])
        for number, (name, (captions, pictures, shown)) in enumerate(sets.items(), 2):
            rows += list(_told(model, name, captions, pictures, shown, groups, seed))
            advance(number * count)
    settings = {"step": model.step, "seed": seed}
    report = Report(
        str(model.run or "contrast"), {"training": model.info.train, "held-out": count}, tuple(rows), settings
    )
    if keep and model.run is not None:
        value = {"step": model.step, "samples": count, **report.to_dict()}
        write_record(model.run / "evaluation.json", value, "samples", overwrite=overwrite)
    return report


def _found(images: Tensor, texts: Tensor, columns: Sequence[Tensor]) -> list[Row]:
    """The rows of retrieval; images with the same description are all right for it, which is also their chance."""
    similarity, count = images @ texts.T, len(images)
    same = same_descriptions(columns, count)
    rows: list[Row] = []
    for name, table in (("R@1 descriptions of images", similarity), ("R@1 images of descriptions", similarity.T)):
        right = same.gather(1, table.argmax(1)[:, None])
        rows.append(_share(name, int(right.sum()), count, float(same.double().mean())))
    own, other = similarity.diagonal().double(), similarity[~same].double()
    score = Estimate(float(own.mean()), float(own.std()) / count**0.5, "spread over images")
    chance = float(other.mean()) if len(other) else None
    return [*rows, Row("CLIP score", None, *score, better="higher", chance=chance)]


def _told(
    model: Model,
    name: str,
    captions: Sequence[str],
    pictures: Tensor,
    shown: Sequence[Parsed] | None,
    groups: Groups,
    seed: int,
) -> Iterable[Row]:
    """A row for each kind of change: the share of pictures that are nearer to their caption than to the changed one."""
    images = embed_images(model, pictures)
    for kind, change in KINDS.items():
        u = random.uniform(seed, kind, 0, len(captions), ()).tolist()
        seen: Sequence[Parsed | None] = shown or [None] * len(captions)
        every = zip(captions, u, seen, strict=True)
        changed = [_wrong(change(text, groups), at, parsed) for text, at, parsed in every]
        rows = [row for row, text in enumerate(changed) if text]
        if not rows:
            continue
        right, wrong = (embed_captions(model, [texts[row] or "" for row in rows]) for texts in (captions, changed))
        nearer = (images[rows] * (right - wrong)).sum(1) > 0.0
        yield _share(f"{kind}, {name}", int(nearer.sum()), len(rows), 0.5)


def _wrong(texts: Sequence[str], u: float, shown: Parsed | None) -> str | None:
    """One of the texts, of those that a picture does not show."""
    wrong = [text for text in texts if shown is None or not agreement(facts_of(text), shown).whole]
    return wrong[int(u * len(wrong))] if wrong else None


def _share(name: str, right: int, count: int, chance: float) -> Row:
    return Row(name, None, right / count, None, "Wilson", better="higher", interval=wilson(right, count), chance=chance)


def _contrast(model: Model) -> Contrast:
    if model.contrast is None:
        raise InputError(
            f"{model.run or 'This model'} embeds no images and captions; train one that does: sfumato train DATA "
            "--task contrast"
        )
    return model.contrast


@torch.no_grad()
def _embedded(model: Model, count: int, embed: Callable[[slice], Tensor]) -> Tensor:
    """Embeddings of all, some at a time, of the network in evaluation mode."""
    training = model.module.training
    model.module.eval()
    found = [embed(slice(start, start + _PART)).cpu() for start in range(0, count, _PART)]
    model.module.train(training)
    return torch.cat(found) if found else torch.zeros(0, model.config.model.features)
