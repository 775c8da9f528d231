"""A prior: embeddings of images sampled from captions (Ramesh et al. 2022, sec. 2.2), and the model that makes them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sfumato import random
from sfumato.conditioning.base import keyed, keys_of
from sfumato.conditioning.contrast import CAPTION
from sfumato.conditioning.embedding import Embedding
from sfumato.errors import InputError, SfumatoWarning
from sfumato.models.batch import SamplingBatch
from sfumato.models.embeddings import contrast_of, load_embedder
from sfumato.models.guides import few
from sfumato.models.model import Model


class Prior(Model):
    """A model of the embeddings of images that is given captions alone: it knows the model that embeds them.

    Of several candidates (``sampling.candidates``) that embedding is taken whose dot product with the embedding of the
    caption is the largest. Embeddings have unit length.

    Args:
        prior: the model of a run with ``data.embeddings``.
        embedder: the contrastive model of its ``data.embedder``.
    """

    chooses = True

    def __init__(self, prior: Model, embedder: Model) -> None:
        contrast, identity = contrast_of(embedder), embedder.fingerprint
        if prior.info.identity != identity:
            raise InputError(
                f"{prior.run or 'The prior'} makes embeddings of the model {prior.info.identity[:12]}..., and "
                f"{embedder.run or 'the one given'} is {identity[:12]}...: take the one that it was trained with."
            )
        super().__init__(
            prior.denoiser,
            prior.info,
            config=prior.config,
            conditions=prior.conditions,
            run=prior.run,
            step=prior.step,
        )
        self.configured, self.fitted, self.trust, self.data = prior.configured, prior.fitted, prior.trust, prior.data
        self.embedder, self.contrast_model = embedder, contrast
        self.supplied = tuple(
            name for name, one in prior.conditions.items() if isinstance(one, Embedding) and one.column == CAPTION
        )
        self.text = next((n for n, one in prior.conditions.items() if one.columns == contrast.condition.columns), "")
        if self.text and prior.conditions[self.text].meaning != contrast.condition.meaning:
            theirs, ours = (few(one.meaning) for one in (contrast.condition, prior.conditions[self.text]))
            raise InputError(
                f"{prior.run or 'The prior'} reads captions by {ours}, and {embedder.run or 'its model'} by {theirs}."
            )

    def to(self, device: str | torch.device) -> Model:
        """Move the weights to a device, also those of the model of the embeddings."""
        self.embedder.to(device)
        return super().to(device)

    def completed(
        self, cond: dict[str, Tensor], count: int, seed: int, first: int, options: Mapping[str, Any], period: int
    ) -> dict[str, Tensor]:
        """The conditions of a batch with the embedding of its captions."""
        lacking = [name for name in self.supplied if name not in cond]
        if not lacking or self.text not in cond:
            return cond
        embedding = self.embedded(cond)
        parts = (keyed(name, self.conditions[name], {"value": embedding}) for name in lacking)
        return {**cond, **{key: rows for one in parts for key, rows in one.items()}}

    @torch.no_grad()
    def embedded(self, cond: Mapping[str, Tensor]) -> Float[Tensor, "batch features"]:
        """The embeddings of the captions of a batch; null where there is none."""
        condition = self.conditions[self.text]
        parts = {part: cond[key] for key, part in keys_of(self.text, condition).items()}
        self.embedder.module.eval()
        rows = self.contrast_model.texts(**{part: one.to(self.embedder.device) for part, one in parts.items()})
        null = condition.null_rows(parts)[:, None]
        return rows.to(null.device).masked_fill(null, torch.nan)

    def batches(self, count: int, *, stepwise: bool = False, **options: Any) -> Iterator[SamplingBatch]:
        """Those of :meth:`Model.batches`, whose images are the best of the candidates; of edits there is one.

        Their frames, and with them :meth:`~sfumato.models.model.Model.frames`, are those of the first candidate.
        """
        candidates = 1 if stepwise else self.settings({**options})[0].candidates
        options["stepwise"] = stepwise
        seed: int = options.pop("seed", 0)
        # the first candidate is what is sampled without others
        seeds = [seed, *(random.fold(seed, f"candidate {k}") for k in range(1, candidates))]
        for batch, *others in zip(*(super(Prior, self).batches(count, seed=s, **options) for s in seeds), strict=True):
            yield _Best(**vars(batch), others=tuple(others), model=self)


def with_embedder(model: Model) -> Model:
    """A :class:`Prior` of a model of embeddings whose contrastive model is there; other models are as they are."""
    place = model.config.data.embedder
    if not model.info.identity or place is None:
        return model
    if not (place / "config.json").is_file():
        sentence = f"{place} is not there, whose embeddings {model.run} makes: it can't be given captions alone."
        warnings.warn(sentence, SfumatoWarning, stacklevel=3)
        return model
    return Prior(model, load_embedder(place, model.device))


@dataclass(frozen=True, eq=False)
class _Best(SamplingBatch):
    """A batch of which each image is the best of those at its place in several batches."""

    others: tuple[SamplingBatch, ...]
    model: Prior

    def images(self) -> Float[Tensor, "batch features"]:
        info = self.model.info
        found = [
            functional.normalize(info.in_units(b), dim=1)
            for b in (super().images(), *(o.images() for o in self.others))
        ]
        rows = torch.stack(found)
        wanted = next((self.cond[name] for name in self.model.supplied if name in self.cond), None)
        if wanted is None or len(found) == 1:
            best = rows[0]
        else:
            score = (rows * wanted.cpu()).sum(2).nan_to_num()
            best = rows.gather(0, score.argmax(0)[None, :, None].expand(1, -1, rows.shape[2]))[0]
        return info.standardized(best)
