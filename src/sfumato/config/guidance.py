"""Settings of guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from sfumato.config.base import Component
from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.diffusion.denoiser import Denoise


class GuidanceConfig(Component):
    """Guidance: away from the null condition or from a weaker model, towards what the label asks for."""

    scale: float = Field(
        default=1.0, ge=0, description="The guidance scale: 1 is none, 0 the null condition or the weaker model alone."
    )
    rescale: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="How far to bring the contrast of guided estimates back to that without guidance, 0 to 1.",
    )
    interval: tuple[float, float] | None = Field(
        default=None, description="Guide between these two noise levels only, sigma / alpha (default: everywhere)."
    )
    weak_run: Path | None = Field(
        default=None, description="Autoguidance: a run of the same task that was trained less, to be guided away from."
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Dynamic thresholding: the fraction of the pixels of an estimate that are not cut, such as 0.995.",
    )

    @model_validator(mode="after")
    def _together(self) -> GuidanceConfig:
        if self.scale == 1.0:
            for name in ("rescale", "interval", "weak_run"):
                if getattr(self, name):
                    raise ValueError(f"guidance.{name} means nothing at guidance.scale 1, which is no guidance")
        if self.interval is not None and not 0.0 <= self.interval[0] < self.interval[1]:
            raise ValueError(
                f"guidance.interval is {self.interval[0]:g} to {self.interval[1]:g}; it needs 0 <= low < high, "
                "in sigma / alpha"
            )
        if self.weak_run is not None and self.rescale > 0.0:
            raise ValueError("guidance.rescale belongs to guidance by labels; leave it or guidance.weak_run out")
        return self

    @property
    def by_label(self) -> bool:
        """Whether it needs a condition, and a model that knows the null condition."""
        return self.scale != 1.0 and self.weak_run is None

    def require(self, classes: int, label_dropout: float) -> None:
        """Check that a model can be guided so.

        Args:
            classes: how many classes it knows.
            label_dropout: the fraction of samples that it was trained on without label.

        Raises:
            InputError: if there is nothing to guide by.
        """
        if not self.by_label:
            return
        if classes == 0:
            raise InputError(
                f"guidance.scale is {self.scale:g}, but this model was trained without labels, so there is no "
                "condition to guide by; leave it out, or guide by a weaker model with guidance.weak_run."
            )
        if label_dropout == 0.0:
            raise InputError(
                f"guidance.scale is {self.scale:g}, but this model was trained with objective.label_dropout 0 and "
                "knows no null condition to guide away from; train with --objective.label-dropout 0.1, or guide by a "
                "weaker model with guidance.weak_run."
            )

    def build(self, denoiser: Denoise, weak: Denoise | None = None) -> Denoise:
        """The guided denoiser.

        Args:
            denoiser: what is guided.
            weak: the denoiser of ``weak_run``, where that is given.

        Raises:
            InputError: if there is a weak run whose denoiser is not given.
        """
        from sfumato.sampling.guidance import EVERYWHERE, Autoguided, ClassifierFree, label_alone

        if self.scale == 1.0:
            return denoiser
        interval = self.interval or EVERYWHERE
        if self.weak_run is None:
            return ClassifierFree(denoiser, self.scale, self.rescale, interval, label_alone)
        if weak is None:
            raise InputError(f"Autoguidance needs the denoiser of the weaker run, {self.weak_run}.")
        return Autoguided(denoiser, weak, self.scale, interval)
