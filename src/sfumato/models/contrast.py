"""Judging embeddings of images and captions (CLIP): who finds whom, and which captions are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sfumato import random
from sfumato.conditioning import Text
from sfumato.conditioning.contrast import same_descriptions
from sfumato.conditioning.swaps import Groups, exchanged, groups_of, replaced
from sfumato.data import Dataset, Loader
from sfumato.data.shapes import SPLITS, Parsed, agreement, facts_of
from sfumato.data.shapes.scenes import PICTURE_SIZES
from sfumato.io.progress import Progress, progress_bar
from sfumato.io.text import unpacked
from sfumato.metrics.estimate import Estimate, wilson
from sfumato.metrics.report import Report, Row
from sfumato.models.agreement import asked
from sfumato.models.data import SPLIT_SEED, heldout_of, prepared
from sfumato.models.embeddings import contrast_of, embed_captions, embed_descriptions, embed_images
from sfumato.models.model import Model
from sfumato.models.storage import write_record

KINDS: Mapping[str, Callable[[str, Groups], list[str]]] = {"words exchanged": exchanged, "a word replaced": replaced}
"""How a caption is changed so that it is wrong."""


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
    contrast, config = contrast_of(model), model.config
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
        texts = embed_descriptions(model, batch.cond, count, seed=seed)
        advance(count)
        rows = found_rows(images, texts, [batch.cond[name] for name in columns])
        for number, (name, (captions, pictures, shown)) in enumerate(sets.items(), 2):
            rows += list(told_rows(model, name, captions, pictures, shown, groups, seed))
            advance(number * count)
    settings = {"step": model.step, "seed": seed}
    report = Report(
        str(model.run or "contrast"), {"training": model.info.train, "held-out": count}, tuple(rows), settings
    )
    if keep and model.run is not None:
        value = {"step": model.step, "samples": count, **report.to_dict()}
        write_record(model.run / "evaluation.json", value, "samples", overwrite=overwrite)
    return report


def found_rows(images: Tensor, texts: Tensor, columns: Sequence[Tensor]) -> list[Row]:
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


def told_rows(
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
