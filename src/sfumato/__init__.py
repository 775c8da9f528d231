"""Sfumato: train, sample, evaluate and understand denoising diffusion models.

The names below are imported when they are first used, so that ``import sfumato`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sfumato.config import Config
    from sfumato.diffusion.denoiser import Denoiser, Prediction
    from sfumato.diffusion.gaussian import posterior
    from sfumato.diffusion.level import Level
    from sfumato.diffusion.objective import denoising_loss
    from sfumato.diffusion.schedule import (
        ContinuousCosine,
        ContinuousLinear,
        Discrete,
        Karras,
        Schedule,
        cosine,
        linear,
    )
    from sfumato.errors import InputError
    from sfumato.models.calibrate import tune
    from sfumato.models.edit import inpaint, interpolate, invert, sdedit
    from sfumato.models.evaluate import evaluate
    from sfumato.models.likelihood import bits_per_dim
    from sfumato.models.model import Model, load
    from sfumato.networks.dit import DiT
    from sfumato.networks.mlp import MLP
    from sfumato.networks.unet import UNet
    from sfumato.runs.train import train
    from sfumato.sampling.ancestral import ancestral
    from sfumato.sampling.ddim import ddim
    from sfumato.sampling.dpm_solver import dpm_solver_pp_2m
    from sfumato.sampling.heun import heun
    from sfumato.sampling.sample import sample

_HOMES = {
    "MLP": "networks.mlp",
    "Config": "config",
    "ContinuousCosine": "diffusion.schedule",
    "ContinuousLinear": "diffusion.schedule",
    "Denoiser": "diffusion.denoiser",
    "DiT": "networks.dit",
    "Discrete": "diffusion.schedule",
    "InputError": "errors",
    "Karras": "diffusion.schedule",
    "Level": "diffusion.level",
    "Model": "models.model",
    "Prediction": "diffusion.denoiser",
    "Schedule": "diffusion.schedule",
    "UNet": "networks.unet",
    "ancestral": "sampling.ancestral",
    "bits_per_dim": "models.likelihood",
    "cosine": "diffusion.schedule",
    "ddim": "sampling.ddim",
    "denoising_loss": "diffusion.objective",
    "dpm_solver_pp_2m": "sampling.dpm_solver",
    "evaluate": "models.evaluate",
    "heun": "sampling.heun",
    "inpaint": "models.edit",
    "interpolate": "models.edit",
    "invert": "models.edit",
    "linear": "diffusion.schedule",
    "load": "models.model",
    "posterior": "diffusion.gaussian",
    "sample": "sampling.sample",
    "sdedit": "models.edit",
    "train": "runs.train",
    "tune": "models.calibrate",
}

__all__ = [
    "MLP",
    "Config",
    "ContinuousCosine",
    "ContinuousLinear",
    "Denoiser",
    "DiT",
    "Discrete",
    "InputError",
    "Karras",
    "Level",
    "Model",
    "Prediction",
    "Schedule",
    "UNet",
    "ancestral",
    "bits_per_dim",
    "cosine",
    "ddim",
    "denoising_loss",
    "dpm_solver_pp_2m",
    "evaluate",
    "heun",
    "inpaint",
    "interpolate",
    "invert",
    "linear",
    "load",
    "posterior",
    "sample",
    "sdedit",
    "train",
    "tune",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sfumato.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
