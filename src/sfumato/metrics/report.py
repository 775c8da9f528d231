"""The evaluation: samples compared with the training set and the held-out set, in pixels and in features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from sfumato.errors import InputError
from sfumato.metrics.features import ClassifierFeatures, check_images, train_classifier
from sfumato.metrics.frechet import Moments
from sfumato.metrics.neighbours import nearest_distances, neighbour_ratio


@dataclass(frozen=True)
class SpaceEvaluation:
    """The measures in one feature space. Frechet distances are comparable only within one space."""

    space: str  # "pixels" or "classifier"
    features: int  # their number
    frechet_heldout: float  # of the samples to the held-out set: the number to judge a model by
    frechet_train: float  # of the samples to the training set; far below `frechet_heldout`, it shows copies
    frechet_reference: float  # real vs real: of the training set to the held-out set
    frechet_biased: bool  # whether a set has no more images than features: only `frechet_ratio` has a meaning then
    neighbour_samples: float  # the median distance of a sample to the nearest training image
    neighbour_reference: float  # real vs real: the same of held-out images
    neighbour_ratio: float  # of the two: 1 for real images, near 0 for copies

    @property
    def frechet_ratio(self) -> float:
        """`frechet_heldout` over `frechet_reference`; about 1 for samples as good as real images."""
        return self.frechet_heldout / self.frechet_reference if self.frechet_reference > 0 else float("inf")


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    samples: int
    train: int
    heldout: int
    seed: int | None  # of the classifier; None without labels or with a classifier trained before
    accuracy: float | None  # of the classifier on the held-out set; None without its labels
    spaces: tuple[SpaceEvaluation, ...]  # pixels, then classifier features when there are labels

    @property
    def main(self) -> SpaceEvaluation:
        """The entry that ranks models: classifier features where there are labels, else pixels."""
        return self.spaces[-1]

    def to_dict(self) -> dict[str, Any]:
        """All fields as numbers, strings, lists and dictionaries, ready for JSON."""
        spaces = {entry.space: {**asdict(entry), "frechet_ratio": entry.frechet_ratio} for entry in self.spaces}
        return {**asdict(self), "spaces": spaces}


def evaluate(
    samples: Float[Tensor, "samples channels *space"],
    train: Float[Tensor, "train channels *space"],
    heldout: Float[Tensor, "heldout channels *space"],
    *,
    train_labels: Int[Tensor, " train"] | None = None,
    heldout_labels: Int[Tensor, " heldout"] | None = None,
    classifier: ClassifierFeatures | None = None,
) -> Evaluation:
    """Compare samples with the training set and with held-out images, each number with its real-vs-real reference.

    The bias of a Frechet distance depends on the numbers of images, so the reference is fair when there are as
    many samples as training images.

    Args:
        samples: generated images in [-1, 1].
        train: the images that the model was trained on.
        heldout: images of the same kind that it has not seen.
        train_labels: with them, a classifier is trained for its features.
        heldout_labels: with them, the accuracy of the classifier is reported.
        classifier: a classifier that was trained before, to be used instead of training one.
    """
    for what, images in (("samples", samples), ("train", train), ("heldout", heldout)):
        check_images(what, images)
        if len(images) < 2:
            raise InputError(f"{what} holds {len(images)} image; an evaluation needs at least 2 of each set.")
        if images.shape[1:] != train.shape[1:]:
            shapes = f"{tuple(images.shape[1:])} in {what}, {tuple(train.shape[1:])} in train"
            raise InputError(f"All sets must have one image shape; it is {shapes}.")
    seed = accuracy = None
    if classifier is None and train_labels is not None:
        seed = 0  # of the measure and not of the model: always the same
        classifier = train_classifier(train, train_labels, seed=seed)
    if classifier is not None and heldout_labels is not None:
        accuracy = classifier.accuracy(heldout, heldout_labels)
    sets = (samples, train, heldout)
    spaces = [_in_space("pixels", [images.flatten(1) for images in sets])]
    if classifier is not None:
        spaces.append(_in_space("classifier", [classifier(images) for images in sets]))
    return Evaluation(len(samples), len(train), len(heldout), seed, accuracy, tuple(spaces))


def _in_space(name: str, features: list[Tensor]) -> SpaceEvaluation:
    of_samples, of_train, of_heldout = (Moments.fit(vectors) for vectors in features)
    near_samples, near_heldout = (nearest_distances(vectors, features[1]) for vectors in features[::2])
    return SpaceEvaluation(
        space=name,
        features=features[0].shape[1],
        frechet_heldout=of_samples.distance(of_heldout),
        frechet_train=of_samples.distance(of_train),
        frechet_reference=of_train.distance(of_heldout),
        frechet_biased=of_samples.biased or of_train.biased or of_heldout.biased,
        neighbour_samples=float(near_samples.median()),
        neighbour_reference=float(near_heldout.median()),
        neighbour_ratio=neighbour_ratio(near_samples, near_heldout).value,
    )


def table(evaluation: Evaluation) -> Table:
    """An evaluation as one table for the terminal: a row per number, with its real-vs-real reference."""
    counts = f"{evaluation.samples} samples, {evaluation.train} training"
    result = Table("space", "measure", title=f"{counts} and {evaluation.heldout} held-out images")
    for heading in ("samples", "real vs real", "ratio"):
        result.add_column(heading, justify="right")
    for entry in evaluation.spaces:
        name = f"{entry.space} ({entry.features})" + (" *" if entry.frechet_biased else "")
        frechet = f"{entry.frechet_heldout:.3g}", f"{entry.frechet_reference:.3g}", f"{entry.frechet_ratio:.2f}"
        nearest = f"{entry.neighbour_samples:.3g}", f"{entry.neighbour_reference:.3g}", f"{entry.neighbour_ratio:.2f}"
        result.add_row(name, "Frechet to held-out", *frechet)
        result.add_row("", "Frechet to training", f"{entry.frechet_train:.3g}", "", "")
        result.add_row("", "nearest training image", *nearest)
        result.add_section()
    notes: list[str] = []
    if evaluation.accuracy is not None:
        notes.append(f"held-out accuracy of the classifier: {evaluation.accuracy:.1%}")
    if any(entry.frechet_biased for entry in evaluation.spaces):
        notes.append("* fewer images than features: judge the Frechet distance by its ratio")
    result.caption = "\n".join(notes) or None
    return result
