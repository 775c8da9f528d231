"""Settings of grids: the noise levels at which a sampler stops on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sfumato.config.base import Component
from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.diffusion.denoiser import Denoiser
    from sfumato.diffusion.level import Level
    from sfumato.sampling.fitted import Fitted


class BestGrid(Component):
    """What was fitted to the model for the number of steps (sfumato tune), or else the grid that goes with best."""

    kind: Literal["best"] = "best"

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.sampling.defaults import best

        return best(denoiser.schedule, steps, denoiser.data_std)[0]


class UniformGrid(Component):
    """Steps uniform in time."""

    kind: Literal["uniform"] = "uniform"

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.sampling import grids

        return grids.uniform(denoiser.schedule, steps)


class KarrasGrid(Component):
    """The steps of EDM, uniform in (sigma / alpha)^(1/rho)."""

    kind: Literal["karras"] = "karras"
    sigma_min: float = Field(default=0.002, gt=0, description="The last level before the data.")
    sigma_max: float | None = Field(
        default=None, gt=0, description="The first level; the end of the schedule when not given."
    )
    rho: float = Field(default=7.0, gt=0, description="Larger puts more steps near the data.")

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.sampling import grids

        return grids.karras(denoiser.schedule, steps, self.sigma_min, self.sigma_max, self.rho)


class TrailingGrid(Component):
    """Steps of a table from its end (Lin et al. 2024)."""

    kind: Literal["trailing"] = "trailing"

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.sampling import grids

        return grids.trailing(denoiser.schedule, steps)


class LeadingGrid(Component):
    """Steps of a table from its start (J. Song et al. 2021), with the end of the schedule before them."""

    kind: Literal["leading"] = "leading"

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.sampling import grids

        return grids.leading(denoiser.schedule, steps)


class QuadraticGrid(Component):
    """Steps whose times are squares, denser near the data (J. Song et al. 2021)."""

    kind: Literal["quadratic"] = "quadratic"

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.sampling import grids

        return grids.quadratic(denoiser.schedule, steps)


class LogSnrGrid(Component):
    """Steps uniform in log-SNR (Lu et al. 2022)."""

    kind: Literal["log_snr"] = "log_snr"
    sigma_min: float = Field(default=0.002, gt=0, description="The last level before the data.")
    sigma_max: float | None = Field(
        default=None, gt=0, description="The first level; the end of the schedule when not given."
    )

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.sampling import grids

        return grids.log_snr(denoiser.schedule, steps, self.sigma_min, self.sigma_max)


class ListGrid(Component):
    """Any levels, by one of three lists; the data come after them."""

    kind: Literal["list"] = "list"
    sigmas: tuple[float, ...] = Field(default=(), description="sigma / alpha of each level, falling.")
    times: tuple[float, ...] = Field(default=(), description="The time of each level, falling from 1 at most.")
    log_snrs: tuple[float, ...] = Field(default=(), description="The log-SNR of each level, rising.")

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.sampling import grids

        given = {name: getattr(self, name) for name in ("sigmas", "times", "log_snrs") if getattr(self, name)}
        if len(given) != 1:
            raise InputError(
                "sampling.grid of kind list needs its levels in one list: sigmas, times or log_snrs; "
                f"got {' and '.join(given) or 'none'}."
            )
        ((name, values),) = given.items()
        # the data may be listed or not
        count = len(values) - (name != "log_snrs" and values[-1] == 0.0)
        if count != steps:
            raise InputError(
                f"sampling.grid lists {count} levels, which make as many steps; sampling.steps is {steps}."
            )
        build = {"sigmas": grids.at_ratios, "times": grids.at_times, "log_snrs": grids.at_log_snrs}[name]
        return build(denoiser.schedule, values)


class OptimalGrid(Component):
    """The steps whose variational bound is the lowest, by Analytic-DPM (Bao et al. 2022); needs sfumato tune."""

    kind: Literal["optimal"] = "optimal"

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        from sfumato.diffusion.schedule import Discrete
        from sfumato.sampling import grids
        from sfumato.sampling import optimal_grid as trajectory

        schedule = denoiser.schedule
        count = schedule.steps if isinstance(schedule, Discrete) else trajectory.CANDIDATES
        return trajectory.optimal(schedule, steps, fitted.require_gamma(), candidates=grids.fine(schedule, count))


class FittedGrid(Component):
    """The steps that were fitted to the model for this number of them; needs sfumato tune --steps."""

    kind: Literal["fitted"] = "fitted"

    def build(self, denoiser: Denoiser, steps: int, fitted: Fitted) -> Level:
        return fitted.require_plan(steps).levels(denoiser.schedule)


GridConfig = Annotated[
    BestGrid
    | UniformGrid
    | TrailingGrid
    | LeadingGrid
    | QuadraticGrid
    | LogSnrGrid
    | KarrasGrid
    | ListGrid
    | OptimalGrid
    | FittedGrid,
    Field(discriminator="kind"),
]
