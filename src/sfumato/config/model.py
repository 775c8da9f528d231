"""Settings of the model: schedule, parameterization, network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from sfumato.config.base import Component
from sfumato.config.network import DiTConfig, MLPConfig
from sfumato.config.schedule import Cosine, ScheduleConfig, has_empty_step, has_steps
from sfumato.config.unet import UNetConfig
from sfumato.errors import InputError

if TYPE_CHECKING:
    from sfumato.diffusion.denoiser import Denoiser, Embed
    from sfumato.diffusion.parameterization import Parameterization
    from sfumato.diffusion.schedule import Schedule


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


NetworkConfig = Annotated[UNetConfig | DiTConfig | MLPConfig, Field(discriminator="kind")]


class ModelConfig(Component):
    """The denoiser: a schedule, what the network predicts, and the network."""

    schedule: ScheduleConfig = Cosine()
    parameterization: ParameterizationConfig = V()
    network: NetworkConfig = UNetConfig()
    time: Literal["auto", "index", "thousand", "log_snr", "log_sigma"] = Field(
        default="auto",
        description="What the network is told of the noise level: the step index, 1000 t, a quarter of the log-SNR, or "
        "log(sigma / alpha) / 4; auto is the index for a table of betas, log_sigma for edm and learned, else 1000 t.",
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
        if self.time in ("log_sigma", "log_snr") and empty:
            raise ValueError(
                f"model.time is {self.time}, which is not finite at the end of this schedule, where alpha = 0; use auto"
            )
        return self

    @property
    def told(self) -> Literal["index", "thousand", "log_snr", "log_sigma"]:
        """What ``time`` is, with auto resolved."""
        if self.time != "auto":
            return self.time
        if has_steps(self.schedule):
            return "index"
        return "log_sigma" if self.schedule.kind in ("edm", "learned") else "thousand"

    def build(self, shape: tuple[int, ...], classes: int = 0, data_std: float = 1.0) -> Denoiser:
        """The denoiser, with fresh weights, for data of ``shape`` ``(C, *space)`` and standard deviation ``data_std``.

        Raises:
            InputError: if the shape does not fit the network, or the schedule does not end in noise.
        """
        from sfumato.diffusion.denoiser import Denoiser

        if len(shape) == 1 and self.network.kind != "mlp":
            raise InputError(
                f"The data are vectors of length {shape[0]}, and the network {self.network.kind} takes signals or "
                "images; use model.network.kind mlp."
            )
        schedule = self.schedule.build()
        schedule.require_noise(data_std)
        parameterization = self.parameterization.build(data_std, schedule)
        network = self.network.build(shape, classes, 2 * shape[0] if self.learned_variance else None)
        return Denoiser(
            network,
            schedule,
            parameterization,
            self._embed(schedule),
            learned_variance=self.learned_variance,
            data_std=data_std,
        )

    def _embed(self, schedule: Schedule) -> Embed:
        from sfumato.diffusion import denoiser
        from sfumato.diffusion.schedule import Discrete

        table = schedule.steps if isinstance(schedule, Discrete) else None
        time = self.told
        if time == "index":
            if table is None:
                raise InputError(
                    "model.time is index, but the schedule has no steps; use thousand, log_snr or log_sigma."
                )
            return denoiser.embed_index(table)
        if time == "log_snr":
            return denoiser.embed_log_snr
        return denoiser.embed_thousand if time == "thousand" else denoiser.embed_log_sigma
