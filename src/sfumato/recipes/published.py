"""Published models by name: their networks, how their authors trained and sample them, and their sizes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from sfumato.errors import InputError, nearest
from sfumato.recipes.openai import GUIDED, guided
from sfumato.recipes.settings import Published, Settings, numbers, resolutions, sinusoid_period, with_defaults


def ddpm(channels: tuple[int, ...], attention: int, size: int, dropout: float) -> Published:
    """The network of DDPM (Ho et al. 2020, app. B)."""
    network = {
        "kind": "unet",
        "channels": channels,
        "attention": (attention,),
        "resample": "asymmetric",
        "heads": 1,
        "eps": 1e-6,
        "time_period": sinusoid_period(channels[0]),
        "modulation": "additive",
        "dropout": dropout,
        "initialization": "xavier",
    }
    model = {"schedule": {"kind": "linear"}, "parameterization": {"kind": "eps"}, "network": network}
    sampling = {"sampler": {"kind": "ancestral", "variance": "large"}, "steps": 1000}
    return Published(model, (3, size, size), 0, sampling)


# fmt: off
EDM_DEFAULTS: dict[str, Any] = {
    "class_name": "SongUNet", "img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 0,
    "augment_dim": 0, "model_channels": 128, "channel_mult": (2, 2, 2), "channel_mult_emb": 4, "channel_mult_noise": 1,
    "num_blocks": 4, "attn_resolutions": (16,), "dropout": 0.1, "label_dropout": 0.0, "embedding_type": "positional",
    "encoder_type": "standard", "decoder_type": "standard", "resample_filter": (1, 1), "sigma_data": 0.5,
}
# fmt: on
"""The defaults of the settings of EDM's networks."""


def edm(settings: Settings) -> Published:
    """A model by the settings of EDM's ``SongUNet`` (DDPM++ and NCSN++) or ``DhariwalUNet`` (ADM)."""
    name = settings.get("class_name", "SongUNet")
    if name not in ("SongUNet", "DhariwalUNet"):
        raise InputError(f"EDM's class {name!r} is not known here; SongUNet and DhariwalUNet can be loaded.")
    given = with_defaults(settings, EDM_DEFAULTS, name)
    song = name == "SongUNet"
    for key, values in (
        ("embedding_type", ("positional", "fourier") if song else ("positional",)),
        ("encoder_type", ("standard", "residual") if song else ("standard",)),
        ("decoder_type", ("standard",)),
        ("out_channels", (given["in_channels"],)),
    ):
        if given[key] not in values:
            raise InputError(
                f"A {name} whose {key} is {given[key]!r} has no equivalent here; "
                f"{' or '.join(map(repr, values))} can be loaded."
            )
    width, size = given["model_channels"], given["img_resolution"]
    channels = tuple(int(multiple * width) for multiple in given["channel_mult"])
    network: dict[str, Any] = {
        "kind": "unet",
        "channels": channels,
        "blocks": given["num_blocks"],
        "attention": resolutions(numbers(given["attn_resolutions"]), size, len(channels)),
        "embedding": width * given["channel_mult_emb"],
        "dropout": given["dropout"],
        "group_channels": 4,
    }
    if song:
        features, fourier = width * given["channel_mult_noise"], given["embedding_type"] == "fourier"
        network |= {
            "first": width,
            "up_attention": "last",
            "resample": "projected",
            "taps": tuple(map(float, given["resample_filter"])),
            "residual_input": given["encoder_type"] == "residual",
            "rescale": True,
            "heads": 1,
            "eps": 1e-6,
            "time_features": features,
            "time_kind": "fourier" if fourier else "sinusoidal",
            "time_scale": 16.0 * 2.0 * math.pi if fourier else 1.0,
            "time_period": sinusoid_period(features),
            "vector_in": "features",
            "modulation": "additive",
            "initialization": "xavier",
        }
    else:
        network |= {"resample": "block", "head_channels": 64, "time_features": width, "modulation": "adaptive"}
    parameterization = {"kind": "edm", "sigma_data": given["sigma_data"]}
    model = {"schedule": {"kind": "edm"}, "parameterization": parameterization, "network": network}
    sampling = {"sampler": {"kind": "heun"}, "grid": {"kind": "karras"}, "steps": 18 if size <= 32 else 40}
    return Published(model, (given["in_channels"], size, size), given["label_dim"], sampling)


