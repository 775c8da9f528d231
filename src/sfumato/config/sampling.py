"""The settings of sampling, and what is built from them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from sfumato.config.component import Component, Lazy, Slot, component, slot
from sfumato.errors import InputError, SfumatoWarning

if TYPE_CHECKING:
    from sfumato.diffusion.denoiser import Denoise, Denoiser
    from sfumato.diffusion.level import Level
    from sfumato.diffusion.variance import ReverseVariance
    from sfumato.sampling.fitted_solver import Fitted
    from sfumato.sampling.sample import Step


Variance = Literal["small", "large", "learned", "analytic"]
"""A reverse variance by name."""


def reverse_variance(
    kind: str, denoiser: Denoiser, levels: Level, fitted: Fitted, *, decoder: bool = False
) -> ReverseVariance:
    """The reverse variance of that name (small, large, learned or analytic) on a grid.

    Args:
        kind: its name.
        denoiser: what it belongs to.
        levels: the grid in use.
        fitted: what was fitted to the denoiser: the analytic variance needs its Gamma.
        decoder: whether the step to the data has a variance too, as in a bound; samplers add no noise there.
    """
    from sfumato.diffusion import variance
    from sfumato.diffusion.variance import analytic

    if kind == "learned":
        if not denoiser.learned_variance:
            raise InputError(
                "This model did not learn its reverse variance; train it with model.learned_variance, or take small, "
                "large or analytic."
            )
        return partial(variance.learned, lowest=variance.floor(levels) if decoder else None)
    if kind == "analytic":
        # an estimate from few images may claim no variance where almost no data are left
        gamma = fitted.require_gamma().monotone()
        return analytic(gamma, to_data=True) if decoder else analytic(gamma, last=levels[-2])
    return variance.small if kind == "small" else variance.large


# the spread of samples of normal data, in units of theirs, above which the large variance is warned of
_MOST_SPREAD = 1.25


class GuidanceConfig(Component):
    """Guidance: away from the null condition or from a weaker model, towards the condition; or by a classifier."""

    scale: float = Field(
        default=1.0,
        ge=0,
        description="The guidance scale: 1 is none, 0 the null condition or the weaker model alone; by a classifier, 0 "
        "is none.",
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
    classifier: Path | None = Field(
        default=None,
        description="Classifier guidance: the run of a noisy classifier (train --task classify), whose gradient guides "
        "to a class.",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Dynamic thresholding: the fraction of the pixels of an estimate that are not clipped, such as "
        "0.995.",
    )
    cap: float | None = Field(
        default=None,
        ge=1,
        description="Dynamic thresholding: the largest value that counts as 1 then, such as 1.5, which keeps contrast; "
        "at 1 it clips (default: any).",
    )
    consistent: bool | None = Field(
        default=None,
        description="Super-resolution: project every estimate onto the images that, downscaled, are exactly the "
        "low-resolution image; by default where no noise is added to that and its size is that of the training.",
    )

    @model_validator(mode="after")
    def _together(self) -> GuidanceConfig:
        if self.classifier is not None:
            for name in ("rescale", "weak_run"):
                if getattr(self, name):
                    raise ValueError(
                        f"guidance.{name} belongs to another guidance than that by a classifier; leave it or "
                        "guidance.classifier out"
                    )
        elif self.scale == 1.0:
            for name in ("rescale", "interval", "weak_run"):
                if getattr(self, name):
                    raise ValueError(f"guidance.{name} means nothing at guidance.scale 1, which is no guidance")
        if self.cap is not None and self.threshold is None:
            raise ValueError("guidance.cap is that of dynamic thresholding; give guidance.threshold too, such as 0.995")
        if self.weak_run is not None and self.rescale > 0.0:
            raise ValueError("guidance.rescale belongs to guidance by a condition; leave it or guidance.weak_run out")
        return self

    @property
    def by_condition(self) -> bool:
        """Whether it needs a condition, and a model that knows the null condition."""
        return self.scale != 1.0 and self.weak_run is None and self.classifier is None

    def require(self, conditions: Mapping[str, Any]) -> None:
        """Check that a model with these conditions can be guided so."""
        if not self.by_condition:
            return
        start = f"guidance.scale is {self.scale:g}, but this model"
        weaker = "or guide by a weaker model with guidance.weak_run, or by a classifier with guidance.classifier"
        if not conditions:
            raise InputError(f"{start} has no condition to guide by; leave it out, {weaker}.")
        if all(condition.drop == 0.0 for condition in conditions.values()):
            name = next(iter(conditions))
            raise InputError(
                f"{start} was trained with conditions.{name}.drop 0 and knows no null condition to guide away from; "
                f"train with --conditions.{name}.drop 0.1, {weaker}."
            )

    def constrain(self, denoiser: Denoise, conditions: Mapping[str, Any], input_noise: float | None) -> Denoise:
        """The denoiser with its estimates consistent with their low resolution, where that is asked for."""
        if self.consistent is False:
            return denoiser
        from sfumato.conditioning.low_resolution import augmented
        from sfumato.conditioning.resampling import consistent

        return consistent(denoiser, augmented(conditions, input_noise), require=bool(self.consistent))

    def build(self, denoiser: Denoise, weak: Denoise | None, conditions: Mapping[str, Any]) -> Denoise:
        """The denoiser with its guidance by a condition or by a weaker model.

        Args:
            denoiser: what is guided.
            weak: the denoiser of ``weak_run``, where that is given.
            conditions: the conditions of the model, by name.
        """
        from sfumato.conditioning.base import nulling
        from sfumato.sampling.guidance import EVERYWHERE, Autoguided, ClassifierFree

        if self.scale == 1.0 or self.classifier is not None:
            return denoiser
        interval = self.interval or EVERYWHERE
        if self.weak_run is None:
            return ClassifierFree(denoiser, self.scale, self.rescale, interval, nulling(conditions))
        if weak is None:
            raise InputError(f"Autoguidance needs the denoiser of the weaker run, {self.weak_run}.")
        return Autoguided(denoiser, weak, self.scale, interval)

    def by_classifier(self, denoiser: Denoise, classifier: Callable[..., Denoise] | None, step: Step) -> Denoise:
        """The denoiser that a classifier guides, where one is to: by the rule that belongs to the solver.

        Args:
            denoiser: what is guided, its estimates clipped where they are to be.
            classifier: the wrapper of ``classifier``: :class:`~sfumato.sampling.guidance.ClassifierGuided` of its run.
            step: the solver.
        """
        from sfumato.sampling.guidance import EVERYWHERE
        from sfumato.sampling.steps import ancestral

        if self.classifier is None:
            return denoiser
        if classifier is None:
            raise InputError(f"Classifier guidance needs the classifier of the run {self.classifier}.")
        rule = "mean" if getattr(step, "func", step) is ancestral else "eps"
        return classifier(denoiser, scale=self.scale, interval=self.interval or EVERYWHERE, rule=rule)


class SamplingConfig(Component):
    """How images are sampled from the model."""

    sampler: Annotated[Component, Slot("sampler")] = slot("sampler", "best")
    grid: Annotated[Component, Slot("grid")] = slot("grid", "best")
    steps: int = Field(default=20, ge=1, le=10**6, description="Sampling steps.")
    clip: bool | None = Field(
        default=None,
        description="Clip estimates of the data to [-1, 1]; by default where the network predicts the noise or the "
        "score, whose errors become large errors of the data at high noise.",
    )
    guidance: GuidanceConfig = Field(default_factory=GuidanceConfig)
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Scale of the noise in sampling, at the start and in each step: below 1, samples vary less and lie "
        "nearer to their mean.",
    )
    input_noise: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The level of the noise that is added to the low-resolution image (noise conditioning "
        "augmentation), from 0 to the highest of the training (default: conditions.NAME.level of the run).",
    )
    candidates: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="A prior's: how many embeddings it samples, of which it takes the one nearest to that of the "
        "caption.",
    )
    batch_size: int = Field(default=250, ge=1, le=2**31 - 1, description="Images that are computed at once.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="bf16 computes the network in bfloat16; auto does for networks that are not tiny, where the "
        "hardware has it.",
    )
    compile: bool = Field(
        default=False, description="Compile the network first, which takes a minute or so; needs a compiler."
    )

    @property
    def needs_gamma(self) -> bool:
        """Whether it needs the Gamma of Analytic-DPM, which is estimated after the training."""
        return self.grid.kind == "optimal" or getattr(self.sampler, "variance", "small") == "analytic"

    @property
    def needs_plan(self) -> bool:
        """Whether it needs a solver that is fitted after the training."""
        return self.grid.kind == "fitted" or self.sampler.kind == "fitted"

    @model_validator(mode="after")
    def _fitted_together(self) -> SamplingConfig:
        if self.sampler.kind == "fitted" and self.grid.kind != "fitted":
            raise ValueError("sampler.kind fitted takes the steps of its own grid; choose grid.kind fitted with it")
        return self

    def _with(self, **changes: str) -> SamplingConfig:
        return self.model_copy(update={slot: component(slot, kind)() for slot, kind in changes.items()})  # pyright: ignore[reportCallIssue]

    def tuned(self, fitted: Fitted) -> SamplingConfig:
        """The same with what was fitted to the model for this many steps and this guidance, if best is asked for."""
        best = self.sampler.kind == "best" and self.grid.kind == "best" and self.guidance.classifier is None
        if best and self.steps in fitted.solvers and fitted.solvers[self.steps].guidance == self.guidance.scale:
            return self._with(sampler="fitted", grid="fitted")
        return self

    def stepwise(self, fitted: Fitted) -> SamplingConfig:
        """The same for edits, which do not walk the grid once from end to end, as fitted weights require."""
        tuned = self.tuned(fitted)
        return tuned._with(sampler="best") if tuned.sampler.kind == "fitted" else tuned

    def untuned(self) -> SamplingConfig:
        """The nearest sampling that needs nothing fitted, for previews during the training."""
        plain = self
        if self.sampler.kind == "fitted":
            plain = plain._with(sampler="best")
        elif self.needs_gamma and hasattr(self.sampler, "variance"):
            plain = plain.model_copy(update={"sampler": self.sampler.model_copy(update={"variance": "small"})})
        grid = {"optimal": "uniform", "fitted": "best"}.get(self.grid.kind)
        return plain if grid is None else plain._with(grid=grid)

    def wrap(self, denoiser: Denoiser, guided: Denoise | None = None) -> Denoise:
        """The denoiser as it is sampled from, with its estimates clipped or thresholded where asked for.

        Args:
            denoiser: what the configuration speaks of.
            guided: the same with its guidance; by default without.
        """
        from sfumato.diffusion import parameterization
        from sfumato.sampling.guidance import Clipped, Thresholded

        of_noise = getattr(denoiser, "parameterization", None) in (parameterization.eps, parameterization.score)
        inner: Denoise = denoiser if guided is None else guided
        if self.guidance.threshold is not None:
            inner = Thresholded(inner, self.guidance.threshold, cap=self.guidance.cap or math.inf)
        elif self.clip or (self.clip is None and of_noise):
            inner = Clipped(inner)
        return inner

    def build(
        self,
        denoiser: Denoiser,
        fitted: Fitted,
        weak: Denoise | None = None,
        conditions: Mapping[str, Any] | None = None,
        *,
        classifier: Callable[..., Denoise] | None = None,
        levels: Level | None = None,
        step: Step | None = None,
    ) -> tuple[Denoise, Level, Step]:
        """The denoiser as it is sampled from, the grid and the step.

        Args:
            denoiser: a trained denoiser.
            fitted: what was fitted to it.
            weak: the denoiser of ``guidance.weak_run``, where that is given.
            conditions: the conditions of the model, by name.
            classifier: what guides a denoiser by ``guidance.classifier``, where that is given.
            levels: a grid in place of one of the configuration.
            step: a solver in place of one of the configuration.
        """
        if step is None and levels is not None and self.sampler.kind == "fitted":
            raise InputError("The fitted sampler takes the steps of its own grid; name another solver for this one.")
        if (
            step is None
            and self.sampler.kind == "fitted"
            and fitted.require_solver(self.steps).guidance != self.guidance.scale
        ):
            warnings.warn(
                f"The fitted sampler was fitted with guidance.scale {fitted.solvers[self.steps].guidance:g}, but "
                f"{self.guidance.scale:g} is in use.",
                SfumatoWarning,
                stacklevel=3,
            )
        context: dict[str, Any] = {
            "denoiser": denoiser,
            "schedule": denoiser.schedule,
            "data_std": denoiser.data_std,
            "steps": self.steps if levels is None else len(levels) - 1,
            "gamma": Lazy(fitted.require_gamma),
            "plan": Lazy(lambda: fitted.require_solver(self.steps)),
        }
        grid: Level = self.grid.build(**context) if levels is None else levels
        if not hasattr(grid, "log_snr"):
            raise InputError(
                f"A grid is a Level, such as schedule(torch.linspace(1, 0, 11)); got a {type(grid).__name__}."
            )
        if step is None:

            def variances(name: str) -> ReverseVariance:
                return reverse_variance(name, denoiser, grid, fitted)

            solver: Step = self.sampler.build(**context, levels=grid, variances=variances)
            if getattr(self.sampler, "variance", None) == "large":
                self._warn_of_spread(grid, solver, denoiser.data_std)
        else:
            solver = step
        guided = self.wrap(denoiser, self.guidance.build(denoiser, weak, conditions or {}))
        guided = self.guidance.by_classifier(guided, classifier, solver)
        return self.guidance.constrain(guided, conditions or {}, self.input_noise), grid, solver

    def _warn_of_spread(self, levels: Level, step: Step, std: float) -> None:
        from sfumato.sampling.steps import gaussian_spread

        ratio = gaussian_spread(levels, step, std) / std
        if ratio > _MOST_SPREAD:
            warnings.warn(
                f"With the large reverse variance, {len(levels) - 1} steps of this grid give normal data {ratio:.3g} "
                "times their spread: take more steps, or sampler.variance small.",
                SfumatoWarning,
                stacklevel=4,
            )
