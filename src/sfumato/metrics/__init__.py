"""How good samples are, and whether they are copies: every number stands next to the real-vs-real reference."""

from sfumato.metrics.classifier import ClassifierFeatures, train_classifier
from sfumato.metrics.distances import Moments, frechet_distance, nearest_distances, nearest_neighbour_ratio
from sfumato.metrics.features import Features, default_features, extract, features
from sfumato.metrics.sets import Evaluation, SpaceEvaluation, evaluate, table

__all__ = ["ClassifierFeatures", "Evaluation", "Features", "Moments", "SpaceEvaluation", "default_features", "evaluate"]
__all__ += ["extract", "features", "frechet_distance"]
__all__ += ["nearest_distances", "nearest_neighbour_ratio", "table", "train_classifier"]
