"""Settings of the model: schedule, parameterization, network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from sfumato.config.base import Component, read_numbers
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from sfumato.diffusion.denoiser import Denoiser, Embed
    from sfumato.diffusion.parameterization import Parameterization
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
    log_snr_min: float = Field(default=-20.0, le=0, description="The log-SNR where the schedule ends.")

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


ScheduleConfig = Annotated[
    Linear | Cosine | Sigmoid | Table | ZeroTerminalSnr | ContinuousLinear | ContinuousCosine | Karras | RectifiedFlow,
    Field(discriminator="kind"),
]


def has_steps(schedule: Component) -> bool:
    """Whether a schedule is a table of betas."""
    return isinstance(schedule, BetaTable | ZeroTerminalSnr)


def has_empty_step(schedule: Component) -> bool:
    """Whether a schedule has a last step where nothing of the data is left."""
    return isinstance(schedule, ZeroTerminalSnr) or (isinstance(schedule, Table) and schedule.betas[-1:] == (1.0,))


class Eps(Component):
    """The network predicts the noise."""

    kind: Literal["eps"] = "eps"

    def build(self, data_std: float, schedule: Schedule) -> Parameterization:
        from sfumato.diffusion import parameterization

        return parameterization.eps


class X0(Component):
    """The network predicts the data."""

    kind: Literal["x0"] = "x0"

    def build(self, data_std: float, schedule: Schedule) -> Parameterization:
        from sfumato.diffusion import parameterization

        return parameterization.x0


class V(Component):
    """The network predicts v = alpha eps - sigma x0 (Salimans and Ho 2022)."""

    kind: Literal["v"] = "v"

    def build(self, data_std: float, schedule: Schedule) -> Parameterization:
        from sfumato.diffusion import parameterization

        return parameterization.v


class Score(Component):
    """The network predicts the score, -eps / sigma."""

    kind: Literal["score"] = "score"

    def build(self, data_std: float, schedule: Schedule) -> Parameterization:
        from sfumato.diffusion import parameterization

        return parameterization.score


class Velocity(Component):
    """The network predicts the direction of rectified flow, eps - x0 (Liu et al. 2023)."""

    kind: Literal["velocity"] = "velocity"

    def build(self, data_std: float, schedule: Schedule) -> Parameterization:
        from sfumato.diffusion import parameterization

        return parameterization.velocity


class Mean(Component):
    """The network predicts the posterior mean of one step of a table of betas (Ho et al. 2020, sec. 3.2)."""

    kind: Literal["mean"] = "mean"

    def build(self, data_std: float, schedule: Schedule) -> Parameterization:
        from sfumato.diffusion import parameterization
        from sfumato.diffusion.schedule import Discrete

        if not isinstance(schedule, Discrete):
            raise InputError("A posterior mean is that of a step, and this schedule has none; take a table of betas.")
        return parameterization.mean(schedule.previous)


class Edm(Component):
    """The preconditioning of EDM (Karras et al. 2022)."""

    kind: Literal["edm"] = "edm"
    sigma_data: float | None = Field(
        default=None, gt=0, description="Standard deviation of the data; measured when not given."
    )

    def build(self, data_std: float, schedule: Schedule) -> Parameterization:
        from sfumato.diffusion import parameterization

        return parameterization.edm(self.sigma_data or data_std)


ParameterizationConfig = Annotated[Eps | X0 | V | Score | Velocity | Mean | Edm, Field(discriminator="kind")]


class UNetConfig(Component):
    """A U-Net of residual blocks and self-attention."""

    kind: Literal["unet"] = "unet"
    channels: tuple[int, ...] = Field(
        default=(64, 128, 128), min_length=1, description="Width per resolution, finest first."
    )
    blocks: int = Field(default=2, ge=1, description="Residual blocks per resolution.")
    attention: tuple[int, ...] = Field(
        default=(2,), description="Resolutions with self-attention, by index from the finest."
    )
    middle: int = Field(default=2, ge=1, description="Residual blocks in the middle.")
    middle_attention: bool = Field(default=True, description="Whether the middle has self-attention.")
    skips: Literal["all", "blocks"] = Field(
        default="all", description="What is joined on the way up: all activations (DDPM), or those of blocks only."
    )
    resample: Literal["learned", "fixed"] = Field(
        default="learned", description="Change of resolution: by convolutions, or by averaging and repeating."
    )
    heads: int = Field(default=4, ge=1, description="Attention heads.")
    groups: int = Field(default=32, ge=1, description="Groups of the normalizations, at most.")
    embedding: int | None = Field(
        default=None, ge=2, description="Width of the time embedding; four times the first width."
    )
    time_features: int | None = Field(
        default=None, ge=2, multiple_of=2, description="Sinusoidal time features; as many as the first width."
    )
    time_scale: float = Field(default=1.0, gt=0, description="Largest frequency of the sinusoidal time features.")

    def build(self, shape: tuple[int, ...], classes: int, outputs: int | None = None) -> nn.Module:
        """The network for data of ``shape`` ``(C, *space)``, told of ``classes`` labels when there are any.

        It returns ``outputs`` channels, by default as many as the data have.
        """
        from sfumato.conditioning.encoders import Conditioned, LabelEncoder
        from sfumato.networks.unet import UNet

        if len(shape) not in (2, 3):
            raise InputError(f"A U-Net takes signals (C, L) or images (C, H, W); the data have shape {shape}.")
        network = UNet(
            shape[0],
            outputs or shape[0],
            self.channels,
            blocks=self.blocks,
            attention=self.attention,
            middle=self.middle,
            middle_attention=self.middle_attention,
            skips=self.skips,
            resample=self.resample,
            heads=self.heads,
            groups=self.groups,
            embedding=self.embedding,
            time_features=self.time_features,
            time_scale=self.time_scale,
            dims=1 if len(shape) == 2 else 2,
        )
        network.check(shape)
        return Conditioned(network, {"label": LabelEncoder(classes, network.width)}) if classes else network


class ModelConfig(Component):
    """The denoiser: a schedule, what the network predicts, and the network."""

    schedule: ScheduleConfig = Cosine()
    parameterization: ParameterizationConfig = V()
    network: UNetConfig = UNetConfig()
    time: Literal["auto", "index", "thousand", "log_sigma"] = Field(
        default="auto",
        description="What the network is told of the noise level: the step index, 1000 t, or log(sigma / alpha) / 4; "
        "auto is the index for a table of betas, log_sigma for edm, else 1000 t.",
    )
    learned_variance: bool = Field(
        default=False,
        description="The network also learns the reverse variance, by the hybrid loss (Nichol and Dhariwal 2021).",
    )

    @model_validator(mode="after")
    def _together(self) -> ModelConfig:
        schedule, output = self.schedule, self.parameterization.kind
        table = has_steps(schedule)
        empty = has_empty_step(schedule) or schedule.kind == "flow"
        if empty and output in ("eps", "score"):
            raise ValueError(
                f"model.parameterization is {output}, which says nothing of the data where alpha = 0, the end of this "
                "schedule; use v, x0 or velocity"
            )
        if output == "mean" and not table:
            raise ValueError(
                f"model.parameterization is mean, but the schedule {schedule.kind} has no steps; use linear, cosine, "
                "sigmoid, table or zero_terminal_snr"
            )
        if self.learned_variance and not table:
            raise ValueError(
                f"model.learned_variance is that of the steps of a table, but the schedule {schedule.kind} has none; "
                "use linear, cosine, sigmoid, table or zero_terminal_snr"
            )
        if self.time == "log_sigma" and empty:
            raise ValueError(
                "model.time is log_sigma, which is not finite at the end of this schedule, where alpha = 0; use auto"
            )
        return self

    def build(self, shape: tuple[int, ...], classes: int = 0, data_std: float = 1.0) -> Denoiser:
        """The denoiser, with fresh weights, for data of ``shape`` ``(C, *space)`` and standard deviation ``data_std``.

        Raises:
            InputError: if the shape does not fit the network, or the schedule does not end in noise.
        """
        from sfumato.diffusion.denoiser import Denoiser

        schedule = self.schedule.build()
        schedule.require_noise(data_std)
        parameterization = self.parameterization.build(data_std, schedule)
        network = self.network.build(shape, classes, 2 * shape[0] if self.learned_variance else None)
        return Denoiser(
            network, schedule, parameterization, self._embed(schedule), learned_variance=self.learned_variance
        )

    def _embed(self, schedule: Schedule) -> Embed:
        from sfumato.diffusion import denoiser
        from sfumato.diffusion.schedule import Discrete

        table = schedule.steps if isinstance(schedule, Discrete) else None
        time = self.time
        if time == "auto":
            time = "index" if table else "log_sigma" if isinstance(self.schedule, Karras) else "thousand"
        if time == "index":
            if table is None:
                raise InputError("model.time is index, but the schedule has no steps; use thousand or log_sigma.")
            return denoiser.embed_index(table)
        return denoiser.embed_thousand if time == "thousand" else denoiser.embed_log_sigma
