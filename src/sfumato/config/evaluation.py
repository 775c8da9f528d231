"""The settings of an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from sfumato.config.component import Component
from sfumato.errors import nearest

FEATURES = ("pixels", "classifier", "efficientnet-lite0", "inception", "dinov2", "clip")
"""The features of an evaluation, by name."""

MEASURES = (
    *("fd", "fd-infinity", "kid", "kid-subsets", "prdc", "neighbours", "is", "diversity", "cmmd"),
    *("accuracy", "pairs", "bits", "agreement", "saturation"),
)
"""The measures of an evaluation, by name."""

RANKING = (
    *("FD", "FID", "FD∞", "FID∞", "KID", "KID 100 x 1000", "CMMD", "inception score", "diversity", "accuracy"),
    *("precision k=3", "recall k=3", "density k=5", "coverage k=5", "bits/dim", "agreement"),
    *("PSNR", "SSIM", "MS-SSIM", "colour error", "consistency PSNR", "consistency MSE x 1e5"),
)
"""The rows of an evaluation by which weights can be the best: all but those that tell copies."""


class EvaluationConfig(Component):
    """The evaluation at the end of the training."""

    samples: int = Field(
        default=1000, ge=0, le=10**9, description="Images that are sampled for it; 0 for no evaluation."
    )
    captions: int = Field(
        default=100,
        ge=0,
        le=10**6,
        description="Captions of each kind (seen, held-out pair, held-out wording) with which samples are to agree, of "
        "a model with captions of shapes; 0 for none.",
    )
    seed: int = Field(default=1, ge=0, le=2**63 - 1, description="The seed of those images.")
    every: int | None = Field(default=None, ge=1, description="Also evaluate while training, after so many steps each.")
    against: Literal["heldout", "training"] = Field(
        default="heldout", description="The real images that samples are compared with."
    )
    features: tuple[str, ...] = Field(
        default=(), description=f"In which features: {', '.join(FEATURES)} (default: what suits the data)."
    )
    measures: tuple[str, ...] = Field(
        default=(), description=f"Which measures: {', '.join(MEASURES)} (default: what suits the data)."
    )
    best: str | None = Field(
        default=None, description="Keep the weights that are best by this measure, such as FD, in the folder best."
    )

    @field_validator("best")
    @classmethod
    def _known(cls, best: str | None) -> str | None:
        if best is not None and best.partition(" (")[0] not in RANKING:
            raise ValueError(f"evaluation.best is {best!r}{nearest(best, RANKING)}")
        return best

    @model_validator(mode="after")
    def _named(self) -> EvaluationConfig:
        for field, names, known in (("features", self.features, FEATURES), ("measures", self.measures, MEASURES)):
            for name in names:
                if name not in known:
                    raise ValueError(f"evaluation.{field} has {name!r}{nearest(name, known)}")
        return self

    @field_validator("samples")
    @classmethod
    def _enough(cls, samples: int) -> int:
        if samples == 1:
            raise ValueError("evaluation.samples is 1; an evaluation needs at least 2, or 0 for none")
        return samples
