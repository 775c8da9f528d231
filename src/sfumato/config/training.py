"""Settings of the training: objective, optimizer, average, duration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sfumato.config.base import Component

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sfumato.diffusion import importance
    from sfumato.diffusion.objective import TimeLaw
    from sfumato.diffusion.schedule import Schedule
    from sfumato.diffusion.weighting import OfDenoiser, Weight
    from sfumato.training.ema import EmaLaw


Decay = Annotated[float, Field(ge=0, lt=1)]


class Simple(Component):
    """Every noise error counts alike: L_simple (Ho et al. 2020)."""

    kind: Literal["simple"] = "simple"

    def build(self, data_std: float) -> Weight:
        from sfumato.diffusion import weighting

        return weighting.simple


class EdmWeight(Component):
    """Every error of the preconditioned network counts alike (Karras et al. 2022)."""

    kind: Literal["edm"] = "edm"
    sigma_data: float | None = Field(
        default=None, gt=0, description="Standard deviation of the data; measured when not given."
    )

    def build(self, data_std: float) -> Weight:
        from sfumato.diffusion import weighting

        return weighting.edm_weight(self.sigma_data or data_std)


class OutputWeight(Component):
    """Every error of the network's output counts alike: the loss on v, on the velocity, and so on."""

    kind: Literal["output"] = "output"

    def build(self, data_std: float) -> OfDenoiser:
        from sfumato.diffusion import weighting

        return weighting.OfDenoiser(lambda denoiser: weighting.OutputWeight(denoiser.parameterization))


class Vlb(Component):
    """The weight of the variational bound, for a table of betas (Ho et al. 2020)."""

    kind: Literal["vlb"] = "vlb"
    variance: Literal["small", "large"] = Field(
        default="small", description="The reverse variance of the bound: beta tilde, or beta."
    )

    def build(self, data_std: float) -> OfDenoiser:
        from sfumato.diffusion import weighting

        return weighting.OfDenoiser(lambda denoiser: weighting.vlb(denoiser.schedule, large=self.variance == "large"))


class VlbContinuous(Component):
    """The weight of the variational bound in continuous time (Kingma et al. 2021); for uniform times."""

    kind: Literal["vlb_continuous"] = "vlb_continuous"

    def build(self, data_std: float) -> OfDenoiser:
        from sfumato.diffusion import weighting

        return weighting.OfDenoiser(lambda denoiser: weighting.vlb_continuous(denoiser.schedule))


class SigmoidWeight(Component):
    """The continuous bound weighted by a sigmoid of the log-SNR (Kingma and Gao 2023); for uniform times."""

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = Field(default=2.0, description="The log-SNR where the weight has fallen to half.")

    def build(self, data_std: float) -> OfDenoiser:
        from sfumato.diffusion import weighting

        return weighting.OfDenoiser(lambda denoiser: weighting.sigmoid_weight(denoiser.schedule, self.bias))


class P2(Component):
    """Perception prioritized weighting, 1 / (k + SNR)^gamma (Choi et al. 2022)."""

    kind: Literal["p2"] = "p2"
    k: float = Field(default=1.0, gt=0, description="Holds the weight finite where there is only noise.")
    gamma: float = Field(default=1.0, ge=0, description="How much the levels near the data count less.")

    def build(self, data_std: float) -> Weight:
        from sfumato.diffusion import weighting

        return weighting.p2(self.k, self.gamma)


