"""How good samples are, and whether they are copies: every number stands beside what real pictures reach."""

from sfumato.metrics.agreement import AgreementReport, agreement, parsed
from sfumato.metrics.cache import cached_features, read_statistics, write_statistics
from sfumato.metrics.classes import diversity, label_accuracy
from sfumato.metrics.classifier import ClassifierFeatures, train_classifier
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.evaluator import Evaluator
from sfumato.metrics.features import Features, default_features, extract, features
from sfumato.metrics.frechet import Moments, frechet, frechet_distance, frechet_infinity
from sfumato.metrics.inception_score import inception_score
from sfumato.metrics.kernel import cmmd, kid, kid_subsets
from sfumato.metrics.neighbours import (
    PRDC,
    copied_share,
    nearest_distances,
    neighbour_ratio,
    prdc,
)
from sfumato.metrics.page import Gallery, write_page
from sfumato.metrics.pairs import colour_error, consistency, ms_ssim, psnr, ssim
from sfumato.metrics.report import Report, Row, table
from sfumato.metrics.saturation import saturation

__all__ = ["ClassifierFeatures", "Estimate", "Evaluator", "Features", "Gallery", "Moments", "Report", "Row", "cmmd"]
__all__ += ["colour_error", "consistency", "default_features", "diversity", "extract", "features", "frechet"]
__all__ += ["frechet_distance", "frechet_infinity", "inception_score", "kid", "kid_subsets"]
__all__ += ["label_accuracy", "ms_ssim", "nearest_distances", "neighbour_ratio", "psnr", "ssim", "table"]
__all__ += ["PRDC", "copied_share", "prdc", "train_classifier", "write_page"]
__all__ += ["cached_features", "read_statistics", "write_statistics"]
__all__ += ["AgreementReport", "agreement", "parsed", "saturation"]
