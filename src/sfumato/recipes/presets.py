"""Published models as recipes: their networks with the settings that their authors trained them by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sfumato.config import (
    Config,
    DataConfig,
    EdmWeight,
    EmaConfig,
    LogNormal,
    ObjectiveConfig,
    OptimizerConfig,
    Simple,
    TrainingConfig,
    Uniform,
)
from sfumato.errors import InputError, nearest
from sfumato.recipes.published import DIT, EDM, PRESETS


@dataclass(frozen=True)
class Trained:
    """How a published model was trained; its dropout is part of its network.

    Attributes:
        steps: optimizer steps.
        batch: pictures per step.
        learning_rate: its peak.
        ema: the average of the weights.
        warmup: steps of linear warm-up.
        clip: largest norm of the gradient.
        flip: whether half of the pictures are mirrored.
    """

    steps: int
    batch: int
    learning_rate: float
    ema: EmaConfig
    warmup: int = 0
    clip: float | None = None
    flip: bool = False


# a constant decay, but for a plain mean before there is enough to forget
_CONSTANT = EmaConfig(gamma=0.0, limit=0.9999)


def _edm(millions: int, batch: int, learning_rate: float, half_life: float, flip: bool) -> Trained:
    """Karras et al. 2022, table 7: duration and half-life in millions of pictures, after 10 million of warm-up.

    Their half-life is at most a twentieth of the pictures so far, 0.5^(20 / k) at step k: a power law.
    """
    ema = EmaConfig(gamma=20.0 * math.log(2.0) - 1.0, limit=0.5 ** (batch / (1e6 * half_life)))
    return Trained(millions * 10**6 // batch, batch, learning_rate, ema, 10**7 // batch, None, flip)


_CIFAR10 = _edm(200, 512, 1e-3, 0.5, True)
_FACES = _edm(200, 256, 2e-4, 0.5, True)

TRAINED: dict[str, Trained] = {
    # Ho et al. 2020, app. B and code
    "ddpm-cifar10": Trained(800_000, 128, 2e-4, _CONSTANT, 5000, 1.0, True),
    "ddpm-256": Trained(500_000, 64, 2e-5, _CONSTANT, 5000, 1.0, True),
    # Nichol and Dhariwal 2021
    "iddpm-cifar10": Trained(500_000, 128, 1e-4, _CONSTANT),
    "iddpm-64": Trained(1_500_000, 128, 1e-4, _CONSTANT),
    "iddpm-64-conditional": Trained(250_000, 2048, 3e-4, _CONSTANT),
    # Dhariwal and Nichol 2021, app. I and code
    "adm-64": Trained(540_000, 2048, 3e-4, _CONSTANT, flip=True),
    "adm-128": Trained(4_360_000, 256, 1e-4, _CONSTANT, flip=True),
    "adm-256": Trained(1_980_000, 256, 1e-4, _CONSTANT, flip=True),
    "adm-256-unconditional": Trained(1_980_000, 256, 1e-4, _CONSTANT, flip=True),
    "adm-512": Trained(1_940_000, 256, 1e-4, _CONSTANT, flip=True),
    "ddpmpp-cifar10": _CIFAR10,
    "ncsnpp-cifar10": _CIFAR10,
    "ddpmpp-64": _FACES,
    "ncsnpp-64": _FACES,
    # Peebles and Xie 2023, sec. 4; the largest went on to 7 million steps
    **{name: Trained(7_000_000 if name == "DiT-XL/2" else 400_000, 256, 1e-4, _CONSTANT, flip=True) for name in DIT},
    "edm-imagenet64": _edm(2500, 4096, 1e-4, 50.0, False),
}
"""How the published models were trained, by name."""


def preset(name: str) -> Config:
    """The recipe of a published model, for data of any size and channels that its network takes.

    Resolutions keep their number and widths, and attention its resolutions counted from the finest, whatever the size.
    A model that was told classes wants data with labels (``data.labels``). EDM's augmentation of pictures is not a part
    of it, nor are its loss in half precision and the sharing of a batch among devices.

    ::

        config = sfumato.recipes.preset("ddpm-cifar10")

    Raises:
        InputError: for an unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"There is no published model {name!r}{nearest(name, PRESETS)}")
    published, trained = PRESETS[name](), TRAINED[name]
    levels = name in EDM
    return Config(
        data=DataConfig(flip=trained.flip, labels=published.classes > 0),
        model=published.model,
        objective=ObjectiveConfig(
            weight=EdmWeight(sigma_data=0.5) if levels else Simple(),
            times=LogNormal(mean=-1.2, std=1.2) if levels else Uniform(),
            stratified=False,
            label_dropout=0.1 if published.model.network.kind == "dit" else 0.0,
        ),
        optimizer=OptimizerConfig(
            learning_rate=trained.learning_rate, warmup=trained.warmup, betas=(0.9, 0.999), clip=trained.clip
        ),
        ema=trained.ema,
        training=TrainingConfig(steps=trained.steps, batch_size=trained.batch),
        sampling=published.sampling,
    )
