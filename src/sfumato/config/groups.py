"""The groups of settings of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from sfumato.config.component import Component, Conditions, Slot, group, slot
from sfumato.config.data import DataConfig
from sfumato.config.evaluation import EvaluationConfig
from sfumato.config.sampling import SamplingConfig
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from sfumato.conditioning.contrast import Contrast
    from sfumato.diffusion.classifier import NoisyClassifier
    from sfumato.diffusion.denoiser import Denoiser, Embed
    from sfumato.diffusion.schedule import Schedule


_TABLES = ("linear", "cosine", "sigmoid", "table", "zero_terminal_snr")
_NO_SIGNAL = ("zero_terminal_snr", "flow")


def has_steps(schedule: Component) -> bool | None:
    """Whether a schedule is a table of betas; None where only its code knows."""
    return None if ":" in schedule.kind else schedule.kind in _TABLES


def ends_without_signal(schedule: Component) -> bool:
    """Whether nothing of the data is left at the end of a schedule."""
    return schedule.kind in _NO_SIGNAL or (schedule.kind == "table" and schedule.betas[-1:] == (1.0,))


class ModelConfig(Component):
    """The denoiser: a schedule, what the network predicts, and the network."""

    schedule: Annotated[Component, Slot("schedule")] = slot("schedule", "cosine")
    parameterization: Annotated[Component, Slot("parameterization")] = slot("parameterization", "v")
    network: Annotated[Component, Slot("network")] = slot("network", "unet")
    time: Literal["auto", "index", "thousand", "log_snr", "log_sigma", "gamma"] = Field(
        default="auto",
        description="How the noise level is given to the network: the step index, 1000 t, a quarter of the log-SNR, "
        "log(sigma / alpha) / 4, or 1000 alpha^2 / (alpha^2 + sigma^2) as in SR3; auto is the index for a table of "
        "betas, log_sigma for edm and learned, else 1000 t.",
    )
    residual: bool = Field(
        default=False,
        description="Model the residual: the image less the upscaled image of the condition low_resolution.",
    )
    learned_variance: bool = Field(
        default=False,
        description="The network also learns the reverse variance, by the hybrid loss (Nichol and Dhariwal 2021).",
    )

    features: int = Field(default=128, ge=1, description="Of an embedding, of --task contrast.")

    @model_validator(mode="after")
    def _together(self) -> ModelConfig:
        schedule, output = self.schedule, self.parameterization.kind
        tables = "use linear, cosine, sigmoid, table or zero_terminal_snr"
        if ends_without_signal(schedule) and output in ("eps", "score"):
            raise ValueError(
                f"model.parameterization is {output}, which says nothing of the data where alpha = 0, the end of this "
                "schedule; use v, x0 or velocity"
            )
        if output == "mean" and has_steps(schedule) is False:
            raise ValueError(f"model.parameterization is mean, but the schedule {schedule.kind} has no steps; {tables}")
        if self.learned_variance and has_steps(schedule) is False:
            raise ValueError(
                f"model.learned_variance is that of the steps of a table, but the schedule {schedule.kind} has none; "
                f"{tables}"
            )
        if self.time == "index" and has_steps(schedule) is False:
            raise ValueError("model.time is index, but the schedule has no steps; use thousand, log_snr or log_sigma")
        if self.time in ("log_sigma", "log_snr") and ends_without_signal(schedule):
            raise ValueError(
                f"model.time is {self.time}, which is not finite at the end of this schedule, where alpha = 0; use auto"
            )
        return self

    @property
    def embedding(self) -> Literal["index", "thousand", "log_snr", "log_sigma", "gamma"]:
        """What ``time`` is, with auto resolved."""
        if self.time != "auto":
            return self.time
        if has_steps(self.schedule):
            return "index"
        return "log_sigma" if self.schedule.kind in ("edm", "learned") else "thousand"

    def build(
        self,
        shape: tuple[int, ...],
        conditions: dict[str, Any] | None = None,
        data_std: float = 1.0,
        *,
        network: nn.Module | None = None,
    ) -> Denoiser:
        """The denoiser, with fresh weights.

        Args:
            shape: ``(C, *space)`` of the data.
            conditions: its conditions by name (:class:`sfumato.conditioning.base.Condition`).
            data_std: standard deviation of the data.
            network: a network of the caller's, in place of one of the configuration.
        """
        from sfumato.conditioning.low_resolution import base_of
        from sfumato.conditioning.network import Conditioned
        from sfumato.diffusion.denoiser import Denoiser
        from sfumato.diffusion.schedule import Discrete

        schedule = self._schedule(data_std)
        context: dict[str, Any] = {"schedule": schedule, "data_std": data_std}
        if isinstance(schedule, Discrete):
            context["previous"] = schedule.previous
        parameterization = self.parameterization.build(**context)
        if network is None:
            network = self.build_network(shape, conditions)
        elif conditions:
            network = Conditioned(network, conditions, shape)
        embed = self._embed(schedule)
        return Denoiser(
            network,
            schedule,
            parameterization,
            embed,
            learned_variance=self.learned_variance,
            data_std=data_std,
            base=base_of(conditions or {}) if self.residual else None,
        )

    def build_classifier(
        self, shape: tuple[int, ...], classes: int, data_std: float = 1.0, *, network: nn.Module | None = None
    ) -> NoisyClassifier:
        """The classifier of noisy data, with fresh weights.

        Args:
            shape, data_std, network: as for :meth:`build`.
            classes: the number of classes.
        """
        from sfumato.diffusion.classifier import NoisyClassifier

        schedule = self._schedule(data_std)
        network = self.build_network(shape, classes=classes) if network is None else network
        return NoisyClassifier(network, schedule, self._embed(schedule), data_std=data_std)

    def build_contrast(
        self,
        shape: tuple[int, ...],
        conditions: dict[str, Any],
        data_std: float = 1.0,
        *,
        network: nn.Module | None = None,
    ) -> Contrast:
        """The embeddings of images and of their one condition, with fresh weights; arguments as of :meth:`build`."""
        from sfumato.conditioning.contrast import Contrast

        ((name, condition),) = conditions.items()
        slots = condition.slots(shape)
        if not slots.vector:
            raise InputError(
                f"The condition {name!r} has no vector to compare images with; a text has one with uses words, and "
                "pooled."
            )
        network = self.build_network(shape, classes=self.features) if network is None else network
        encoder = condition.build_encoder(shape, self.features, 0)
        layout = self.features if slots.channels else None
        return Contrast(network, condition, encoder, data_std=data_std, layout=layout)

    def _schedule(self, data_std: float) -> Schedule:
        schedule: Schedule = self.schedule.build()
        schedule.require_noise(data_std)
        return schedule

    def _embed(self, schedule: Schedule) -> Embed:
        from sfumato.diffusion import denoiser as denoisers
        from sfumato.diffusion.schedule import Discrete

        return {
            "index": denoisers.embed_index(schedule.steps if isinstance(schedule, Discrete) else 0),
            "thousand": denoisers.embed_thousand,
            "log_snr": denoisers.embed_log_snr,
            "log_sigma": denoisers.embed_log_sigma,
            "gamma": denoisers.embed_gamma,
        }[self.embedding]

    def build_network(
        self, shape: tuple[int, ...], conditions: dict[str, Any] | None = None, classes: int | None = None
    ) -> nn.Module:
        """The network with the encoders of its conditions, also on the device ``meta``, to count its parameters.

        Args:
            shape: ``(C, *space)`` of the data.
            conditions: its conditions by name.
            classes: the number of classes that a classifier tells apart.
        """
        from sfumato.conditioning.network import Conditioned, filled

        kind, dims = self.network.kind, len(shape) - 1
        if (kind in ("mlp", "prior")) != (dims == 0) and ":" not in kind:
            data = f"vectors of length {shape[0]}" if dims == 0 else f"signals or images of shape {shape}"
            better = "mlp or prior" if dims == 0 else "unet or dit"
            if kind == "classifier":
                raise InputError(f"The data are {data}; the network classifier takes images, name one of your own.")
            raise InputError(
                f"The data are {data}, which the network {kind} does not take; use model.network.kind {better}."
            )
        slots = filled(conditions or {}, shape)
        network = self.network.build(
            inputs=shape[0],
            outputs=2 * shape[0] if self.learned_variance else shape[0],
            sides=shape[1:],
            shape=shape,
            dims=dims,
            tokens=slots.tokens,
            concatenated=slots.channels,
            classes=classes,
        )
        if hasattr(network, "check"):
            network.check(shape)
        return Conditioned(network, conditions, shape) if conditions else network


class OptimizerConfig(Component):
    """The optimizer and its learning rate."""

    method: Annotated[Component, Slot("optimizer")] = slot("optimizer", "adamw")
    learning_rate: float = Field(default=2e-4, gt=0, description="The peak learning rate.")
    warmup: int = Field(default=500, ge=0, le=10**12, description="Steps of linear warm-up.")
    decay: Literal["constant", "cosine", "linear"] = Field(default="constant", description="What follows the warm-up.")
    clip: float | None = Field(default=1.0, gt=0, description="Largest norm of the gradient.")


EmaConfig = group("EmaConfig", "The average of the weights, which is what samples.", "sfumato.training.ema:power_law")


class TrainingConfig(Component):
    """How long, how fast, and what is written."""

    steps: int = Field(default=100_000, ge=1, le=10**12, description="Optimizer steps.")
    batch_size: int = Field(default=64, ge=1, le=2**31 - 1, description="Images per step, over all processes.")
    accumulate: int = Field(
        default=1, ge=1, le=2**31 - 1, description="Parts in which a batch is computed, to save memory."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="bf16 computes the network in bfloat16; auto does where the hardware has it. On a GPU, fp32 "
        "multiplies in TF32 where it can.",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Decides every random number of the training.")
    checkpoint_every: int = Field(default=1000, ge=1, le=10**12, description="Steps between checkpoints.")
    keep: int = Field(default=2, ge=1, le=10**9, description="Checkpoints that are kept.")
    sample_every: int = Field(default=5000, ge=1, le=10**12, description="Steps between sample grids.")
    sample_count: int = Field(default=64, ge=0, le=10**6, description="Images per grid; 0 for no grids.")
    log_every: int = Field(default=10, ge=1, le=10**12, description="Steps between lines of metrics.jsonl.")
    tracker: Literal["tensorboard", "wandb"] | None = Field(
        default=None, description="Also send losses, sample grids and the evaluation to this program."
    )
    init_from: str | None = Field(default=None, description="A run whose weights the training starts from.")
    freeze: tuple[str, ...] = Field(
        default=(), description="Parts that stay as they are in init-from, such as text.layout or network.first."
    )
    channels_last: bool | None = Field(
        default=None,
        description="Keep the channels of an image together in memory, which speeds some networks up; by default "
        "where the hardware and precision are known to gain from it.",
    )
    compile: bool = Field(
        default=False, description="Compile the network first, which takes a minute or two; needs a compiler."
    )
    threads: int | None = Field(default=None, ge=1, le=4096, description="CPU threads (default: torch's choice).")


class Config(Component):
    """Everything that decides a run."""

    data: DataConfig = Field(default_factory=DataConfig)  # pyright: ignore[reportInvalidTypeForm]
    conditions: Conditions = Field(default={}, description="What the network is given besides the noise level.")
    model: ModelConfig = Field(default_factory=ModelConfig)
    objective: Annotated[Component, Slot("objective", "denoising")] = slot(
        "objective", "denoising", "What is minimized."
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    ema: EmaConfig = Field(default_factory=EmaConfig)  # pyright: ignore[reportInvalidTypeForm]
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @property
    def classifies(self) -> bool:
        """Whether a classifier of noisy data is trained, and no denoiser."""
        return self.objective.kind == "classification"

    @property
    def contrasts(self) -> bool:
        """Whether embeddings of images and of what describes them are trained, and no denoiser."""
        return self.objective.kind == "contrastive"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data that the conditions and the objective need."""
        found = {column for condition in self.conditions.values() for column in condition.build().columns}
        own: str | None = getattr(self.objective, "column", None)
        return tuple(sorted(found if own is None else {*found, own}))

    @model_validator(mode="after")
    def _classified(self) -> Config:
        kind = self.model.network.kind
        own = ":" in kind or kind == "given"
        samples, objective = not (self.classifies or self.contrasts), self.objective.kind
        if not samples and kind != "classifier" and not own:
            raise ValueError(
                f"objective.kind is {objective}, but model.network.kind is {kind}; take the network classifier"
            )
        if kind == "classifier" and samples and ":" not in objective:
            raise ValueError(
                "model.network.kind is classifier, which predicts no images; take objective.kind classification or "
                "contrastive, or --task classify or contrast"
            )
        for name in ("residual", "learned_variance"):
            if not samples and getattr(self.model, name):
                raise ValueError(f"model.{name} is of a model that samples, and objective.kind is {objective}")
        if not samples and self.evaluation.best is not None:
            raise ValueError(f"evaluation.best is of a model that samples, and objective.kind is {objective}")
        if self.contrasts:
            self._contrasted()
        if self.classifies and self.conditions:
            raise ValueError(
                f"a classifier of noisy data is given no conditions, but there is {next(iter(self.conditions))}; leave "
                "it out: the classes are what it predicts"
            )
        return self

    def _contrasted(self) -> None:
        """Refuse what leaves nothing to compare."""
        if len(self.conditions) != 1:
            raise ValueError(
                "objective.kind is contrastive, which compares images with one condition, such as text; there are "
                f"{len(self.conditions)}"
            )
        ((name, condition),) = self.conditions.items()
        if getattr(condition, "drop", 0.0) > 0.0:
            raise ValueError(f"what images are compared with is never left out; set conditions.{name}.drop to 0")
        if self.training.batch_size < 2 * self.training.accumulate:
            raise ValueError("objective.kind is contrastive, which compares the images of a batch; take 2 or more")

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.training.freeze and self.training.init_from is None:
            raise ValueError("training.freeze keeps weights of another run; say which by training.init_from")
        if self.data.edges and any(condition.kind == "augmentation" for condition in self.conditions.values()):
            raise ValueError("the directions of edges do not turn with an augmented image; leave data.edges out")
        captioned = any(condition.kind == "text" for condition in self.conditions.values())
        if self.data.flip and captioned and self.data.source.partition(":")[0] == "shapes":
            raise ValueError("captions of shapes say left and right, which a flip exchanges; leave data.flip out")
        schedule = self.model.schedule
        if self.training.batch_size % self.training.accumulate:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} does not divide into "
                f"training.accumulate {self.training.accumulate} parts"
            )
        if self.objective.kind != "denoising":
            return self
        weight, times = self.objective.weight.kind, self.objective.times.kind
        if weight == "vlb" and has_steps(schedule) is False:
            raise ValueError(
                f"objective.weight is vlb, but the schedule {schedule.kind} has no steps; use vlb_continuous"
            )
        if has_steps(schedule) and ends_without_signal(schedule) and weight != "output":
            raise ValueError(
                "the last step of the schedule has alpha = 0, where the error of the noise teaches nothing; use "
                "objective.weight output"
            )
        balanced = self.objective.balance
        if schedule.kind == "learned" and (weight != "vlb_continuous" or times != "uniform" or balanced):
            raise ValueError(
                "a learned schedule is trained by the bound: use objective.weight vlb_continuous, objective.times "
                "uniform and no objective.balance"
            )
        if balanced and (times == "loss_second_moment" or self.model.learned_variance):
            other = "model.learned_variance" if self.model.learned_variance else f"objective.times {times}"
            raise ValueError(
                f"objective.balance divides the losses that {other} needs as they are; leave one of them out"
            )
        if self.model.learned_variance and times not in ("uniform", "loss_second_moment"):
            raise ValueError(
                "model.learned_variance needs objective.times uniform or loss_second_moment: its bound is a sum over "
                "all steps"
            )
        return self
