"""How good samples are, and whether they are copies: every number stands beside what real images reach."""

from sfumato.metrics.features import ClassifierFeatures, Extractor, Pixels, pixels, train_classifier
from sfumato.metrics.frechet import Gaussian, frechet_distance
from sfumato.metrics.neighbours import nearest_distances, nearest_neighbour_ratio
from sfumato.metrics.report import Evaluation, SpaceEvaluation, evaluate, table

__all__ = [
    "ClassifierFeatures",
    "Evaluation",
    "Extractor",
    "Gaussian",
    "Pixels",
    "SpaceEvaluation",
    "evaluate",
    "frechet_distance",
    "nearest_distances",
    "nearest_neighbour_ratio",
    "pixels",
    "table",
    "train_classifier",
]