def dit(preset: str) -> Published:
    """A transformer of Peebles and Xie 2023 on the latents of ImageNet at 256x256; their autoencoder is not part of it.

    The variance is learned (sec. 4 there), and samples take 250 steps.
    """
    model = {
        "schedule": {"kind": "linear"},
        "parameterization": {"kind": "eps"},
        "network": {"kind": "dit", "preset": preset},
        "learned_variance": True,
    }
    sampling = {"sampler": {"kind": "ancestral", "variance": "learned"}, "steps": 250, "clip": False}
    return Published(model, (4, 32, 32), 1000, sampling, drop=0.1)


_NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}
_AT_64: dict[str, Any] = {"img_resolution": 64, "channel_mult": (1, 2, 2, 2), "dropout": 0.05}

EDM: dict[str, dict[str, Any]] = {
    "ddpmpp-cifar10": {"augment_dim": 9, "dropout": 0.13},
    "ncsnpp-cifar10": {"augment_dim": 9, "dropout": 0.13} | _NCSNPP,
    "ddpmpp-64": {"augment_dim": 9} | _AT_64,
    "ncsnpp-64": {"augment_dim": 9} | _AT_64 | _NCSNPP,
    "edm-imagenet64": {
        "class_name": "DhariwalUNet",
        "img_resolution": 64,
        "label_dim": 1000,
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    },
}
"""The settings of the published networks of Karras et al. 2022."""

PRESETS: dict[str, Published] = {
    "ddpm-cifar10": ddpm((128, 256, 256, 256), 1, 32, 0.1),
    "ddpm-256": ddpm((128, 128, 256, 256, 512, 512), 4, 256, 0.0),
    **{name: guided(flags) for name, flags in GUIDED.items()},
    **{name: edm(settings) for name, settings in EDM.items()},
    **{name: dit(name) for name in ("DiT-S/2", "DiT-B/2", "DiT-L/2", "DiT-XL/2")},
}
"""Published models by name."""


@dataclass(frozen=True)
class Training:
    """The size of a published model, and how it was trained.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulates of one call for one sample.
        steps: optimizer steps.
        batch: images per step.
        learning_rate: its peak.
        flip: whether half of the images are mirrored.
        warmup: steps of linear warm-up.
        clip: largest norm of the gradient.
        half_life: half-life of the average of the weights, in images; None for a constant decay of 0.9999.
    """

    parameters: int
    macs: int
    steps: int
    batch: int
    learning_rate: float
    flip: bool = True
    warmup: int = 0
    clip: float | None = None
    half_life: float | None = None

    @property
    def ema(self) -> dict[str, float]:
        """The average of the weights.

        EDM's half-life is at most a twentieth of the images so far, 0.5^(20 / k) at step k: a power law.
        """
        if self.half_life is None:
            return {"gamma": 0.0, "limit": 0.9999}
        return {"gamma": 20.0 * math.log(2.0) - 1.0, "limit": 0.5 ** (self.batch / self.half_life)}


def _edm(
    size: tuple[int, int], millions: int, batch: int, rate: float, half_life: float, flip: bool = True
) -> Training:
    """Karras et al. 2022, table 7: the duration in millions of images, after 10 million of warm-up."""
    steps, warmup = millions * 10**6 // batch, 10**7 // batch
    return Training(*size, steps, batch, rate, flip, warmup, half_life=half_life)


