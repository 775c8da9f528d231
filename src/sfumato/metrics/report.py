"""The first evaluation: samples beside the training set and the held-out set, in pixels and in features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from sfumato.errors import InputError
from sfumato.metrics.features import ClassifierFeatures, Extractor, check_images, pixels, train_classifier
from sfumato.metrics.frechet import Gaussian
from sfumato.metrics.neighbours import nearest_distances, neighbour_ratio


@dataclass(frozen=True)
class SpaceEvaluation:
    """What one feature space says. Frechet distances are comparable only within one space."""

    space: str
    """The name of the extractor: ``"pixels"`` or ``"classifier"``."""
    features: int
    """The number of features."""
    frechet_heldout: float
    """The Frechet distance of the samples to the held-out set: the number to judge a model by."""
    frechet_train: float
    """Their distance to the training set; far below `frechet_heldout`, it shows copies."""
    frechet_floor: float
    """The Frechet distance of the training set to the held-out set: what real images reach."""
    frechet_biased: bool
    """Whether a set has no more images than features, so that only the ratio to the floor has a meaning."""
    neighbour_samples: float
    """The median distance of a sample to the nearest training image."""
    neighbour_heldout: float
    """The same median of held-out images: the floor of `neighbour_samples`."""
    neighbour_ratio: float
    """`neighbour_samples` over `neighbour_heldout`: 1 for real images, near 0 for copies."""

    @property
    def frechet_ratio(self) -> float:
        """`frechet_heldout` in units of the floor; about 1 for samples as good as real images."""
        return self.frechet_heldout / self.frechet_floor if self.frechet_floor > 0 else float("inf")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    samples: int
    """The number of samples."""
    train: int
    """The number of training images."""
    heldout: int
    """The number of held-out images."""
    seed: int | None
    """The seed of the classifier; ``None`` where there are no labels or a trained classifier was given."""
    accuracy: float | None
    """The accuracy of the classifier on the held-out set; ``None`` without its labels."""
    spaces: tuple[SpaceEvaluation, ...]
    """One entry per feature space: pixels, then classifier features when there are labels."""

    def __getitem__(self, space: str) -> SpaceEvaluation:
        """The entry of the feature space with this name.

        Raises:
            KeyError: There is no such space.
        """
        for entry in self.spaces:
            if entry.space == space:
                return entry
        raise KeyError(space)

    @property
    def main(self) -> SpaceEvaluation:
        """The entry that ranks models: classifier features where there are labels, else pixels."""
        return self.spaces[-1]

    def to_dict(self) -> dict[str, Any]:
        """All fields as numbers, strings, lists and dictionaries, ready for JSON."""
        fields = asdict(self)
        fields["spaces"] = {
            entry.space: {**asdict(entry), "frechet_ratio": entry.frechet_ratio} for entry in self.spaces
        }
        return fields


def evaluate(
    samples: Float[Tensor, "samples channels *space"],
    train: Float[Tensor, "train channels *space"],
    heldout: Float[Tensor, "heldout channels *space"],
    *,
    train_labels: Int[Tensor, " train"] | None = None,
    heldout_labels: Int[Tensor, " heldout"] | None = None,
    classifier: ClassifierFeatures | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare samples with the training set and with held-out images, each number beside its floor.

    The bias of a Frechet distance depends on the numbers of images, so the floor is fair when there are as
    many samples as training images.

    Args:
        samples: Generated images ``(samples, C, *space)`` in [-1, 1].
        train: The images that the model was trained on.
        heldout: Images of the same kind that it has not seen.
        train_labels: Labels of the training images; with them, a classifier is trained for its features.
        heldout_labels: Labels of the held-out images; with them, the accuracy of the classifier is reported.
        classifier: A classifier that was trained before, to be used instead of training one.
        seed: The seed of the classifier. Leave it alone: it belongs to the measure, not to the model.

    Raises:
        InputError: A set has fewer than two images, is not finite, or has another image shape than the rest;
            or the labels do not fit.
    """
    for what, images in (("samples", samples), ("train", train), ("heldout", heldout)):
        check_images(what, images)
        if len(images) < 2:
            raise InputError(f"{what} holds {len(images)} image; an evaluation needs at least 2 of each set.")
        if images.shape[1:] != train.shape[1:]:
            raise InputError(
                f"images of {what} have shape {tuple(images.shape[1:])} and those of train"
                f" {tuple(train.shape[1:])}; all sets must have one image shape."
            )
    used: int | None = None
    if classifier is None and train_labels is not None:
        classifier, used = train_classifier(train, train_labels, seed=seed), seed
    accuracy = None
    if classifier is not None and heldout_labels is not None:
        accuracy = classifier.accuracy(heldout, heldout_labels)
    extractors: list[Extractor] = [pixels] if classifier is None else [pixels, classifier]
    spaces = tuple(_in_space(extractor, samples, train, heldout) for extractor in extractors)
    return Evaluation(len(samples), len(train), len(heldout), used, accuracy, spaces)


def _in_space(extractor: Extractor, samples: Tensor, train: Tensor, heldout: Tensor) -> SpaceEvaluation:
    made, known, fresh = extractor(samples), extractor(train), extractor(heldout)
    of_made, of_known, of_fresh = Gaussian.fit(made), Gaussian.fit(known), Gaussian.fit(fresh)
    near_made, near_fresh = nearest_distances(made, known), nearest_distances(fresh, known)
    return SpaceEvaluation(
        space=extractor.name,
        features=made.shape[1],
        frechet_heldout=of_made.distance(of_fresh),
        frechet_train=of_made.distance(of_known),
        frechet_floor=of_known.distance(of_fresh),
        frechet_biased=of_made.biased or of_known.biased or of_fresh.biased,
        neighbour_samples=float(near_made.median()),
        neighbour_heldout=float(near_fresh.median()),
        neighbour_ratio=neighbour_ratio(near_made, near_fresh),
    )


def table(evaluation: Evaluation) -> Table:
    """An evaluation as one table for the terminal: a row per number, its floor beside it."""
    counts = f"{evaluation.samples} samples, {evaluation.train} training"
    result = Table(title=f"{counts} and {evaluation.heldout} held-out images")
    result.add_column("space")
    result.add_column("measure")
    for heading in ("samples", "floor (real)", "ratio"):
        result.add_column(heading, justify="right")
    for entry in evaluation.spaces:
        name = f"{entry.space} ({entry.features})" + (" *" if entry.frechet_biased else "")
        floor, reference = entry.frechet_floor, entry.neighbour_heldout
        heldout, copies = f"{entry.frechet_heldout:.3g}", f"{entry.frechet_train:.3g}"
        ratio = f"{entry.frechet_ratio:.2f}"
        nearest = f"{entry.neighbour_samples:.3g}"
        result.add_row(name, "Frechet to held-out", heldout, f"{floor:.3g}", ratio)
        result.add_row("", "Frechet to training", copies, "", "")
        closeness = f"{entry.neighbour_ratio:.2f}"
        result.add_row("", "nearest training image", nearest, f"{reference:.3g}", closeness)
        result.add_section()
    notes: list[str] = []
    if evaluation.accuracy is not None:
        notes.append(f"held-out accuracy of the classifier: {evaluation.accuracy:.1%}")
    if any(entry.frechet_biased for entry in evaluation.spaces):
        notes.append("* fewer images than features: judge the Frechet distance by its ratio to the floor")
    result.caption = "\n".join(notes) or None
    return result
