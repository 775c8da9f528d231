"""What a contrastive model says of samples: whether pictures fit their captions, and embeddings their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sfumato import recipes
from sfumato.conditioning import Text
from sfumato.conditioning.contrast import CAPTION
from sfumato.conditioning.swaps import groups_of
from sfumato.config import GuidanceConfig
from sfumato.data import Batch, Dataset, Loader
from sfumato.errors import InputError
from sfumato.io.text import unpacked
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.frechet import frechet_distance
from sfumato.metrics.report import Report, Row
from sfumato.models.contrast import found_rows, told_rows
from sfumato.models.data import SPLIT_SEED
from sfumato.models.embeddings import as_seen, contrast_of, embed_descriptions, embed_images
from sfumato.models.model import Model
from sfumato.models.prior import Prior
from sfumato.random import Draws


def with_clip(report: Report, embedder: Model, model: Model, images: Tensor, like: Dataset, seed: int) -> Report:
    """A report with what a contrastive model says of pictures that were sampled from captions.

    The CLIP score is the mean cosine of a picture with its caption, R@1 how often one finds the other among all, and
    "words exchanged" how often a picture is nearer to its caption than to one of which two words have changed places.
    The floor is that of the real pictures of the same captions.

    Args:
        report: what else was measured.
        embedder: the contrastive model.
        model: what sampled.
        images: its samples ``0 ...`` of a seed, ``(N, C, *space)``, by the captions of data.
        like: those data.
        seed: of the choice of changed words.
    """
    count = len(images)
    batch = Loader(like, SPLIT_SEED, crop=model.config.data.random_crop).batch(0, count)
    (column,) = contrast_of(embedder).condition.columns
    captions, texts = unpacked(batch.cond[column]), embed_descriptions(embedder, batch.cond, count)
    # words of shapes, if it names none of its own
    is_shapes = model.config.data.source.partition(":")[0] == "shapes"
    usual = recipes.contrast()["objective"]["swaps"] if is_shapes else ()
    groups = groups_of(getattr(embedder.config.objective, "swaps", ()) or usual)

    def judge(pictures: Tensor) -> list[Row]:
        seen = as_seen(embedder, pictures)
        rows = found_rows(embed_images(embedder, seen), texts, [batch.cond[column]])
        return [*rows, *(told_rows(embedder, "captions", captions, seen, None, groups, seed) if groups else ())]

    rows = [replace(row, floor=real.value) for row, real in zip(judge(images), judge(batch.x0), strict=True)]
    return replace(report, rows=(*report.rows, *rows))


def check_embedder(embedder: Model, model: Model, options: Mapping[str, Any]) -> None:
    """Refuse a contrastive model that can't judge the samples of a model, before they are made."""
    texts = [name for name, one in model.conditions.items() if isinstance(one, Text)]
    if not isinstance(contrast_of(embedder).condition, Text) or not texts or len(model.info.shape) == 1:
        raise InputError(
            "A contrastive model judges pictures by their captions; take one of captions, and a model of pictures "
            "that is given them."
        )
    if given := [name for name in texts if name in model.settings(options)[3]]:
        raise InputError(f"Pictures are judged by the captions of the data; leave {given[0]} out, or the embedder.")
    as_seen(embedder, torch.zeros(1, *model.info.shape))


@torch.no_grad()
def with_ranks(
    report: Report, prior: Prior, samples: Tensor, like: Dataset, seed: int, options: Mapping[str, Any]
) -> Report:
    """A report with how well a prior finds the embeddings of images, beside what finds them without one.

    The rank is that of the own image among all, by the cosine of its embedding with the sampled one: 0 if no other is
    nearer, .5 on average by chance. The same is measured of the mean of the prior, which is its estimate from noise
    alone (regression), and of the embedding of the caption in the place of that of the image. A mean has good ranks,
    but its Frechet distance tells it from embeddings of images.

    Args:
        report: what else was measured.
        prior: the prior, with its contrastive model.
        samples: its samples ``0 ...`` of a seed, ``(N, features)``, by the captions of data.
        like: those data.
        seed, options: as for :meth:`Model.sample`.
    """
    batch = Loader(like, SPLIT_SEED).batch(0, len(samples))
    real = functional.normalize(prior.info.in_units(batch.x0), dim=1)
    told = {"sampled": prior.info.in_units(samples), "mean": _mean(prior, batch, seed, options)}
    told["caption's own"] = batch.cond[CAPTION]
    rows: list[Row] = []
    for name, vectors in told.items():
        vectors = functional.normalize(vectors.float(), dim=1)
        cosine = vectors @ real.T
        own = cosine.diagonal()[:, None]
        rank = (cosine > own).double().mean(1)
        found = Estimate(float(rank.mean()), float(rank.std()) / len(rank) ** 0.5, "spread over captions")
        rows += [
            Row(f"rank, {name}", None, *found, better="lower", chance=0.5),
            Row(f"cosine, {name}", None, float(own.mean()), better="higher"),
            Row(f"FD of embeddings, {name}", None, frechet_distance(vectors, real), better="lower"),
        ]
    return replace(report, rows=(*report.rows, *rows))


def _mean(prior: Prior, batch: Batch, seed: int, options: Mapping[str, Any]) -> Tensor:
    """The estimates of embeddings from noise alone."""
    count, name = len(batch.x0), prior.text
    sampling = prior.settings(options)[0].model_copy(update={"guidance": GuidanceConfig(), "candidates": 1})
    more: dict[str, Any] = {"seed": seed, "sampling": sampling}
    if name:
        more[name] = prior.conditions[name].evaluation(batch.x0, batch.cond, Draws(seed, 0, count, count))
    found: list[Tensor] = []
    for one in prior.batches(count, **more):
        prediction = one.denoise(one.x, one.levels[0], **one.cond)
        found.append(prediction.x0.cpu())
    return prior.info.in_units(torch.cat(found))
