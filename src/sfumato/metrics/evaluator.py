"""Judging sets of samples against real pictures, whose features are computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato import random
from sfumato.data import Dataset
from sfumato.errors import InputError
from sfumato.io.progress import Progress
from sfumato.metrics.cache import cached_features, read_statistics
from sfumato.metrics.classes import classes_of, label_accuracy, labels_of, require_labels
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.features import Features, default_features, extract, features
from sfumato.metrics.frechet import Moments
from sfumato.metrics.measures import MEASURES, Measure, Vectors, note_of, of_pairs, quietly, require_measure
from sfumato.metrics.page import Gallery
from sfumato.metrics.pictures import check_images
from sfumato.metrics.report import Report, Row, row
from sfumato.metrics.saturation import saturation

MOST = 5000
"""The most real pictures of a set whose features are computed with a large network, where nothing else is said."""

MOST_VALUES = 1 << 28
"""The most values of the pictures of a set that are held: 1 GiB of float32, 87,000 pictures of 3x32x32."""

_SHOWN = 12
"""Samples that are shown beside the real picture that is nearest to them."""

_DENSITY = 5
"""The real neighbour whose distance says how densely real pictures lie about a sample."""

_UNKNOWN = 1 << 40
"""The number of pictures of published statistics that do not say it: they are taken to be many."""

MORE = ("accuracy", "pairs", "bits", "agreement", "saturation")
"""Measures that no space of features has."""


@dataclass
class Evaluator:
    """Judges samples against real pictures.

    Where there are training and held-out pictures, samples are compared with those held out, and the floor is that of
    as many training pictures, so that a model gains nothing by copies. With one set of real pictures samples are
    compared with all of it, and the floor is that of a random part of it, no more than half, against the rest.

    ::

        judge = sfumato.metrics.Evaluator(sfumato.data.load("digits"))
        print(judge(images)["FD"].value)

    Args:
        real: the real pictures, those that a model was trained on where there are others held out; or the moments of
            their features, which can be a file of published statistics (:func:`read_statistics`).
        heldout: real pictures that were not trained on.
        against: which of the two samples are compared with: ``"heldout"`` or, as published numbers are,
            ``"training"``.
        spaces: features by name, or modules or functions from pictures in [-1, 1] to vectors; by default those that
            suit the data (:func:`default_features`), with neighbours in pixels too.
        measures: which of :data:`MEASURES`, ``"accuracy"`` or ``"pairs"``; by default all that suit features and data.
        most: the most pictures of a real set that are looked at with a large network; 0 for all.
        weights: the file of the weights of the features, where these are not included.
        resize: how pictures are resized for the features.
        device: where features are computed.
        cache: the folder that keeps the features of real pictures, by default that of the user.
        progress: as :meth:`sfumato.Model.sample` takes it.
    """

    real: Dataset | Moments | Path
    heldout: Dataset | None = None
    against: str = "heldout"
    spaces: Sequence[str | Callable[[Tensor], Tensor]] = ()
    measures: Sequence[str] = ()
    most: int = MOST
    weights: Path | None = None
    resize: str | None = None
    device: Any = None
    cache: Path | None = None
    progress: Progress = None
    _networks: dict[Any, Features] = field(default_factory=dict[Any, Features], init=False)
    # features of one's own may share a name, so these are by the features themselves
    _vectors: dict[tuple[str, Features], Tensor] = field(default_factory=dict[tuple[str, Features], Tensor], init=False)
    _floors: dict[tuple[Features, str, int], dict[str, Estimate]] = field(
        default_factory=dict[tuple[Features, str, int], dict[str, Estimate]], init=False
    )

    def __post_init__(self) -> None:
        for name in self.measures:
            require_measure(name, MORE)
        if self.against not in ("heldout", "training"):
            raise InputError(f"Samples are compared with heldout or training pictures; got {self.against!r}.")
        if (self.weights or self.resize) and self.spaces and {*self.spaces} <= {"pixels", "classifier"}:
            raise InputError(
                f"The features {self.spaces[0]} have no weights and no resizing to choose; leave them out."
            )
        if isinstance(self.real, Path):
            self.real = self._statistics(self.real)
        for what, data in (("training", self.real), ("held-out", self.heldout)):
            if isinstance(data, Dataset) and len(data) < 2:
                raise InputError(f"{data.name} holds {len(data)} {what} pictures; an evaluation needs at least 2.")
        if isinstance(self.real, Dataset) and self.heldout is not None:
            self._require_shape(self.heldout)

    def __call__(
        self,
        samples: Dataset | Float[Tensor, "batch channels *space"],
        *,
        labels: Int[Tensor, " batch"] | None = None,
        truths: Float[Tensor, "batch channels *space"] | None = None,
        down: Callable[[Tensor], Tensor] | None = None,
        name: str = "samples",
    ) -> Report:
        """Judge samples.

        Args:
            samples: pictures in [-1, 1], or a data set of them.
            labels: the classes that were asked for, as numbers of those of the real pictures; -1 for none.
            truths: the real pictures that each of them is to be like, for measures of pairs.
            down: how the low-resolution pictures that they were made from come from the truths, for the consistency.
            name: what they are called.
        """
        data = samples if isinstance(samples, Dataset) else _dataset(samples, name)
        if len(data) < 2:
            raise InputError(f"{name} holds {len(data)} pictures; an evaluation needs at least 2.")
        self._require_shape(data)
        if labels is not None and len(labels) != len(data):
            raise InputError(f"There are {len(labels)} labels of {len(data)} pictures; give one for each.")
        known = classes_of(self.real) if isinstance(self.real, Dataset) else ()
        if labels is not None:
            require_labels(labels, known)
            labels = labels if bool((labels >= 0).any()) else None
        if "accuracy" in self.measures and (labels is None or not known):
            raise InputError(f"accuracy needs the classes of {name} and of the real pictures; leave it out.")
        if "pairs" in self.measures and truths is None:
            raise InputError(
                f"pairs needs the truth of each picture, as samples of super-resolution have; {name} don't."
            )
        plan, notes, rows = self._plan(data), list[str](), list[Row]()
        for space, measures in plan:
            rows += self._in_space(space, measures, data, labels, notes) if measures else []
        if labels is not None and (not self.measures or "accuracy" in self.measures):
            rows += self._accuracy(data, labels)
        if truths is not None and (not self.measures or "pairs" in self.measures):
            rows += of_pairs(data.batch(range(len(data))), truths, down)
        if "saturation" in self.measures:
            real = self.heldout if self._reference_name == "heldout" else self.real
            part = self._part(real, "pixels") if isinstance(real, Dataset) else None
            rows += saturation(data.batch(range(len(data))), None if part is None else part.batch(range(len(part))))
        if not rows:
            why = " ".join(dict.fromkeys(notes)) or "no measure fits."
            raise InputError(f"Nothing can be measured of {name}: {why}")
        counts = {"samples": len(data)} | self.counts
        settings = {"against": self._reference_name, "features": {space.name: space.identity for space, _ in plan}}
        return Report(name, counts, tuple(rows), settings, tuple(dict.fromkeys(notes)))

    def of_statistics(self, samples: Moments | Path, name: str = "samples") -> Report:
        """Judge the moments of features, or a file of them, by their Frechet distance."""
        space, real = self._main_of_statistics(), self.real
        moments = samples if isinstance(samples, Moments) else self._statistics(samples)
        if isinstance(real, Dataset):
            which = self.heldout if self.heldout is not None and self.against == "heldout" else real
            real = Moments.fit(self._of(which, space))
        assert isinstance(real, Moments)
        counts = ({"samples": moments.samples} if moments.samples < _UNKNOWN else {}) | self.counts
        return Report(name, counts, (row("FD", space.name, Estimate(moments.distance(real))),))

    def _main_of_statistics(self) -> Features:
        """The features that a file of statistics is of: those that are named, or Inception's."""
        return self._network(self.spaces[0] if self.spaces else "inception")

    def _statistics(self, path: Path) -> Moments:
        known = read_statistics(path, self._main_of_statistics())
        return Moments.of(known.mean, known.covariance, known.samples or _UNKNOWN)

    def gallery(
        self, samples: Dataset | Float[Tensor, "batch channels *space"], labels: Tensor | None = None
    ) -> Gallery:
        """What a page shows: samples, the first ones beside the nearest real pictures, and how densely those lie."""
        data = samples if isinstance(samples, Dataset) else _dataset(samples, "samples")
        samples = data.batch(range(len(data)))
        if not isinstance(self.real, Dataset):
            return Gallery(samples, labels=labels)
        space = self._plan(data)[0][0]
        real = self._part(self.real, space.name)
        vectors, known = extract(space, data, progress=self.progress), self._of(self.real, space)
        parts = [torch.cdist(part, known).topk(min(_DENSITY, len(known)), largest=False) for part in vectors.split(256)]
        distances, nearest = (torch.cat([part[i] for part in parts]) for i in range(2))
        beside = real.batch(nearest[:_SHOWN, 0].numpy())
        names = next((column.names for column in self.real.columns.values() if column.names), None)
        # k real pictures lie within the distance of the k-th of them
        return Gallery(samples, beside, distances[:_SHOWN, 0], 1.0 / distances[:, -1].clamp(min=1e-9), labels, names)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of real pictures of each set."""
        if not isinstance(self.real, Dataset):
            count = self.real.samples if isinstance(self.real, Moments) else _UNKNOWN
            return {"real": count} if count < _UNKNOWN else {}
        if self.heldout is None:
            return {"real": len(self.real)}
        return {"training": len(self.real), "held-out": len(self.heldout)}

    @property
    def _reference_name(self) -> str:
        return self.against if self.heldout is not None else "real"

    def _require_shape(self, data: Dataset) -> None:
        if isinstance(self.real, Dataset) and data.shape != self.real.shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (data.shape, self.real.shape))
            raise InputError(
                f"{data.name} are {theirs} and the real pictures {self.real.name} {ours}; bring both to one size and "
                "number of channels, such as with --size 32 and --channels rgb."
            )

    def _plan(self, data: Dataset) -> list[tuple[Features, list[str]]]:
        """Each space with its measures."""
        named = [name for name in self.measures if name in MEASURES]
        usual = [name for name, measure in MEASURES.items() if measure.usual] if not self.measures else named
        if self.spaces:
            return [(self._network(space), usual) for space in self.spaces]
        main = self._network(
            default_features(data.shape, isinstance(self.real, Dataset) and bool(classes_of(self.real)))
        )
        if "neighbours" not in usual or main.name == "pixels":
            return [(main, usual)]
        return [(main, usual), (self._network("pixels"), ["neighbours"])]

    def _network(self, space: Any) -> Features:
        if space not in self._networks:
            options: dict[str, Any] = {"device": self.device}
            if space == "classifier":
                options["train"] = self._classified()
            elif space != "pixels":
                options |= {"weights": self.weights, "resize": self.resize}
            network = features(space, **options)
            if same := sum(network.name == other.name.partition(" #")[0] for other in self._networks.values()):
                network = replace(network, name=f"{network.name} #{same + 1}")
            self._networks[space] = network
        return self._networks[space]

    def _classified(self) -> tuple[Tensor, Tensor]:
        if not isinstance(self.real, Dataset) or not classes_of(self.real):
            raise InputError("The features of a classifier need the classes of the real pictures, and they have none.")
        part = self._part(self.real, "classifier")
        return part.batch(range(len(part))), labels_of(part)

    def _part(self, data: Dataset, space: str) -> Dataset:
        """The pictures of a real set that are looked at: if there are many, a random part, the same for every model."""
        most = max(2, MOST_VALUES // math.prod(data.shape))
        if self.most and space not in ("pixels", "classifier"):
            most = min(most, self.most)
        if len(data) <= most:
            return data
        return data.subset(np.sort(random.permutation(0, "evaluation", 0, len(data))[:most]))

    def _of(self, data: Dataset, space: Features) -> Tensor:
        """The features of a real set, computed once."""
        key = "training" if data is self.real else "heldout", space
        if key not in self._vectors:
            part = self._part(data, space.name)
            self._vectors[key] = cached_features(space, part, folder=self.cache, progress=self.progress)
        return self._vectors[key]

    def _in_space(
        self, space: Features, names: Sequence[str], data: Dataset, labels: Tensor | None, notes: list[str]
    ) -> list[Row]:
        sets = self._sets(space, extract(space, data, progress=self.progress), labels)
        rows: list[Row] = []
        for name in names:
            measure = MEASURES[name]
            try:
                why = self._unfit(name, measure, space, sets)
                values = quietly(measure, sets) if why is None else ()
            except InputError as error:
                values, why = (), f"{name} is left out: {error}"
            if why is not None and name in self.measures:
                raise InputError(why)
            # nobody misses the extrapolation of a few samples
            notes += [why] if why and name != "fd-infinity" else []
            floors = self._floor(name, measure, space, sets) if values else {}
            for title, value, better in values:
                note = note_of(title, sets)
                rows.append(row(title, space.name, value, floors.get(title), better=better, note=note))
        if any(entry.floor is not None for entry in rows):
            notes += self._unequal(space, sets)
        return rows

    def _floor_counts(self, sets: Vectors) -> tuple[int, int]:
        """How many real pictures stand for the samples of a floor, and against how many others."""
        assert isinstance(sets.reference, Tensor) and sets.train is not None
        if sets.heldout is None:
            count = min(len(sets.samples), len(sets.train) // 2)
            return count, len(sets.train) - count
        other = sets.heldout if self.against == "training" else sets.train
        return min(len(sets.samples), len(other)), len(sets.reference)

    def _unequal(self, space: Features, sets: Vectors) -> list[str]:
        """What must be known of a floor at other counts, and of a part of the real pictures."""
        notes: list[str] = []
        assert isinstance(sets.reference, Tensor)
        (count, reference), (wanted, whole) = self._floor_counts(sets), (len(sets.samples), len(sets.reference))
        if count < wanted or reference < 0.9 * whole:
            notes.append(
                f"{space.name}: real pictures are {count:,} against {reference:,}, samples {wanted:,} against "
                f"{whole:,}; of fewer pictures FD is higher, and so their ratio too low."
            )
        for data, part in ((self.real, sets.train), (self.heldout, sets.heldout)):
            if isinstance(data, Dataset) and part is not None and len(part) < len(data):
                notes.append(f"{space.name}: of {len(data):,} pictures of {data.name} a random {len(part):,} (most).")
        return notes

    def _sets(self, space: Features, vectors: Tensor, labels: Tensor | None) -> Vectors:
        logits = space.logits_of(vectors)
        if not isinstance(self.real, Dataset):
            assert isinstance(self.real, Moments)
            return Vectors(vectors, self.real, labels=labels, logits=logits)
        train = self._of(self.real, space)
        heldout = None if self.heldout is None else self._of(self.heldout, space)
        reference = train if heldout is None or self.against == "training" else heldout
        return Vectors(vectors, reference, train, heldout, labels, logits)

    def _unfit(self, name: str, measure: Measure, space: Features, sets: Vectors) -> str | None:
        """Why a measure can't be had, empty where nobody misses it; None if it can."""
        if measure.only is not None and not space.name.startswith(measure.only):
            return f"{name} is defined for the features {measure.only}; got {space.name}." if self.measures else ""
        if isinstance(sets.reference, Moments) and not name.startswith("fd"):
            return "A file of statistics holds a mean and a covariance only, for Frechet distances."
        if "labels" in measure.needs and sets.labels is None:
            return f"{name} needs the classes of the samples." if self.measures else ""
        if "logits" in measure.needs and sets.logits is None:
            return f"{name} needs a network with classes; {space.name} has none." if self.measures else ""
        if (count := len(sets.samples)) < measure.least:
            return f"{name} needs at least {measure.least} samples, and there are {count}."
        return None

    def _floor(self, name: str, measure: Measure, space: Features, sets: Vectors) -> dict[str, Estimate]:
        """The same of as many real pictures as there are samples."""
        if not measure.floor or not isinstance(self.real, Dataset) or sets.train is None:
            return {}
        key = space, name, len(sets.samples)
        if key not in self._floors:
            data, other = self.real, sets.train
            if self.heldout is not None and sets.heldout is not None and (measure.alone or self.against == "training"):
                data, other = self.heldout, sets.heldout
            order = torch.from_numpy(random.permutation(0, "floor", 0, len(other)))
            count, _ = self._floor_counts(sets)
            reference = other[order[count:]] if sets.heldout is None else sets.reference
            real = other[order[:count]]
            part = self._part(data, space.name)
            labels = labels_of(part)[order[:count]] if classes_of(part) else None
            logits = space.logits_of(real)
            stand_in = Vectors(real, reference, labels=labels, logits=logits)
            try:
                fits = self._unfit(name, measure, space, stand_in) is None
                values = quietly(measure, stand_in) if fits else ()
            except InputError:
                # too few real pictures
                values = ()
            self._floors[key] = {title: value for title, value, _ in values}
        return self._floors[key]

    def _accuracy(self, data: Dataset, labels: Tensor) -> list[Row]:
        """The share of samples that a classifier of the training pictures puts in their class."""
        if not isinstance(self.real, Dataset) or not classes_of(self.real):
            return []
        network = self._network("classifier")
        assert network.classes is not None
        classes = network.classes.cpu()

        def measured(pictures: Dataset, wanted: Tensor) -> Estimate:
            logits = network.logits_of(extract(network, pictures, progress=self.progress))
            assert logits is not None
            return label_accuracy(classes[logits.argmax(dim=1)], wanted)

        floor = None
        if self.heldout is not None and classes_of(self.heldout):
            part = self._part(self.heldout, "classifier")
            floor = measured(part, labels_of(part))
        asked = labels >= 0
        chosen = data if bool(asked.all()) else data.subset(torch.nonzero(asked).flatten().numpy())
        return [row("accuracy", None, measured(chosen, labels[asked]), floor, better="higher")]


def _dataset(samples: Tensor, name: str) -> Dataset:
    """Samples as pictures: clipped to [-1, 1], as they are when saved."""
    check_images(name, samples)
    return Dataset(samples.detach().float().clamp(-1.0, 1.0).cpu().numpy(), {}, name)
