"""How good samples are, and whether they are copies: every number stands next to the real-vs-real reference."""

from sfumato.metrics.cache import cached_features, cached_moments, read_statistics, write_statistics
from sfumato.metrics.classifier import ClassifierFeatures, train_classifier
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.features import Features, default_features, extract, features
from sfumato.metrics.frechet import Moments, frechet, frechet_distance, frechet_error, frechet_infinity
from sfumato.metrics.kernel import cmmd, kid, kid_subsets
from sfumato.metrics.neighbours import nearest_distances, nearest_neighbour_ratio
from sfumato.metrics.sets import Evaluation, SpaceEvaluation, evaluate, table

__all__ = ["ClassifierFeatures", "Estimate", "Evaluation", "Features", "Moments", "SpaceEvaluation", "evaluate"]
__all__ += ["default_features", "extract", "features", "frechet", "frechet_distance", "frechet_error"]
__all__ += ["frechet_infinity", "nearest_distances", "nearest_neighbour_ratio", "table", "train_classifier"]
__all__ += ["cmmd", "kid", "kid_subsets"]
__all__ += ["cached_features", "cached_moments", "read_statistics", "write_statistics"]
