"""How good samples are, and whether they are copies: every number stands next to the real-vs-real reference."""

from sfumato.metrics.estimate import Estimate
from sfumato.metrics.features import ClassifierFeatures, train_classifier
from sfumato.metrics.frechet import Moments, frechet, frechet_distance, frechet_error, frechet_infinity
from sfumato.metrics.inception_score import inception_score
from sfumato.metrics.kernel import cmmd, kid, kid_subsets
from sfumato.metrics.neighbours import (
    PRDC,
    copies,
    density_coverage,
    improved_precision_recall,
    nearest_distances,
    nearest_neighbour_ratio,
    prdc,
)
from sfumato.metrics.report import Evaluation, SpaceEvaluation, evaluate, table

__all__ = ["ClassifierFeatures", "Estimate", "Evaluation", "Moments", "SpaceEvaluation", "evaluate"]
__all__ += [
    "cmmd",
    "frechet",
    "frechet_distance",
    "frechet_error",
    "frechet_infinity",
    "inception_score",
    "kid",
    "kid_subsets",
]
__all__ += ["PRDC", "copies", "density_coverage", "improved_precision_recall", "prdc"]
__all__ += ["nearest_distances", "nearest_neighbour_ratio", "table", "train_classifier"]
