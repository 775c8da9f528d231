"""The configuration of a run: one frozen, validated model per component, each with ``build()``.

Importing it costs no torch: the libraries that compute are imported by the ``build`` methods.
"""

from sfumato.config.base import Component, keys, merge, parse, read_file
from sfumato.config.data import DataConfig
from sfumato.config.model import (
    X0,
    ContinuousCosine,
    ContinuousLinear,
    Cosine,
    Edm,
    Eps,
    Karras,
    Linear,
    ModelConfig,
    UNetConfig,
    V,
)
from sfumato.config.run import Config
from sfumato.config.sampling import (
    Ancestral,
    Ddim,
    DpmSolver,
    EvaluationConfig,
    Heun,
    KarrasGrid,
    SamplingConfig,
    UniformGrid,
)
from sfumato.config.training import (
    EdmWeight,
    EmaConfig,
    LogNormal,
    ObjectiveConfig,
    OptimizerConfig,
    Simple,
    TrainingConfig,
    Uniform,
)

__all__ = [
    "X0",
    "Ancestral",
    "Component",
    "Config",
    "ContinuousCosine",
    "ContinuousLinear",
    "Cosine",
    "DataConfig",
    "Ddim",
    "DpmSolver",
    "Edm",
    "EdmWeight",
    "EmaConfig",
    "Eps",
    "EvaluationConfig",
    "Heun",
    "Karras",
    "KarrasGrid",
    "Linear",
    "LogNormal",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "SamplingConfig",
    "Simple",
    "TrainingConfig",
    "UNetConfig",
    "Uniform",
    "UniformGrid",
    "V",
    "keys",
    "merge",
    "parse",
    "read_file",
]
