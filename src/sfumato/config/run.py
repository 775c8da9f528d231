"""The configuration of a whole run."""

from __future__ import annotations

from pydantic import model_validator

from sfumato.config.base import Component
from sfumato.config.data import DataConfig
from sfumato.config.model import ModelConfig
from sfumato.config.sampling import EvaluationConfig, SamplingConfig
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
        return self
