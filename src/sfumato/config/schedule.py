"""Settings of the noise schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from sfumato.config.base import Component, read_numbers
from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.diffusion.schedule import Discrete, Schedule


class Linear(Component):
    """The linear beta table of DDPM (Ho et al. 2020)."""

    kind: Literal["linear"] = "linear"
    steps: int = Field(default=1000, ge=2, description="Number of steps T; the betas are scaled by 1000 / T.")
    beta_start: float = Field(default=1e-4, gt=0, description="The first beta, at T = 1000.")
    beta_end: float = Field(default=0.02, gt=0, description="The last beta, at T = 1000.")

    def build(self) -> Discrete:
        from sfumato.diffusion import schedule

        return schedule.linear(self.steps, self.beta_start, self.beta_end)


class Cosine(Component):
    """The cosine beta table of Improved DDPM (Nichol and Dhariwal 2021)."""

    kind: Literal["cosine"] = "cosine"
    steps: int = Field(default=1000, ge=1, description="Number of steps T.")
    s: float = Field(default=0.008, gt=0, description="The offset near the data.")

    def build(self) -> Discrete:
        from sfumato.diffusion import schedule

        return schedule.cosine(self.steps, self.s)


class Sigmoid(Component):
    """The sigmoid beta table (Jabri et al. 2023)."""

    kind: Literal["sigmoid"] = "sigmoid"
    steps: int = Field(default=1000, ge=1, description="Number of steps T.")
    start: float = Field(default=-3.0, description="Where on the logistic curve the data are.")
    end: float = Field(default=3.0, description="Where on the logistic curve the noise is.")
    tau: float = Field(default=1.0, gt=0, description="Temperature: larger is nearer to a straight line.")

    def build(self) -> Discrete:
        from sfumato.diffusion import schedule

        return schedule.sigmoid(self.steps, self.start, self.end, self.tau)


class Table(Component):
    """Any beta table."""

    kind: Literal["table"] = "table"
    betas: tuple[float, ...] = Field(default=(), description="The betas, from the data to the noise.")
    file: str | None = Field(
        default=None, description="Read them from this file of numbers (.npy, .json or text); the run keeps a copy."
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        # the numbers themselves become the setting, so that a run does not need the file again
        if isinstance(values, dict) and isinstance(values.get("file"), str):
            return {**values, "file": None, "betas": read_numbers(values["file"])}
        return values

    def build(self) -> Discrete:
        from sfumato.diffusion import schedule

        if not self.betas:
            raise InputError("The schedule is a table without betas; give model.schedule.betas or model.schedule.file.")
        return schedule.Discrete(list(self.betas), zero_end=True)


BetaTable = Linear | Cosine | Sigmoid | Table


class ZeroTerminalSnr(Component):
    """A beta table rescaled so that its end is pure noise (Lin et al. 2024)."""

    kind: Literal["zero_terminal_snr"] = "zero_terminal_snr"
    table: Annotated[BetaTable, Field(discriminator="kind")] = Cosine()

    def build(self) -> Discrete:
        from sfumato.diffusion import schedule

        return schedule.zero_terminal_snr(self.table.build())


class ContinuousLinear(Component):
    """The variance-preserving SDE with linear beta(t) (Song et al. 2021)."""

    kind: Literal["continuous_linear"] = "continuous_linear"
    beta_min: float = Field(default=0.1, ge=0, description="beta(0).")
    beta_max: float = Field(default=20.0, gt=0, description="beta(1).")

    def build(self) -> Schedule:
        from sfumato.diffusion import schedule

        return schedule.ContinuousLinear(self.beta_min, self.beta_max)


class ContinuousCosine(Component):
    """The cosine schedule in continuous time."""

    kind: Literal["continuous_cosine"] = "continuous_cosine"
    s: float = Field(default=0.008, gt=0, description="The offset near the data.")
    log_snr_min: float = Field(default=-20.0, ge=-100, le=0, description="The log-SNR where the schedule ends.")

    def build(self) -> Schedule:
        from sfumato.diffusion import schedule

        return schedule.ContinuousCosine(self.s, self.log_snr_min)


class Karras(Component):
    """The variance-exploding schedule of EDM (Karras et al. 2022)."""

    kind: Literal["edm"] = "edm"
    sigma_max: float = Field(default=80.0, gt=0, description="The largest noise.")
    rho: float = Field(default=7.0, gt=0, description="The power that relates noise and time.")

    def build(self) -> Schedule:
        from sfumato.diffusion import schedule

        return schedule.Karras(self.sigma_max, self.rho)


class RectifiedFlow(Component):
    """Straight lines from data to noise, alpha = 1 - t and sigma = t (Liu et al. 2023)."""

    kind: Literal["flow"] = "flow"

    def build(self) -> Schedule:
        from sfumato.diffusion import schedule

        return schedule.RectifiedFlow()


class LearnedSchedule(Component):
    """A schedule that is learned: ends by the bound, what is between by its variance (Kingma et al. 2021).

    The defaults are those of the paper, for 8-bit data: at first half a bin is three standard deviations of the noise
    where the data are decoded. For the 17 grey levels of the digits that is a log_snr_max of 7.7.
    """

    kind: Literal["learned"] = "learned"
    log_snr_max: float = Field(default=13.3, description="The log-SNR where the data are decoded, at first.")
    log_snr_min: float = Field(default=-5.0, description="The log-SNR at the end, at first.")
    width: int = Field(default=64, ge=1, description="Units of the monotone network.")

    def build(self) -> Schedule:
        from sfumato.diffusion.continuous import Learned

        return Learned(self.log_snr_max, self.log_snr_min, self.width)


ScheduleConfig = Annotated[
    Linear
    | Cosine
    | Sigmoid
    | Table
    | ZeroTerminalSnr
    | ContinuousLinear
    | ContinuousCosine
    | Karras
    | RectifiedFlow
    | LearnedSchedule,
    Field(discriminator="kind"),
]


def has_steps(schedule: Component) -> bool:
    """Whether a schedule is a table of betas."""
    return isinstance(schedule, BetaTable | ZeroTerminalSnr)


def has_empty_step(schedule: Component) -> bool:
    """Whether a schedule has a last step where nothing of the data is left."""
    return isinstance(schedule, ZeroTerminalSnr) or (isinstance(schedule, Table) and schedule.betas[-1:] == (1.0,))
