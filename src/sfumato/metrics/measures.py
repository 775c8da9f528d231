"""The measures by name: what each needs, which rows it gives, and what is asked of the number of samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import InputError, SfumatoWarning, nearest
from sfumato.metrics import pairs
from sfumato.metrics.classes import diversity
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.frechet import Moments, frechet, frechet_infinity
from sfumato.metrics.inception_score import inception_score
from sfumato.metrics.kernel import cmmd, kid, kid_subsets
from sfumato.metrics.neighbours import copied_share, nearest_distances, neighbour_ratio, prdc
from sfumato.metrics.report import Better, Row, row
from sfumato.random import permutation

_QUERIES = 2000
"""Real pictures whose neighbours among the others are looked for, where none are held out."""


class Vectors(NamedTuple):
    """Sets in one space of features."""

    samples: Tensor  # what is judged
    reference: Tensor | Moments  # the real pictures that they are compared with
    train: Tensor | None = None  # what the model was trained on
    heldout: Tensor | None = None  # real pictures that it has not seen; None where they are those of `train`
    labels: Tensor | None = None  # the classes of the samples
    logits: Tensor | None = None  # of the network with those features, for the samples


Values = Sequence[tuple[str, Estimate, Better]]
"""Rows: what was measured, the number, and which way is better."""


@dataclass(frozen=True)
class Measure:
    """A measure, by the function that gives its rows.

    Attributes:
        compute: the rows of sets in a space.
        needs: the fields of :class:`Vectors` that it needs, besides ``samples`` and ``reference``.
        least: the fewest samples that give it a meaning.
        only: the one kind of features that it is defined in.
        usual: whether it is taken where no measures are named.
        floor: whether the same of real pictures is its floor; else that is part of its definition.
        alone: whether it looks at the samples only, so that its floor is that of the held-out pictures.
    """

    compute: Callable[[Vectors], Values]
    needs: tuple[str, ...] = ()
    least: int = 2
    only: str | None = None
    usual: bool = True
    floor: bool = True
    alone: bool = False


def _tensor(reference: Tensor | Moments, name: str) -> Tensor:
    if isinstance(reference, Moments):
        raise InputError(
            f"{name} needs the pictures themselves: a file of statistics holds a mean and a covariance only."
        )
    return reference


def _distance(title: str, of: Callable[..., Estimate], *, moments: bool = False) -> Callable[[Vectors], Values]:
    """A measure that is a distance of two sets, whose second may be ``moments``."""

    def compute(sets: Vectors) -> Values:
        reference = sets.reference if moments else _tensor(sets.reference, title)
        return [(title, of(sets.samples, reference), "lower")]

    return compute


def _prdc(sets: Vectors) -> Values:
    names = ("precision k=3", "recall k=3", "density k=5", "coverage k=5")
    values = prdc(sets.samples, _tensor(sets.reference, "precision and recall"))
    return [(name, value, "higher") for name, value in zip(names, values, strict=True)]


def _queries(train: Tensor) -> int:
    return min(_QUERIES, max(1, len(train) // 10))


def _neighbours(sets: Vectors) -> Values:
    train, heldout = sets.train, sets.heldout
    assert train is not None
    near = nearest_distances(sets.samples, train)
    if heldout is None:
        # of one set a random part stands for those held out
        order = torch.from_numpy(permutation(0, "neighbours", 0, len(train)))
        count = _queries(train)
        train, heldout = train[order[count:]], train[order[:count]]
    real = nearest_distances(heldout, train)
    return [
        ("nearest / real", neighbour_ratio(near, real), "floor"),
        ("copies", copied_share(near, real), "floor"),
    ]


def _score(sets: Vectors) -> Values:
    assert sets.logits is not None
    return [("inception score", inception_score(sets.logits), "higher")]


def _diversity(sets: Vectors) -> Values:
    assert sets.labels is not None
    known = sets.labels >= 0
    return [("diversity", diversity(sets.samples[known], sets.labels[known]), "floor")]


MEASURES: dict[str, Measure] = {
    "fd": Measure(_distance("FD", frechet, moments=True)),
    "fd-infinity": Measure(_distance("FD∞", frechet_infinity, moments=True), least=50),
    "kid": Measure(_distance("KID", kid)),
    "kid-subsets": Measure(_distance("KID 100 x 1000", kid_subsets), least=1000, usual=False),
    "prdc": Measure(_prdc, least=10),
    "neighbours": Measure(_neighbours, needs=("train",), floor=False),
    "is": Measure(_score, needs=("logits",), least=100, usual=False, alone=True),
    "diversity": Measure(_diversity, needs=("labels",), alone=True),
    "cmmd": Measure(_distance("CMMD", cmmd), only="clip"),
}
"""The measures of sets of samples, by the names that ``--measures`` takes."""


def require_measure(name: str, more: Sequence[str] = ()) -> None:
    """Check that there is a measure of that name, here or among ``more``."""
    if name not in MEASURES and name not in more:
        raise InputError(f"There is no measure {name!r}{nearest(name, [*MEASURES, *more])}")


def note_of(title: str, sets: Vectors) -> str | None:
    """What must be known of a row of few samples."""
    if title.startswith("FD"):
        reference = len(sets.reference) if isinstance(sets.reference, Tensor) else sets.reference.samples
        few = min(len(sets.samples), reference) <= sets.samples.shape[1]
        return "no more pictures than features: judge it by its ratio" if few else None
    if title == "copies" and sets.train is not None:
        known = len(sets.heldout) if sets.heldout is not None else _queries(sets.train)
        # the percentile of fewer is the least of them
        return f"a 1st percentile needs 100 held-out pictures, and these are {known}" if known < 100 else None
    return None


def of_pairs(samples: Tensor, truths: Tensor, down: Callable[[Tensor], Tensor] | None = None) -> list[Row]:
    """How near pictures are to the real ones that they are to be like, and to what both become by ``down``."""
    measured: list[tuple[str, Callable[[Tensor, Tensor], Tensor], Better]] = [
        ("PSNR", pairs.psnr, "higher"),
        ("SSIM", pairs.ssim, "higher"),
        ("MS-SSIM", pairs.ms_ssim, "higher"),
        ("colour error", pairs.colour_error, "lower"),
    ]
    rows: list[Row] = []
    for name, measure, better in measured:
        try:
            rows.append(row(name, None, pairs.mean(measure(samples, truths)), better=better))
        except InputError:
            # pictures smaller than a window
            continue
    if down is not None:
        found = pairs.consistency(samples, down(truths), down)
        rows.append(row("consistency PSNR", None, pairs.mean(found.psnr), better="higher"))
        rows.append(row("consistency MSE x 1e5", None, pairs.mean(found.mse), better="lower"))
    return rows


def quietly(measure: Measure, sets: Vectors) -> Values:
    """The rows of a measure; what it warns of few samples is a note of the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)
        return measure.compute(sets)
