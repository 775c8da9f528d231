"""Settings of sampling and evaluation."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sfumato.config.base import Component
from sfumato.config.grids import BestGrid, FittedGrid, GridConfig, UniformGrid
from sfumato.config.guidance import GuidanceConfig
from sfumato.config.solvers import (
    Adaptive,
    Best,
    Deis,
    DpmSolver,
    DpmSolver2,
    DpmSolver2S,
    DpmSolver3S,
    Euler,
    Heun,
    Langevin,
    Lms,
    Multistep,
    SaSolver,
    SdeDpmSolver,
    UniPc,
)
from sfumato.errors import InputError, SfumatoWarning

if TYPE_CHECKING:
    from sfumato.diffusion.denoiser import Denoise, Denoiser
    from sfumato.diffusion.level import Level
    from sfumato.diffusion.variance import ReverseVariance
    from sfumato.sampling.fitted import Fitted
    from sfumato.sampling.sample import Step

Variance = Literal["small", "large", "learned", "analytic"]
"""A reverse variance by name."""


def reverse_variance(
    kind: Variance, denoiser: Denoiser, levels: Level, fitted: Fitted, *, decoder: bool = False
) -> ReverseVariance:
    """The reverse variance of that name on a grid.

    Args:
        kind: its name.
        denoiser: what it belongs to.
        levels: the grid in use.
        fitted: what was fitted to the denoiser: the analytic variance needs its Gamma.
        decoder: whether the step to the data has a variance too, as in a bound; samplers add no noise there.

    Raises:
        InputError: if the denoiser did not learn the variance, or its Gamma was not estimated.
    """
    from sfumato.diffusion import variance
    from sfumato.diffusion.analytic import analytic

    if kind == "learned":
        if not denoiser.learned_variance:
            raise InputError(
                "This model did not learn its reverse variance; train it with model.learned_variance, or take small, "
                "large or analytic."
            )
        return partial(variance.learned, lowest=variance.floor(levels) if decoder else None)
    if kind == "analytic":
        # an average over few images may tell of no variance where there is almost no data left
        gamma = fitted.require_gamma().monotone()
        return analytic(gamma, to_data=True) if decoder else analytic(gamma, last=list(levels)[-2])
    return variance.small if kind == "small" else variance.large


class Ancestral(Component):
    """The reverse process of DDPM."""

    kind: Literal["ancestral"] = "ancestral"
    variance: Variance = Field(
        default="small",
        description="The reverse variance: beta tilde, beta, what the network learned, or the optimum (sfumato tune).",
    )

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.ancestral import ancestral

        return partial(ancestral, variance=reverse_variance(self.variance, denoiser, levels, fitted))


class Ddim(Component):
    """DDIM."""

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(default=0.0, ge=0, le=1, description="Noise: 0 is deterministic, 1 is ancestral.")
    variance: Variance = Field(
        default="small",
        description="What is known of the data's variance adds to the noise: nothing (small), or as for ancestral.",
    )

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.ddim import ddim

        return partial(ddim, eta=self.eta, variance=reverse_variance(self.variance, denoiser, levels, fitted))


class FittedSampler(Component):
    """The weights that were fitted together with the grid, one evaluation per step; needs sfumato tune --steps."""

    kind: Literal["fitted"] = "fitted"

    def build(self, denoiser: Denoiser, levels: Level, fitted: Fitted) -> Step:
        from sfumato.sampling.fitted_solver import follow

        return partial(follow, plan=fitted.require_plan(len(levels) - 1))


SamplerConfig = Annotated[
    Best
    | Ancestral
    | Ddim
    | Euler
    | Heun
    | DpmSolver
    | DpmSolver2
    | DpmSolver2S
    | DpmSolver3S
    | UniPc
    | Lms
    | Deis
    | Multistep
    | SdeDpmSolver
    | SaSolver
    | Langevin
    | Adaptive
    | FittedSampler,
    Field(discriminator="kind"),
]


class SamplingConfig(Component):
    """How images are drawn from the model."""

    sampler: SamplerConfig = Best()
    grid: GridConfig = BestGrid()
    steps: int = Field(default=20, ge=1, description="Sampling steps.")
    classes: Literal["frequency", "uniform"] = Field(
        default="frequency",
        description="Which classes a model with labels draws: as often as in the training data, or each alike.",
    )
    clip: bool | None = Field(
        default=None,
        description="Hold estimates of the data in [-1, 1]; by default where the network predicts the noise or the "
        "score, whose errors are large ones of the data in much noise.",
    )
    guidance: GuidanceConfig = GuidanceConfig()
    batch_size: int = Field(default=250, ge=1, description="Images that are computed at once.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="bf16 computes the network in bfloat16; auto does for networks that are not tiny, where the "
        "processor has it.",
    )
    compile: bool = Field(
        default=False, description="Compile the network first, which takes a minute or so; needs a compiler."
    )

    @property
    def needs_gamma(self) -> bool:
        """Whether it needs what is only known once the training is over: the Gamma of Analytic-DPM."""
        return self.grid.kind == "optimal" or getattr(self.sampler, "variance", "small") == "analytic"

    @property
    def needs_plan(self) -> bool:
        """Whether it needs a grid that is fitted once the training is over."""
        return self.grid.kind == "fitted" or self.sampler.kind == "fitted"

    @model_validator(mode="after")
    def _fitted_together(self) -> SamplingConfig:
        if self.sampler.kind == "fitted" and self.grid.kind != "fitted":
            raise ValueError("sampler.kind fitted takes the steps of its own grid; choose grid.kind fitted with it")
        return self

    def tuned(self, fitted: Fitted) -> SamplingConfig:
        """The same with what was fitted to the model for this many steps and this guidance, if best is asked for."""
        best = self.sampler.kind == "best" and self.grid.kind == "best"
        if best and self.steps in fitted.plans and fitted.plans[self.steps].guidance == self.guidance.scale:
            return self.model_copy(update={"sampler": FittedSampler(), "grid": FittedGrid()})
        return self

    def stepwise(self, fitted: Fitted) -> SamplingConfig:
        """The same for what does not walk the grid once from its beginning to its end, as fitted weights have to."""
        found = self.tuned(fitted)
        return found.model_copy(update={"sampler": Best()}) if found.sampler.kind == "fitted" else found

    def untuned(self) -> SamplingConfig:
        """The nearest sampling that needs nothing fitted, for previews during the training."""
        if not self.needs_gamma and not self.needs_plan:
            return self
        plain = Best() if isinstance(self.sampler, FittedSampler) else self.sampler
        if isinstance(plain, Ancestral | Ddim):
            plain = plain.model_copy(update={"variance": "small"})
        grid = self.grid
        if grid.kind in ("optimal", "fitted"):
            grid = UniformGrid() if grid.kind == "optimal" else BestGrid()
        return self.model_copy(update={"sampler": plain, "grid": grid})

    def wrap(self, denoiser: Denoiser, guided: Denoise | None = None) -> Denoise:
        """The denoiser as it is sampled from, with its estimates held in the range of the data where they are to be.

        Args:
            denoiser: what the configuration speaks of.
            guided: the same with its guidance; by default without.
        """
        from sfumato.diffusion import parameterization
        from sfumato.sampling.guidance import Clipped, Thresholded

        of_noise = denoiser.parameterization in (parameterization.eps, parameterization.score)
        inner: Denoise = denoiser if guided is None else guided
        if self.guidance.threshold is not None:
            inner = Thresholded(inner, self.guidance.threshold)
        elif self.clip or (self.clip is None and of_noise):
            inner = Clipped(inner)
        return inner

    def build(self, denoiser: Denoiser, fitted: Fitted, weak: Denoise | None = None) -> tuple[Denoise, Level, Step]:
        """The denoiser as it is sampled from, the grid and the step, given what was fitted to it.

        Args:
            denoiser: a trained denoiser.
            fitted: what was fitted to it.
            weak: the denoiser of ``guidance.weak_run``, where that is given.

        Raises:
            InputError: if they do not fit, or something was not fitted.
        """
        if self.sampler.kind == "fitted" and fitted.require_plan(self.steps).guidance != self.guidance.scale:
            warnings.warn(
                f"The fitted sampler was fitted with guidance.scale {fitted.plans[self.steps].guidance:g}, and is used "
                f"with {self.guidance.scale:g}.",
                SfumatoWarning,
                stacklevel=3,
            )
        levels = self.grid.build(denoiser, self.steps, fitted)
        guided = self.guidance.build(denoiser, weak)
        return self.wrap(denoiser, guided), levels, self.sampler.build(denoiser, levels, fitted)


class EvaluationConfig(Component):
    """The evaluation at the end of the training."""

    samples: int = Field(default=1000, ge=0, description="Images that are drawn for it; 0 for no evaluation.")

    @field_validator("samples")
    @classmethod
    def _enough(cls, samples: int) -> int:
        if samples == 1:
            raise ValueError("evaluation.samples is 1; an evaluation needs at least 2, or 0 for none")
        return samples

    seed: int = Field(default=1, ge=0, description="The seed of those images.")