class MinSnr(Component):
    """The data error weighted by min(SNR, gamma) (Hang et al. 2023)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(default=5.0, gt=0, description="The signal-to-noise ratio from which the weight is constant.")

    def build(self, data_std: float) -> Weight:
        from sfumato.diffusion import weighting

        return weighting.min_snr(self.gamma)


class SoftMinSnr(Component):
    """The data error weighted by SNR gamma / (SNR + gamma) (Crowson et al. 2024)."""

    kind: Literal["soft_min_snr"] = "soft_min_snr"
    gamma: float = Field(default=4.0, gt=0, description="The signal-to-noise ratio around which the weight levels off.")

    def build(self, data_std: float) -> Weight:
        from sfumato.diffusion import weighting

        return weighting.soft_min_snr(self.gamma)


class Uniform(Component):
    """Uniform times."""

    kind: Literal["uniform"] = "uniform"

    def build(self, schedule: Schedule) -> TimeLaw:
        from sfumato.diffusion import objective

        return objective.uniform_times(schedule)


class LogNormal(Component):
    """log(sigma / alpha) is normal (Karras et al. 2022)."""

    kind: Literal["log_normal"] = "log_normal"
    mean: float = Field(default=-1.2, description="Mean of log(sigma / alpha).")
    std: float = Field(default=1.2, gt=0, description="Standard deviation of log(sigma / alpha).")

    def build(self, schedule: Schedule) -> TimeLaw:
        from sfumato.diffusion import objective

        return objective.log_normal_sigma(schedule, self.mean, self.std)


class LossSecondMoment(Component):
    """Times drawn in proportion to the root mean square of their last losses (Nichol and Dhariwal 2021).

    The losses are divided by that probability, so that what is minimized is the same as with uniform times.
    """

    kind: Literal["loss_second_moment"] = "loss_second_moment"
    history: int = Field(
        default=10, ge=1, description="Losses remembered per part of the time; until all are there, times are uniform."
    )
    uniform_share: float = Field(default=0.001, gt=0, le=1, description="The share of uniform times that stays.")
    strata: int | None = Field(
        default=None, ge=1, description="Parts of the time; the steps of a table of betas, or 100, when not given."
    )

    def build(self, schedule: Schedule) -> importance.LossSecondMoment:
        from sfumato.diffusion.importance import loss_second_moment

        return loss_second_moment(schedule, history=self.history, uniform_share=self.uniform_share, strata=self.strata)


class ObjectiveConfig(Component):
    """What is minimized."""

    weight: Annotated[
        Simple | EdmWeight | OutputWeight | Vlb | VlbContinuous | SigmoidWeight | P2 | MinSnr | SoftMinSnr,
        Field(discriminator="kind"),
    ] = Simple()
    times: Annotated[Uniform | LogNormal | LossSecondMoment, Field(discriminator="kind")] = Uniform()
    stratified: bool = Field(default=True, description="Spread the times of a batch evenly, which lowers the variance.")
    bins: int = Field(
        default=256,
        ge=2,
        description="Number of values that a pixel can take; a learned variance or schedule is taught by the "
        "likelihood of these.",
    )
    label_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Fraction of samples that are trained without label."
    )


class OptimizerConfig(Component):
    """The optimizer and its learning rate."""

    method: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="AdamW, or Muon, which orthogonalizes the momentum of matrices and kernels: fewer steps, each a "
        "little longer.",
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="The peak learning rate.")
    warmup: int = Field(default=500, ge=0, description="Steps of linear warm-up.")
    decay: Literal["constant", "cosine", "linear"] = Field(default="constant", description="What follows the warm-up.")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="Decay of AdamW's two moments.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay, on matrices and kernels.")
    clip: float | None = Field(default=1.0, gt=0, description="Largest norm of the gradient.")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the weights of ``module``."""
        from sfumato.training.optimization import Muon, adamw

        make = Muon if self.method == "muon" else adamw
        return make(module, betas=self.betas, weight_decay=self.weight_decay)


class EmaConfig(Component):
    """The average of the weights, which is what samples."""

    gamma: float = Field(default=16.0, ge=0, description="The average remembers about 1/gamma of the training so far.")
    limit: float = Field(default=0.9999, ge=0, le=1, description="The largest decay.")

    def build(self) -> EmaLaw:
        from sfumato.training.ema import power_law

        return power_law(self.gamma, self.limit)


class TrainingConfig(Component):
    """How long, how fast, and what is written."""

    steps: int = Field(default=100_000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(default=64, ge=1, description="Images per step, over all processes.")
    accumulate: int = Field(default=1, ge=1, description="Parts in which a batch is computed, to save memory.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="bf16 computes the network in bfloat16; auto does where the processor has it. On a GPU, fp32 "
        "multiplies in TF32 where it can.",
    )
    seed: int = Field(default=0, ge=0, description="Decides every draw of the training.")
    checkpoint_every: int = Field(default=1000, ge=1, description="Steps between checkpoints.")
    keep: int = Field(default=2, ge=1, description="Checkpoints that are kept.")
    sample_every: int = Field(default=5000, ge=1, description="Steps between sample grids.")
    sample_count: int = Field(default=64, ge=0, description="Images per grid; 0 for no grids.")
    log_every: int = Field(default=10, ge=1, description="Steps between lines of metrics.jsonl.")
    tensorboard: bool = Field(default=False, description="Also write TensorBoard events.")
    channels_last: bool | None = Field(
        default=None,
        description="Keep the channels of an image together in memory, which speeds some networks up; measured at the "
        "start when not given.",
    )
    compile: bool = Field(
        default=False, description="Compile the network first, which takes a minute or two; needs a compiler."
    )
    threads: int | None = Field(default=None, ge=1, description="Processor threads; torch's own choice when not given.")
