"""The configuration of a whole run."""

from __future__ import annotations

from pydantic import model_validator

from sfumato.config.base import Component
from sfumato.config.data import DataConfig
from sfumato.config.model import ModelConfig
from sfumato.config.sampling import EvaluationConfig, SamplingConfig
from sfumato.config.schedule import has_empty_step, has_steps
from sfumato.config.training import EmaConfig, ObjectiveConfig, OptimizerConfig, TrainingConfig


class Config(Component):
    """Everything that decides a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.training.batch_size % self.training.accumulate:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} does not divide into "
                f"training.accumulate {self.training.accumulate} parts"
            )
        schedule, weight = self.model.schedule, self.objective.weight.kind
        if weight == "vlb" and not has_steps(schedule):
            raise ValueError(
                f"objective.weight is vlb, but the schedule {schedule.kind} has no steps; use vlb_continuous"
            )
        if has_empty_step(schedule) and weight != "output":
            raise ValueError(
                "the last step of the schedule has alpha = 0, where the error of the noise teaches nothing; use "
                "objective.weight output"
            )
        if schedule.kind == "learned" and (weight != "vlb_continuous" or self.objective.times.kind != "uniform"):
            raise ValueError(
                "a learned schedule is trained by the bound: use objective.weight vlb_continuous and objective.times "
                "uniform"
            )
        if self.model.learned_variance and self.objective.times.kind not in ("uniform", "loss_second_moment"):
            raise ValueError(
                "model.learned_variance needs objective.times uniform or loss_second_moment: its bound is a sum over "
                "all steps"
            )
        return self