TRAINED: dict[str, Training] = {
    # Ho et al. 2020, app. B and code
    "ddpm-cifar10": Training(35_746_307, 6_221_856_768, 800_000, 128, 2e-4, warmup=5000, clip=1.0),
    "ddpm-256": Training(113_673_219, 248_513_757_184, 500_000, 64, 2e-5, warmup=5000, clip=1.0),
    # Nichol and Dhariwal 2021
    "iddpm-cifar10": Training(52_532_870, 8_386_707_456, 500_000, 128, 1e-4, flip=False),
    "iddpm-64": Training(121_043_974, 39_736_377_344, 1_500_000, 128, 1e-4, flip=False),
    "iddpm-64-conditional": Training(273_020_166, 89_085_591_552, 250_000, 2048, 3e-4, flip=False),
    # Dhariwal and Nichol 2021, app. I and code
    "adm-64": Training(295_869_510, 109_678_018_560, 540_000, 2048, 3e-4),
    "adm-128": Training(421_489_670, 306_927_894_528, 4_360_000, 256, 1e-4),
    "adm-256": Training(553_787_398, 1_119_832_768_512, 1_980_000, 256, 1e-4),
    "adm-256-unconditional": Training(552_762_374, 1_119_832_768_512, 1_980_000, 256, 1e-4),
    "adm-512": Training(558_944_902, 1_982_334_763_008, 1_940_000, 256, 1e-4),
    "ddpmpp-cifar10": _edm((55_732_739, 21_190_213_632), 200, 512, 1e-3, 5e5),
    "ncsnpp-cifar10": _edm((56_395_523, 21_395_926_016), 200, 512, 1e-3, 5e5),
    "ddpmpp-64": _edm((61_804_419, 41_861_447_680), 200, 256, 2e-4, 5e5),
    "ncsnpp-64": _edm((62_758_787, 42_429_822_464), 200, 256, 2e-4, 5e5),
    "edm-imagenet64": _edm((295_864_323, 109_656_784_896), 2500, 4096, 1e-4, 5e7, flip=False),
    # Peebles and Xie 2023, sec. 4; the largest went on to 7 million steps
    "DiT-S/2": Training(32_865_056, 6_055_673_856, 400_000, 256, 1e-4),
    "DiT-B/2": Training(130_315_808, 23_005_102_080, 400_000, 256, 1e-4),
    "DiT-L/2": Training(457_840_672, 80_697_622_528, 400_000, 256, 1e-4),
    "DiT-XL/2": Training(674_834_720, 118_621_421_568, 7_000_000, 256, 1e-4),
}
"""The size of the published models, and how they were trained, by name."""


def preset(name: str) -> dict[str, Any]:
    """The whole configuration of a published model, for data of any size and channels that its network takes.

    Resolutions keep their number and widths, and attention its resolutions counted from the finest, at any size.
    A conditional model needs data with labels. EDM's augmentation of images, its loss in half precision and the
    distribution of a batch over devices are not part of it.

    ::

        config = sfumato.recipes.preset("ddpm-cifar10")
    """
    if name not in PRESETS:
        raise InputError(f"There is no published model {name!r}{nearest(name, PRESETS)}")
    published, trained = copy.deepcopy(PRESETS[name]), TRAINED[name]
    objective = {"weight": {"kind": "simple"}, "times": {"kind": "uniform"}}
    if name in EDM:
        times = {"kind": "log_normal", "mean": -1.2, "std": 1.2}
        objective = {"weight": {"kind": "edm", "sigma_data": 0.5}, "times": times}
    return {
        "data": {"flip": trained.flip},
        "conditions": published.conditions,
        "model": published.model,
        "objective": objective | {"stratified": False},
        "optimizer": {"learning_rate": trained.learning_rate, "warmup": trained.warmup, "clip": trained.clip},
        "ema": trained.ema,
        "training": {"steps": trained.steps, "batch_size": trained.batch},
        "sampling": published.sampling,
    }
