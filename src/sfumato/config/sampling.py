"""Settings of sampling and evaluation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from sfumato.config.base import Component

if TYPE_CHECKING:
    from sfumato.diffusion.level import Level
    from sfumato.diffusion.schedule import Schedule
    from sfumato.sampling.sample import Step


class Ancestral(Component):
    """The reverse process of DDPM."""

    kind: Literal["ancestral"] = "ancestral"
    variance: Literal["small", "large"] = Field(
        default="small", description="The reverse variance: beta tilde, or beta."
    )

    def build(self) -> Step:
        from sfumato.diffusion import variance
        from sfumato.sampling.ancestral import ancestral

        return partial(ancestral, variance=variance.small if self.variance == "small" else variance.large)


class Ddim(Component):
    """DDIM."""

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(default=0.0, ge=0, le=1, description="Noise: 0 is deterministic, 1 is ancestral.")

    def build(self) -> Step:
        from sfumato.sampling.ddim import ddim

        return partial(ddim, eta=self.eta)


class Heun(Component):
    """Heun's second-order steps, two evaluations each."""

    kind: Literal["heun"] = "heun"

    def build(self) -> Step:
        from sfumato.sampling.heun import heun

        return heun


class DpmSolver(Component):
    """DPM-Solver++(2M): second order, one evaluation per step (Lu et al. 2022)."""

    kind: Literal["dpm_solver"] = "dpm_solver"

    def build(self) -> Step:
        from sfumato.sampling.dpm_solver import dpm_solver_pp_2m

        return dpm_solver_pp_2m


class UniformGrid(Component):
    """Steps uniform in time."""

    kind: Literal["uniform"] = "uniform"

    def build(self, schedule: Schedule, steps: int) -> Level:
        from sfumato.sampling import grids

        return grids.uniform(schedule, steps)


class KarrasGrid(Component):
    """The steps of EDM, uniform in (sigma / alpha)^(1/rho)."""

    kind: Literal["karras"] = "karras"
    sigma_min: float = Field(default=0.002, gt=0, description="The last level before the data.")
    sigma_max: float | None = Field(
        default=None, gt=0, description="The first level; the end of the schedule when not given."
    )
    rho: float = Field(default=7.0, gt=0, description="Larger puts more steps near the data.")

    def build(self, schedule: Schedule, steps: int) -> Level:
        from sfumato.sampling import grids

        return grids.karras(schedule, steps, self.sigma_min, self.sigma_max, self.rho)


class SamplingConfig(Component):
    """How images are drawn from the model."""

    sampler: Annotated[Ancestral | Ddim | Heun | DpmSolver, Field(discriminator="kind")] = Ddim()
    grid: Annotated[UniformGrid | KarrasGrid, Field(discriminator="kind")] = UniformGrid()
    steps: int = Field(default=50, ge=1, description="Sampling steps.")
    classes: Literal["frequency", "uniform"] = Field(
        default="frequency",
        description="Which classes a model with labels draws: as often as in the training data, or each alike.",
    )
    batch_size: int = Field(default=250, ge=1, description="Images that are computed at once.")


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
