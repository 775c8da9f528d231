"""How far samples of a model agree with captions of shapes, of which training never saw a picture."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sfumato import random
from sfumato.conditioning import Text
from sfumato.data import Dataset
from sfumato.data.dataset import as_tensor
from sfumato.data.shapes import SPLITS, Parsed, agreement, facts_of, scene
from sfumato.errors import InputError
from sfumato.io.progress import Progress
from sfumato.io.text import packed
from sfumato.metrics.agreement import TITLE, AgreementReport, parsed
from sfumato.metrics.agreement import agreement as measured
from sfumato.metrics.evaluator import Evaluator
from sfumato.metrics.report import Report
from sfumato.models.data import examples_of
from sfumato.models.model import Model
from sfumato.models.samples import of_all, of_process, processes, share_of_process

_SIZES = (32, 64)  # of the pictures that are parsed
_READ, _SEEN = 64, 8  # captions and pictures of the data that must be those of shapes
_AGREE = 0.75  # of those pictures, at least


def with_agreement(
    report: Report,
    model: Model,
    judge: Evaluator,
    count: int,
    *,
    seed: int = 1,
    progress: Progress = None,
    options: Mapping[str, Any],
) -> Report:
    """A report with the agreement of a model, if it samples from captions of shapes.

    Args:
        report: what else was measured.
        model: the model.
        judge: with the data of the model, and the measures that were asked for by name.
        count: how many captions of each split; 0 for none.
        seed: of the captions and of the samples.
        progress, options: as for :meth:`Model.sample`.

    Raises:
        InputError: the agreement was asked for by name and can't be measured, with the reason.
    """
    why = why_not(model, judge, options) if count else "agreement needs captions; give more than 0 (--captions 100)."
    if why is not None:
        if TITLE in judge.measures:
            raise InputError(why)
        return report
    found = agreement_of(model, count, seed=seed, progress=progress, options=options)
    return replace(
        report,
        counts={**report.counts, "captions of each kind": count},
        rows=(*report.rows, *(row for split, one in found.items() for row in one.rows(split))),
        notes=(*report.notes, *(one.note(split) for split, one in found.items())),
        details={**report.details, TITLE: {split: one.to_dict() for split, one in found.items()}},
    )


def why_not(model: Model, judge: Evaluator, options: Mapping[str, Any]) -> str | None:
    """Why agreement can't be measured; None if it can: the data of the model are captions and pictures of shapes.

    They are if the captions are in the words of shapes, and the pictures show what these say.
    """
    conditions = _texts(model)
    if not conditions:
        return "agreement is that of a model with captions, and this one has no condition of kind text."
    if given := [name for name in conditions if name in options]:
        return f"agreement is measured with captions of its own; leave {given[0]} out."
    data = judge.heldout if judge.heldout is not None else judge.real
    if not isinstance(data, Dataset) or model.info.shape not in [(3, size, size) for size in _SIZES]:
        return "agreement is that of pictures of 3x32x32 or 3x64x64, and real ones of their kind."
    column = next((data.columns[text.column] for text in conditions.values() if text.column in data.columns), None)
    if column is None or not column.is_text:
        return f"agreement needs captions, and {data.name} has none."
    texts = column.texts(range(min(len(data), _READ)))
    rows = [row for row, text in enumerate(texts) if text]
    try:
        facts = [facts_of(texts[row]) for row in rows]
    except InputError as error:
        return f"agreement is that of captions of shapes, as sfumato.data.shapes writes them: {error}"
    seen = min(len(rows), _SEEN)
    pictures = data.batch(rows[:seen]).numpy()
    right = sum(agreement(*pair).whole for pair in zip(facts, pictures, strict=False))
    if right < _AGREE * seen or not seen:
        return (
            f"agreement is that of pictures as sfumato.data.shapes draws them: {right} of {seen} of {data.name} show "
            "what their captions say."
        )
    return None


def _texts(model: Model) -> dict[str, Text]:
    return {name: c for name, c in model.conditions.items() if isinstance(c, Text)}


class _Asked(NamedTuple):
    """Captions of a split, with their real pictures and what the parser sees in these."""

    captions: list[str]
    pictures: npt.NDArray[np.uint8]
    shown: list[Parsed]


@functools.lru_cache(maxsize=2 * len(SPLITS))
def asked(split: str, count: int, size: int, seed: int) -> _Asked:
    """The first ``count`` captions of a split that state all of their scene, of scenes that no training has."""
    own = random.fold(seed, "agreement")
    scenes = (scene(index, seed=own, split=split) for index in itertools.count())
    whole = (one for one in scenes if facts_of(one.caption).count == one.facts.count)
    chosen = list(itertools.islice(whole, count))
    pictures = np.stack([one.draw(size) for one in chosen])
    begin, end = share_of_process(count)
    return _Asked([one.caption for one in chosen], pictures, _parsed(pictures[begin:end]))


def _parsed(pictures: Any) -> list[Parsed]:
    """What the pictures of all processes show, of which these are of this one."""
    workers = None if processes() == 1 else max(1, (os.cpu_count() or 1) // processes())
    return list(itertools.chain.from_iterable(of_all(parsed(pictures, workers=workers))))


def agreement_of(
    model: Model, count: int, *, seed: int = 1, progress: Progress = None, options: Mapping[str, Any]
) -> dict[str, AgreementReport]:
    """The agreement with ``count`` captions of each split of :data:`sfumato.data.shapes.SPLITS`.

    The captions state all of their scenes. Low-resolution pictures that nobody makes are those of the real pictures.
    """
    size = model.info.shape[-1]
    sets = {split: asked(split, count, size, seed) for split in SPLITS}
    captions = [caption for one in sets.values() for caption in one.captions]
    x0 = as_tensor(np.concatenate([one.pictures for one in sets.values()]))
    columns = {text.column: packed(captions) for text in _texts(model).values()}
    sampling = model.settings(options)[0]
    parts = examples_of(model, x0, columns, seed=seed, given=options, sampling=sampling)
    images = of_process(model, len(captions), seed, progress, options, parts)
    shown = _parsed(images)
    return {
        split: measured(one.captions, shown[i * count : (i + 1) * count], real=one.shown)
        for i, (split, one) in enumerate(sets.items())
    }
