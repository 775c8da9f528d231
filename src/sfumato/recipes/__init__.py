"""Recipes: whole configurations as nested dictionaries, which :func:`sfumato.config.parse` takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sfumato.errors import InputError, nearest
from sfumato.recipes.published import PRESETS, preset

Recipe = dict[str, Any]


def _tiny(channels: tuple[int, ...], patch: int = 1) -> Recipe:
    """A U-Net of one block per resolution and no attention: what a CPU trains in seconds."""
    return {
        "kind": "unet",
        "channels": channels,
        "patch": patch,
        "blocks": 1,
        "attention": (),
        "middle": 1,
        "middle_attention": False,
        "skips": "blocks",
        "resample": "fixed",
        "groups": 8,
        "embedding": 96,
        "time_features": 64,
        "time_scale": 250.0,
    }


def _edm(network: Recipe, sigma_max: float) -> Recipe:
    """A model with EDM's schedule and preconditioning."""
    schedule = {"kind": "edm", "sigma_max": sigma_max}
    return {"schedule": schedule, "parameterization": {"kind": "edm"}, "network": network}


def _muon(warmup: int) -> Recipe:
    method = {"kind": "muon", "betas": (0.9, 0.99)}
    return {"method": method, "learning_rate": 8e-3, "warmup": warmup, "decay": "cosine"}


def digits() -> Recipe:
    """scikit-learn's 1,797 digits of 8x8 pixels, by class, in about a minute on two slow CPU cores."""
    return {
        "data": {"source": "digits", "holdout": 797},
        "conditions": {"label": {"kind": "label", "drop": 0.03, "draw": "uniform"}},
        "model": _edm(_tiny(channels=(16, 32)), sigma_max=30.0),
        "objective": {"weight": {"kind": "edm"}, "times": {"kind": "log_normal", "mean": -0.6, "std": 0.9}, "bins": 17},
        "optimizer": _muon(warmup=40),
        "ema": {"gamma": 12.0, "limit": 1.0},
        "training": {
            "steps": 750,
            "batch_size": 128,
            "precision": "fp32",
            "channels_last": True,
            "checkpoint_every": 250,
            "sample_every": 250,
            "sample_count": 100,
        },
        "sampling": {"sampler": {"kind": "dpm_solver"}, "grid": {"kind": "karras"}, "steps": 16, "batch_size": 500},
        "evaluation": {"samples": 1000},
    }


def small() -> Recipe:
    """Small images, such as MNIST's, of sides that 4 divides: patches of 2 and Muon, minutes on two CPU cores.

    It trains briefly; noise during the sampling (DDIM with eta 1) takes back a part of the errors of such weights.
    """
    return {
        "model": _edm(_tiny(channels=(32, 64), patch=2), sigma_max=30.0),
        "objective": {"weight": {"kind": "edm"}, "times": {"kind": "log_normal", "mean": 0.0, "std": 1.2}},
        "optimizer": _muon(warmup=200),
        "ema": {"gamma": 12.0, "limit": 1.0},
        "training": {"steps": 5000, "batch_size": 64, "sample_every": 2500},
        "sampling": {
            "sampler": {"kind": "ddim", "eta": 1.0},
            "grid": {"kind": "karras"},
            "steps": 40,
            "batch_size": 500,
        },
        "evaluation": {"samples": 1000},
    }


def images() -> Recipe:
    """Images of any kind: EDM's preconditioning, times and sampler on a U-Net of 6 million parameters."""
    return {
        "model": _edm({"kind": "unet", "attention": (2,)}, sigma_max=80.0),
        "objective": {"weight": {"kind": "edm"}, "times": {"kind": "log_normal"}},
        "optimizer": {"learning_rate": 2e-4, "warmup": 500},
    }


def ddpm() -> Recipe:
    """The recipe of the lecture and of Ho et al. 2020: linear betas, noise prediction, L_simple, ancestral sampling."""
    return {
        "model": {
            "schedule": {"kind": "linear"},
            "parameterization": {"kind": "eps"},
            "network": {"kind": "unet", "attention": (2,)},
        },
        "objective": {"weight": {"kind": "simple"}, "times": {"kind": "uniform"}, "stratified": False},
        "optimizer": {"learning_rate": 2e-4, "warmup": 5000},
        "ema": {"gamma": 0.0, "limit": 0.9999},
        "training": {"steps": 800_000, "batch_size": 128},
        "sampling": {"sampler": {"kind": "ancestral", "variance": "large"}, "grid": {"kind": "uniform"}, "steps": 1000},
    }


def vectors() -> Recipe:
    """Vectors and points of the plane: EDM's preconditioning and a perceptron, in two minutes on one core."""
    return {
        "data": {"layout": "NC"},
        "model": _edm({"kind": "mlp", "time_kind": "fourier"}, sigma_max=30.0),
        "objective": {"weight": {"kind": "edm"}, "times": {"kind": "log_normal"}},
        "optimizer": {
            "method": {"kind": "adamw", "betas": (0.9, 0.99)},
            "learning_rate": 2e-3,
            "warmup": 200,
            "decay": "cosine",
        },
        "ema": {"gamma": 12.0, "limit": 1.0},
        "training": {
            "steps": 5000,
            "batch_size": 256,
            "precision": "fp32",
            "sample_every": 2500,
            "sample_count": 2000,
            "log_every": 50,
        },
        "sampling": {"batch_size": 2000},
    }


RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "small": small,
    "images": images,
    "ddpm": ddpm,
    "vectors": vectors,
    **{name: partial(preset, name) for name in PRESETS},
}
"""Whole configurations by name, including those of published models."""


def named(recipe: str | None, source: str | None, layout: str | None = None) -> Recipe:
    """The recipe of that name, or the one that suits a data source and the layout of its array, for that source."""
    if recipe is not None and recipe not in RECIPES:
        raise InputError(f"There is no recipe {recipe!r}{nearest(recipe, RECIPES)}")
    suits = "vectors" if layout == "NC" else "digits" if source in (None, "digits") else "images"
    values = RECIPES[recipe or suits]()
    return values if source is None else values | {"data": values.get("data", {}) | {"source": source}}
