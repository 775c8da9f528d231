"""Models of OpenAI's improved-diffusion and guided-diffusion, by the flags of these programs."""

from __future__ import annotations

from typing import Any

from sfumato.config import X0, Ancestral, Cosine, Eps, Linear, ModelConfig, SamplingConfig, UNetConfig, parse
from sfumato.errors import InputError, nearest
from sfumato.recipes.settings import Published, Settings, filled, levels, numbers

_MULTIPLES: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Widths of the resolutions, over num_channels, by the side of the pictures."""

UPSAMPLER_MULTIPLES: dict[int, tuple[float, ...]] = {
    512: (1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    64: (1, 2, 3, 4),
}
"""The same of the up-samplers, by the side that they make."""

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
    "sigma_small": False,
    "num_heads_upsample": -1,
    "timestep_respacing": "",
    "use_kl": False,
    "rescale_learned_sigmas": False,
    "use_checkpoint": False,
    "use_fp16": False,
}
"""What the flags of guided-diffusion are when they are not given.

From ``timestep_respacing`` on, they are of the training, the speed or the number of steps, and change nothing here.
"""

PROGRAMS: dict[str, dict[str, Any]] = {
    "guided-diffusion": GUIDED_DEFAULTS,
    "improved-diffusion": GUIDED_DEFAULTS | {"rescale_timesteps": True},
}
"""The flags of both programs when they are not given."""


def flags_of(settings: Settings, program: str | None = None) -> dict[str, Any]:
    """All flags of improved- or guided-diffusion, those that are not given by the defaults of the program.

    Args:
        settings: the flags that are given.
        program: ``"guided-diffusion"`` or ``"improved-diffusion"``, whose defaults differ in how the network is told
            the time. It may be left out where that makes no difference: ``rescale_timesteps`` is given, or there are
            1000 steps.

    Raises:
        InputError: for an unknown flag or program, a value out of range, or if the program must be known.
    """
    if program is not None and program not in PROGRAMS:
        raise InputError(f"There is no program {program!r}{nearest(program, PROGRAMS)}")
    name = program or "guided-diffusion"
    flags = filled(settings, PROGRAMS[name], name)
    for flag in ("image_size", "num_channels", "num_res_blocks", "num_heads", "num_classes", "diffusion_steps"):
        least = 2 if flag == "diffusion_steps" else 1
        if flags[flag] < least:
            raise InputError(f"{flag} is {flags[flag]}; at least {least} is expected.")
    if program is None and "rescale_timesteps" not in settings and flags["diffusion_steps"] != 1000:
        raise InputError(
            f"With {flags['diffusion_steps']} diffusion_steps it must be known how the network is told the time: give "
            "rescale_timesteps, or the program whose flags these are, improved-diffusion (True unless given) or "
            "guided-diffusion (False)."
        )
    up = flags["num_heads_upsample"]
    if up not in (-1, flags["num_heads"]) and flags["num_head_channels"] == -1:
        raise InputError(
            f"num_heads_upsample is {up} and num_heads {flags['num_heads']}: other heads on the way up than on the way "
            "down have no equivalent here."
        )
    return flags


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
            "attention": levels(numbers(settings["attention_resolutions"]), size, len(multiples)),
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


def guided(settings: Settings, program: str | None = None) -> Published:
    """A model by the flags of improved- or guided-diffusion (see :func:`flags_of`).

    Raises:
        InputError: for an unknown flag or schedule, or flags that contradict each other.
    """
    flags = flags_of(settings, program)
    size, steps = flags["image_size"], flags["diffusion_steps"]
    schedules: dict[str, Any] = {"linear": Linear, "cosine": Cosine}
    if str(flags["noise_schedule"]) not in schedules:
        raise InputError(
            f"There is no noise_schedule {flags['noise_schedule']!r}{nearest(str(flags['noise_schedule']), schedules)}"
        )
    model = ModelConfig(
        schedule=schedules[flags["noise_schedule"]](steps=steps),
        parameterization=X0() if flags["predict_xstart"] else Eps(),
        network=guided_network(flags, size),
        learned_variance=flags["learn_sigma"],
    )
    fixed = "small" if flags["sigma_small"] else "large"
    sampler = Ancestral(variance="learned" if flags["learn_sigma"] else fixed)
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

_IDDPM: dict[str, Any] = {
    "num_res_blocks": 3,
    "learn_sigma": True,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
    "rescale_timesteps": True,
}

GUIDED: dict[str, dict[str, Any]] = {
    "iddpm-cifar10": _IDDPM | {"image_size": 32, "dropout": 0.3},
    "iddpm-64": _IDDPM,
    "iddpm-64-conditional": _IDDPM | {"num_channels": 192, "class_cond": True, "rescale_timesteps": False},
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
