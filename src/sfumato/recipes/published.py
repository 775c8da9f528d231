"""Networks of papers by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from sfumato.config import (
    Ancestral,
    DiTConfig,
    Edm,
    Eps,
    Heun,
    Karras,
    KarrasGrid,
    Linear,
    ModelConfig,
    SamplingConfig,
    UNetConfig,
    parse,
)
from sfumato.config.network import DiTPreset
from sfumato.errors import InputError
from sfumato.recipes.openai import GUIDED, guided
from sfumato.recipes.settings import Published, Settings, filled, levels, numbers, to_the_end


def ddpm(channels: tuple[int, ...], attention: int, size: int, dropout: float) -> Published:
    """The network of DDPM (Ho et al. 2020, app. B)."""
    network = UNetConfig(
        channels=channels,
        attention=(attention,),
        resample="asymmetric",
        heads=1,
        eps=1e-6,
        time_period=to_the_end(channels[0]),
        modulation="additive",
        dropout=dropout,
        initialization="xavier",
    )
    model = ModelConfig(schedule=Linear(), parameterization=Eps(), network=network)
    return Published(model, (3, size, size), 0, SamplingConfig(sampler=Ancestral(variance="large"), steps=1000))


EDM_DEFAULTS: dict[str, Any] = {
    "class_name": "SongUNet",
    "img_resolution": 32,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": (2, 2, 2),
    "channel_mult_emb": 4,
    "channel_mult_noise": 1,
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.1,
    "label_dropout": 0.0,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
    "sigma_data": 0.5,
}
"""The settings of EDM's networks when they are not given."""


def edm(settings: Settings) -> Published:
    """A model by the settings of EDM's ``SongUNet`` (DDPM++ and NCSN++) or ``DhariwalUNet`` (ADM).

    Raises:
        InputError: for another class, or a setting that is unknown or has no equivalent here.
    """
    kind = settings.get("class_name", "SongUNet")
    if kind not in ("SongUNet", "DhariwalUNet"):
        raise InputError(f"EDM's class {kind!r} is not known here; SongUNet and DhariwalUNet can be loaded.")
    given = filled(settings, EDM_DEFAULTS, kind)
    song = kind == "SongUNet"
    for name, values in (
        ("embedding_type", ("positional", "fourier") if song else ("positional",)),
        ("encoder_type", ("standard", "residual") if song else ("standard",)),
        ("decoder_type", ("standard",)),
        ("out_channels", (given["in_channels"],)),
    ):
        if given[name] not in values:
            raise InputError(
                f"A {kind} whose {name} is {given[name]!r} has no equivalent here; "
                f"{' or '.join(map(repr, values))} can be loaded."
            )
    width, size = given["model_channels"], given["img_resolution"]
    channels = [int(multiple * width) for multiple in given["channel_mult"]]
    common: dict[str, Any] = {
        "channels": channels,
        "blocks": given["num_blocks"],
        "attention": levels(numbers(given["attn_resolutions"]), size, len(channels)),
        "embedding": width * given["channel_mult_emb"],
        "dropout": given["dropout"],
        "group_channels": 4,
    }
    if song:
        features, fourier = width * given["channel_mult_noise"], given["embedding_type"] == "fourier"
        own: dict[str, Any] = {
            "first": width,
            "up_attention": "last",
            "resample": "projected",
            "taps": given["resample_filter"],
            "residual_input": given["encoder_type"] == "residual",
            "rescale": True,
            "heads": 1,
            "eps": 1e-6,
            "time_features": features,
            "time_kind": "fourier" if fourier else "sinusoidal",
            "time_scale": 16.0 * 2.0 * math.pi if fourier else 1.0,
            "time_period": to_the_end(features),
            "vector_in": "features",
            "modulation": "additive",
            "initialization": "xavier",
        }
    else:
        own = {"resample": "block", "head_channels": 64, "time_features": width, "modulation": "adaptive"}
    model = ModelConfig(
        schedule=Karras(),
        parameterization=Edm(sigma_data=given["sigma_data"]),
        network=parse(UNetConfig, common | own, origin=f"the settings of the {kind}"),
    )
    sampling = SamplingConfig(sampler=Heun(), grid=KarrasGrid(), steps=18 if size <= 32 else 40, classes="uniform")
    return Published(model, (given["in_channels"], size, size), given["label_dim"], sampling)


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

DIT: tuple[DiTPreset, ...] = ("DiT-S/2", "DiT-B/2", "DiT-L/2", "DiT-XL/2")
"""The published transformers of Peebles and Xie 2023 with patches of 2."""


def dit(size: DiTPreset) -> Published:
    """A transformer on the latents of ImageNet at 256x256, of an autoencoder that is not a part of it.

    The variance is learned (Peebles and Xie 2023, sec. 4), and samples are of 250 steps.
    """
    model = ModelConfig(
        schedule=Linear(), parameterization=Eps(), network=DiTConfig(preset=size), learned_variance=True
    )
    sampling = SamplingConfig(sampler=Ancestral(variance="learned"), steps=250, clip=False, classes="uniform")
    return Published(model, (4, 32, 32), 1000, sampling)


PRESETS: dict[str, Callable[[], Published]] = {
    "ddpm-cifar10": partial(ddpm, (128, 256, 256, 256), 1, 32, 0.1),
    "ddpm-256": partial(ddpm, (128, 128, 256, 256, 512, 512), 4, 256, 0.0),
    **{name: partial(guided, flags) for name, flags in GUIDED.items()},
    **{name: partial(edm, settings) for name, settings in EDM.items()},
    **{name: partial(dit, name) for name in DIT},
}
"""Published models by name."""
