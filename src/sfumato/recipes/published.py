"""Networks of papers by name, described in the words of their authors' programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sfumato.config import (
    X0,
    Ancestral,
    Cosine,
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
from sfumato.errors import InputError, nearest

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """A model of a paper.

    Attributes:
        model: schedule, parameterization and network.
        shape: ``(C, H, W)`` of its pictures.
        classes: number of classes that it is told.
        sampling: how its authors sample.
    """

    model: ModelConfig
    shape: tuple[int, ...]
    classes: int
    sampling: SamplingConfig


def ddpm(channels: tuple[int, ...], attention: int, size: int, dropout: float) -> Published:
    """The network of DDPM (Ho et al. 2020, app. B)."""
    network = UNetConfig(
        channels=channels,
        attention=(attention,),
        resample="asymmetric",
        heads=1,
        eps=1e-6,
        time_period=_to_the_end(channels[0]),
        modulation="additive",
        dropout=dropout,
        initialization="xavier",
    )
    model = ModelConfig(schedule=Linear(), parameterization=Eps(), network=network)
    return Published(model, (3, size, size), 0, SamplingConfig(sampler=Ancestral(variance="large"), steps=1000))


def _to_the_end(features: int) -> float:
    """The period with which the last of the frequencies is 1 / 10,000, not the one after the last."""
    half = features // 2
    return 10_000.0 ** (half / (half - 1))


_MULTIPLES: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}

GUIDED_DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "num_classes": 1000,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "conv_resample": True,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
}
"""What the flags of guided-diffusion are when they are not given, those that decide what a network computes."""


def numbers(value: Any) -> tuple[float, ...]:
    """Numbers that are written as one, as a list, or as a string with commas."""
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value
    try:
        return tuple(float(part) for part in parts if str(part).strip())
    except (TypeError, ValueError):
        raise InputError(f"Numbers between commas are expected; got {value!r}.") from None


def filled(settings: Settings, defaults: Mapping[str, Any], program: str) -> dict[str, Any]:
    """The settings with the defaults of those that are not given.

    Raises:
        InputError: for one that the program does not know.
    """
    for name in settings:
        if name not in defaults:
            raise InputError(f"{program} has no setting {name!r}{nearest(name, defaults)}")
    return {**defaults, **settings}


def guided_network(settings: Settings, size: int) -> UNetConfig:
    """The network of the flags of guided-diffusion, for pictures of a side.

    Raises:
        InputError: if its widths are not known, or attention is asked at a side that does not occur.
    """
    multiples = numbers(settings["channel_mult"]) or _MULTIPLES.get(size, ())
    if not multiples:
        raise InputError(f"guided-diffusion has no widths for a side of {size}; give channel_mult.")
    width, head_channels = settings["num_channels"], settings["num_head_channels"]
    return parse(
        UNetConfig,
        {
            "channels": [int(multiple * width) for multiple in multiples],
            "blocks": settings["num_res_blocks"],
            "attention": _levels(numbers(settings["attention_resolutions"]), size, len(multiples)),
            "resample": "block" if settings["resblock_updown"] else "learned" if settings["conv_resample"] else "fixed",
            "heads": settings["num_heads"],
            "head_channels": None if head_channels == -1 else head_channels,
            "embedding": 4 * width,
            "time_features": width,
            "time_scale": 1000.0 / settings["diffusion_steps"] if settings["rescale_timesteps"] else 1.0,
            "modulation": "adaptive" if settings["use_scale_shift_norm"] else "additive",
            "dropout": settings["dropout"],
        },
        origin="the flags of guided-diffusion",
    )


def _levels(sides: tuple[float, ...], size: int, count: int) -> list[int]:
    """The indices of the resolutions with these sides."""
    occurring = [size // 2**level for level in range(count)]
    for side in sides:
        if side not in occurring:
            raise InputError(
                f"Attention is asked at a side of {side:g}, but the sides are {', '.join(map(str, occurring))}."
            )
    return [level for level, side in enumerate(occurring) if side in sides]


def guided(settings: Settings) -> Published:
    """A model by the flags of improved- or guided-diffusion.

    Raises:
        InputError: for an unknown flag or schedule, or flags that contradict each other.
    """
    flags = filled(settings, GUIDED_DEFAULTS, "guided-diffusion")
    size, steps = flags["image_size"], flags["diffusion_steps"]
    schedules: dict[str, Any] = {"linear": Linear, "cosine": Cosine}
    if flags["noise_schedule"] not in schedules:
        raise InputError(
            f"guided-diffusion has no noise_schedule {flags['noise_schedule']!r}"
            f"{nearest(str(flags['noise_schedule']), schedules)}"
        )
    model = ModelConfig(
        schedule=schedules[flags["noise_schedule"]](steps=steps),
        parameterization=X0() if flags["predict_xstart"] else Eps(),
        network=guided_network(flags, size),
        learned_variance=flags["learn_sigma"],
    )
    sampler = Ancestral(variance="learned" if flags["learn_sigma"] else "large")
    sampling = SamplingConfig(sampler=sampler, steps=steps, clip=True, classes="uniform")
    return Published(model, (3, size, size), flags["num_classes"] if flags["class_cond"] else 0, sampling)


_ADM: dict[str, Any] = {
    "attention_resolutions": "32,16,8",
    "class_cond": True,
    "learn_sigma": True,
    "num_channels": 256,
    "num_head_channels": 64,
    "resblock_updown": True,
}

GUIDED: dict[str, dict[str, Any]] = {
    "iddpm-64": {
        "num_res_blocks": 3,
        "learn_sigma": True,
        "class_cond": True,
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "rescale_timesteps": True,
    },
    "adm-64": _ADM
    | {
        "image_size": 64,
        "num_channels": 192,
        "num_res_blocks": 3,
        "dropout": 0.1,
        "noise_schedule": "cosine",
        "use_new_attention_order": True,
    },
    "adm-128": _ADM | {"image_size": 128, "num_heads": 4, "num_head_channels": -1},
    "adm-256": _ADM | {"image_size": 256},
    "adm-256-unconditional": _ADM | {"image_size": 256, "class_cond": False},
    "adm-512": _ADM | {"image_size": 512},
}
"""The flags of the published models of Nichol and Dhariwal 2021 and of Dhariwal and Nichol 2021."""


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
        "attention": _levels(numbers(given["attn_resolutions"]), size, len(channels)),
        "embedding": width * given["channel_mult_emb"],
        "dropout": given["dropout"],
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
            "time_period": _to_the_end(features),
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

PRESETS: dict[str, Callable[[], Published]] = {
    "ddpm-cifar10": partial(ddpm, (128, 256, 256, 256), 1, 32, 0.1),
    "ddpm-256": partial(ddpm, (128, 128, 256, 256, 512, 512), 4, 256, 0.0),
    **{name: partial(guided, flags) for name, flags in GUIDED.items()},
    **{name: partial(edm, settings) for name, settings in EDM.items()},
}
"""Published models by name."""
