"""The kinds of each slot of the configuration, and the function or class that each one configures.

A second name after the first is that of a dataclass with further options.
"""

from __future__ import annotations

KINDS: dict[str, dict[str, str]] = {
    "schedule": {
        "linear": "diffusion.schedule:linear",
        "cosine": "diffusion.schedule:cosine",
        "sigmoid": "diffusion.schedule:sigmoid",
        "table": "diffusion.schedule:table",
        "zero_terminal_snr": "diffusion.schedule:zero_terminal_snr",
        "continuous_linear": "diffusion.schedule:ContinuousLinear",
        "continuous_cosine": "diffusion.schedule:ContinuousCosine",
        "edm": "diffusion.schedule:Karras",
        "flow": "diffusion.schedule:RectifiedFlow",
        "learned": "diffusion.learned_schedule:LearnedSchedule",
    },
    "parameterization": {
        kind: f"diffusion.parameterization:{kind}"
        for kind in ("eps", "x0", "v", "score", "velocity", "mean", "edm", "regression")
    },
    "network": {
        "unet": "networks.unet:UNet networks.blueprint:Blueprint",
        "dit": "networks.dit:DiT",
        "mlp": "networks.mlp:MLP",
        "prior": "networks.prior:Prior",
        "classifier": "networks.classifier:Classifier networks.blueprint:Blueprint",
        "given": "networks.slots:given",
    },
    "condition": {
        "label": "conditioning.labels:Label",
        "embedding": "conditioning.embedding:Embedding",
        "tokens": "conditioning.embedding:Tokens",
        "text": "conditioning.text:Text",
        "low_resolution": "conditioning.low_resolution:LowResolution",
        "augmentation": "conditioning.augmentation:Augmentation",
        "colours": "conditioning.colours:Colours",
    },
    "objective": {
        "denoising": "training.losses:Denoising",
        "classification": "training.losses:Classification",
        "contrastive": "training.contrastive:Contrastive",
    },
    "weight": {
        "simple": "diffusion.weighting:simple",
        "edm": "diffusion.weighting:edm_weight",
        "output": "diffusion.weighting:OutputWeight",
        "vlb": "diffusion.weighting:vlb",
        "vlb_continuous": "diffusion.weighting:vlb_continuous",
        "sigmoid": "diffusion.weighting:sigmoid_weight",
        "p2": "diffusion.weighting:p2",
        "min_snr": "diffusion.weighting:min_snr",
        "soft_min_snr": "diffusion.weighting:soft_min_snr",
    },
    "times": {
        "uniform": "diffusion.times:Uniform",
        "between_steps": "diffusion.times:BetweenSteps",
        "log_normal": "diffusion.times:LogNormal",
        "loss_second_moment": "diffusion.times:LossSecondMoment",
    },
    "optimizer": {
        "adamw": "training.optimization:adamw",
        "muon": "training.optimization:Muon",
    },
    "sampler": {
        "best": "sampling.defaults:best_step",
        "ancestral": "sampling.steps:ancestral",
        "ddim": "sampling.steps:ddim",
        "euler": "sampling.steps:edm_euler sampling.steps:Churn",
        "heun": "sampling.steps:edm_heun sampling.steps:Churn",
        "dpm_solver": "sampling.published:dpm_solver_pp",
        "dpm_solver_2": "sampling.published:dpm_solver_2",
        "dpm_solver_2s": "sampling.published:dpm_solver_pp_2s",
        "dpm_solver_3s": "sampling.published:dpm_solver_pp_3s",
        "unipc": "sampling.published:unipc",
        "lms": "sampling.published:lms",
        "deis": "sampling.published:deis",
        "multistep": "sampling.published:exponential_adams",
        "sde_dpm_solver": "sampling.published:sde_dpm_solver_pp",
        "sa_solver": "sampling.published:sa_solver",
        "langevin": "sampling.published:predictor_corrector",
        "adaptive": "sampling.adaptive:adaptive",
        "fitted": "sampling.fitted_solver:follow",
    },
    "grid": {
        "best": "sampling.defaults:best_grid",
        "uniform": "sampling.grids:uniform",
        "trailing": "sampling.grids:trailing",
        "leading": "sampling.grids:leading",
        "quadratic": "sampling.grids:quadratic",
        "timesteps": "sampling.timesteps:timesteps",
        "log_snr": "sampling.grids:log_snr",
        "karras": "sampling.grids:karras",
        "list": "sampling.grids:listed",
        "optimal": "sampling.grids:optimal_grid",
        "fitted": "sampling.fitted_solver:fitted_grid",
    },
}

SOLVERS: dict[str, dict[str, object]] = {
    "ddpm": {"kind": "ancestral"},
    "dpm++2m": {"kind": "dpm_solver", "order": 2},
    "dpm++3m": {"kind": "dpm_solver", "order": 3},
    "dpm++2s": {"kind": "dpm_solver_2s"},
    "dpm++3s": {"kind": "dpm_solver_3s"},
    "dpm++2m-sde": {"kind": "sde_dpm_solver", "order": 2},
    "dpm++3m-sde": {"kind": "sde_dpm_solver", "order": 3},
}
"""Solvers by the names that other programs give them, besides the kinds of the slot sampler."""
