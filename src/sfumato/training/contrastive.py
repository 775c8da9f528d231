"""CLIP's loss: which description goes with which image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.conditioning.base import take
from sfumato.conditioning.contrast import Contrast, same_descriptions
from sfumato.conditioning.swaps import exchanged, groups_of, neighbours, replaced
from sfumato.conditioning.text import Text
from sfumato.data import Batch
from sfumato.errors import InputError
from sfumato.io.text import packed, unpacked
from sfumato.random import Draws

_NEVER = -1e4  # the logit of what is no choice; with -inf the gradient would be NaN


class Contrastive(nn.Module):
    r"""CLIP's symmetric contrastive loss between images and what describes them (Radford et al. 2021, fig. 3).

    The embeddings of a batch are compared with each other; a sample's loss is the mean of its two cross entropies, that
    of its description among all, and that of its image among all. Images with the same description are all right for
    it. The others are those of the same part of the batch: of this process, and of one of ``accumulate`` parts. A batch
    cut otherwise is another loss.

    Each image is also told from its own caption with two words in each other's place, or with another word in one's
    place (after Yuksekgonul et al. 2023): without such captions it is enough to know which words there are, and not
    which belong together. Only those captions are used whose words are neighbours in some caption of the batch too
    (:func:`~sfumato.conditioning.swaps.neighbours`). If the data have no blue ring, a caption with one is always a
    changed one, and it would be learned that blue rings are wrong, not to look for them.

    A changed caption may still be right, as that of two things that only change places; in captions of shapes one in
    seventy is.

    Args:
        contrast: the model to train.
        swaps: groups of words that can stand for each other in captions, such as ``["red green blue", "left right"]``;
            none for no changed captions.
        changed: captions that are changed for each image, where there are groups.
    """

    def __init__(self, contrast: Contrast, *, swaps: Sequence[str] = (), changed: int = 3) -> None:
        super().__init__()
        if changed < 1:
            raise InputError(f"A contrastive loss with swaps needs at least 1 changed caption; got {changed}.")
        condition = contrast.condition
        if swaps and not (isinstance(condition, Text) and not condition.is_frozen):
            raise InputError(
                "Words change places in captions that are read as words, and here are none: leave objective.swaps out."
            )
        self.model, self.condition, self.swaps, self.changed = contrast, condition, groups_of(swaps), changed

    def forward(self, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        return self._judged(batch, draws)[0]

    @torch.no_grad()
    def report(self, batch: Batch, draws: Draws) -> dict[str, float]:
        """The loss; and how often an image is nearest to its description among those of the batch, and vice versa."""
        losses, logits, same = self._judged(batch, draws)
        values = {"heldout_loss": float(losses.mean())}
        for name, table, right in (("descriptions", logits, same), ("images", logits.T, same.T)):
            values[f"heldout_{name} found"] = float(right.gather(1, table.argmax(1)[:, None]).double().mean())
        return values

    def _judged(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The losses, the logits of images with descriptions, and which of these are the same."""
        images = self.model.images(batch.x0)
        texts = self._texts(batch.x0, batch.cond, draws)
        wrong = self._changed(batch, draws) if self.swaps else None
        # in bfloat16 a logit of 100 would be right to half a unit
        with torch.autocast(images.device.type, enabled=False):
            logits = self.model.scale * images @ texts.T
            columns = [take(batch.cond, name) for name in self.condition.columns]
            same = same_descriptions(columns, len(images)).to(logits)
            right = same / same.sum(1, keepdim=True)
            by_image, right_by_image = logits, right
            if wrong is not None:
                others = self.model.scale * torch.einsum("bf,bkf->bk", images, wrong[0])
                by_image = torch.cat([logits, others.masked_fill(wrong[1], _NEVER)], dim=1)
                right_by_image = torch.cat([right, torch.zeros_like(others)], dim=1)
            of_images = functional.cross_entropy(by_image, right_by_image, reduction="none")
            of_texts = functional.cross_entropy(logits.T, right, reduction="none")
        return 0.5 * (of_images + of_texts), logits, same

    def _changed(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The embeddings ``(batch, changed, features)`` of captions with changed words, and where there are none."""
        column = self.condition.columns[0]
        texts, u = unpacked(take(batch.cond, column)), draws.uniform("swaps", (self.changed, 2)).tolist()
        known = set[tuple[str, str]]().union(*(neighbours(text, self.swaps) for text in texts))
        choices = [_changes(text, self.swaps, lambda text: neighbours(text, self.swaps) <= known) for text in texts]
        made = [[chosen(*of_text, *pair) for pair in row] for of_text, row in zip(choices, u, strict=True)]
        found: list[Tensor] = []
        for number, changed in enumerate(zip(*made, strict=True)):
            written = {column: packed(text or "" for text in changed).to(batch.x0.device)}
            found.append(self._texts(batch.x0, written, draws.within(f"swaps {number}")))
        is_none = torch.tensor([[text is None for text in row] for row in made], device=batch.x0.device)
        return torch.stack(found, dim=1), is_none

    def _texts(self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """The embeddings of descriptions, in training with words hidden where the condition hides some."""
        make = self.condition.training if self.training else self.condition.evaluation
        return self.model.texts(**make(x0, columns, draws))


def _changes(
    text: str, groups: Sequence[Sequence[str]], usable: Callable[[str], bool]
) -> tuple[list[str], list[list[str]]]:
    """The usable texts with words exchanged; and those with one replaced, by the group of the word."""
    by_group = ([one for one in replaced(text, [group]) if usable(one)] for group in groups)
    return list(filter(usable, exchanged(text, groups))), list(filter(None, by_group))


def chosen(exchanges: Sequence[str], replacements: Sequence[Sequence[str]], which: float, place: float) -> str | None:
    """One of the texts, each kind in half of the cases if there are of both; None if there are none.

    Of replacements each group is as frequent as another: "left" and "right" as the many words for colours.

    Args:
        exchanges: texts with two words exchanged.
        replacements: texts with a word replaced, by the group of the word, none empty.
        which, place: uniform random numbers in [0, 1), for the kind and group, and for the text of it.
    """
    texts = exchanges
    if replacements and (which >= 0.5 or not exchanges):
        part = 2.0 * which - 1.0 if exchanges else which
        texts = replacements[int(part * len(replacements))]
    return texts[int(place * len(texts))] if texts else None
