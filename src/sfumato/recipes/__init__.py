"""Recipes: functions that return whole configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sfumato.config import (
    Ancestral,
    Config,
    DataConfig,
    Ddim,
    DpmSolver,
    Edm,
    EdmWeight,
    EmaConfig,
    Eps,
    EvaluationConfig,
    Karras,
    KarrasGrid,
    Linear,
    LogNormal,
    MLPConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SamplingConfig,
    Simple,
    TrainingConfig,
    UNetConfig,
    Uniform,
    UniformGrid,
)
from sfumato.errors import InputError, nearest
from sfumato.recipes.presets import preset
from sfumato.recipes.published import PRESETS


def _tiny(channels: tuple[int, ...], patch: int = 1) -> UNetConfig:
    """A U-Net of one block per resolution and no attention: what a processor trains in seconds."""
    return UNetConfig(
        channels=channels,
        patch=patch,
        blocks=1,
        attention=(),
        middle=1,
        middle_attention=False,
        skips="blocks",
        resample="fixed",
        groups=8,
        embedding=96,
        time_features=64,
        time_scale=250.0,
    )


def digits() -> Config:
    """scikit-learn's 1,797 digits of 8x8 pixels, by class, in about a minute on two slow processor cores."""
    return Config(
        data=DataConfig(source="digits", labels=True, holdout=797),
        model=ModelConfig(
            schedule=Karras(sigma_max=30.0),
            parameterization=Edm(),
            network=_tiny(channels=(16, 32)),
        ),
        objective=ObjectiveConfig(weight=EdmWeight(), times=LogNormal(mean=-0.6, std=0.9), label_dropout=0.0, bins=17),
        optimizer=OptimizerConfig(method="muon", learning_rate=8e-3, warmup=40, decay="cosine", betas=(0.9, 0.99)),
        ema=EmaConfig(gamma=12.0, limit=1.0),
        training=TrainingConfig(
            steps=750,
            batch_size=128,
            precision="fp32",
            channels_last=True,
            checkpoint_every=250,
            sample_every=250,
            sample_count=100,
        ),
        sampling=SamplingConfig(sampler=DpmSolver(), grid=KarrasGrid(), steps=16, classes="uniform", batch_size=500),
        evaluation=EvaluationConfig(samples=1000),
    )


def small() -> Config:
    """Small images, such as MNIST's, of sides that 4 divides: patches of 2 and Muon, minutes on two processor cores.

    Its weights are young when they sample; noise during the sampling (DDIM with eta 1) takes back a part of their
    errors.
    """
    return Config(
        model=ModelConfig(
            schedule=Karras(sigma_max=30.0),
            parameterization=Edm(),
            network=_tiny(channels=(32, 64), patch=2),
        ),
        objective=ObjectiveConfig(weight=EdmWeight(), times=LogNormal(mean=0.0, std=1.2)),
        optimizer=OptimizerConfig(method="muon", learning_rate=8e-3, warmup=200, decay="cosine", betas=(0.9, 0.99)),
        ema=EmaConfig(gamma=12.0, limit=1.0),
        training=TrainingConfig(steps=5000, batch_size=64, sample_every=2500),
        sampling=SamplingConfig(sampler=Ddim(eta=1.0), grid=KarrasGrid(), steps=40, classes="uniform", batch_size=500),
        evaluation=EvaluationConfig(samples=1000),
    )


def images() -> Config:
    """Images of any kind: EDM's preconditioning, times and sampler on a U-Net of 6 million parameters."""
    return Config(
        model=ModelConfig(schedule=Karras(), parameterization=Edm(), network=UNetConfig()),
        objective=ObjectiveConfig(weight=EdmWeight(), times=LogNormal()),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup=500),
        sampling=SamplingConfig(),
    )


def ddpm() -> Config:
    """The recipe of the lecture and of Ho et al. 2020: linear betas, noise prediction, L_simple, ancestral sampling."""
    return Config(
        model=ModelConfig(schedule=Linear(), parameterization=Eps()),
        objective=ObjectiveConfig(weight=Simple(), times=Uniform(), stratified=False),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup=5000),
        ema=EmaConfig(gamma=0.0, limit=0.9999),
        training=TrainingConfig(steps=800_000, batch_size=128),
        sampling=SamplingConfig(sampler=Ancestral(variance="large"), grid=UniformGrid(), steps=1000),
    )


def vectors() -> Config:
    """Vectors and points of the plane: EDM's preconditioning and a perceptron, in two minutes on one core."""
    return Config(
        data=DataConfig(layout="NC"),
        model=ModelConfig(
            schedule=Karras(sigma_max=30.0), parameterization=Edm(), network=MLPConfig(time_kind="fourier")
        ),
        objective=ObjectiveConfig(weight=EdmWeight(), times=LogNormal()),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=200, decay="cosine", betas=(0.9, 0.99)),
        ema=EmaConfig(gamma=12.0, limit=1.0),
        training=TrainingConfig(
            steps=5000, batch_size=256, precision="fp32", sample_every=2500, sample_count=2000, log_every=50
        ),
        sampling=SamplingConfig(batch_size=2000),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "digits": digits,
    "small": small,
    "images": images,
    "ddpm": ddpm,
    "vectors": vectors,
    **{name: partial(preset, name) for name in PRESETS},
}
"""Whole configurations by name, those of published models too."""


def named(recipe: str | None, source: str | None, layout: str | None = None) -> Config:
    """The recipe of that name, or the one that suits a data source and the layout of its array, for that source.

    Raises:
        InputError: for an unknown name.
    """
    if recipe is not None and recipe not in RECIPES:
        raise InputError(f"There is no recipe {recipe!r}{nearest(recipe, RECIPES)}")
    suits = "vectors" if layout == "NC" else "digits" if source in (None, "digits") else "images"
    config = RECIPES[recipe or suits]()
    if source is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
