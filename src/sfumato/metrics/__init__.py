"""How good samples are, and whether they are copies: every number stands beside what real images reach."""

from sfumato.metrics.evaluation import Evaluation, SpaceEvaluation, evaluate, table
from sfumato.metrics.features import ClassifierFeatures, Extractor, Pixels, pixels, train_classifier
from sfumato.metrics.frechet import Gaussian, frechet_distance
from sfumato.metrics.neighbours import nearest_distances, nearest_neighbour_ratio

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
