"""Models of OpenAI's improved-diffusion and guided-diffusion, by the flags of these programs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sfumato.errors import InputError, nearest
from sfumato.recipes.settings import (
    Published,
    PublishedClassifier,
    Settings,
    numbers,
    resolutions,
    settings_of,
    with_defaults,
)

_MULTIPLES: dict[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""Widths of the resolutions, over num_channels, by the side of the images."""

UPSAMPLER_MULTIPLES: dict[int, tuple[float, ...]] = {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (1, 1, 2, 2, 4, 4)}
"""The same for up-samplers, by the side of their output."""

# fmt: off
GUIDED_DEFAULTS: dict[str, Any] = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_head_channels": -1,
    "attention_resolutions": "16,8", "channel_mult": "", "dropout": 0.0, "class_cond": False, "num_classes": 1000,
    "use_scale_shift_norm": True, "resblock_updown": False, "conv_resample": True, "use_new_attention_order": False,
    "learn_sigma": False, "diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False,
    "rescale_timesteps": False, "sigma_small": False, "num_heads_upsample": -1,
    "timestep_respacing": "", "use_kl": False, "rescale_learned_sigmas": False, "use_checkpoint": False,
    "use_fp16": False,
}
# fmt: on
"""The defaults of the flags of guided-diffusion.

From ``timestep_respacing`` on, they are of the training, the speed or the number of steps, and change nothing here.
"""

# fmt: off
CLASSIFIER_DEFAULTS: dict[str, Any] = {
    "image_size": 64, "classifier_width": 128, "classifier_depth": 2, "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True, "classifier_resblock_updown": True, "classifier_pool": "attention",
    "classifier_use_fp16": False, "channel_mult": "", "num_classes": 1000,
}
# fmt: on
"""The defaults of the flags of guided-diffusion's classifiers."""

PROGRAMS: dict[str, dict[str, Any]] = {
    "guided-diffusion": GUIDED_DEFAULTS,
    "improved-diffusion": GUIDED_DEFAULTS | {"rescale_timesteps": True},
}
"""The defaults of the flags of both programs."""


def flags_of(settings: Settings, program: str | None = None) -> dict[str, Any]:
    """All flags of improved- or guided-diffusion, with the defaults of the program for those that are not given.

    Args:
        settings: the flags that are given.
        program: ``"guided-diffusion"`` or ``"improved-diffusion"``, whose defaults of ``rescale_timesteps`` differ. It
            may be left out where that makes no difference: the flag is given, or there are 1000 steps.
    """
    if program is not None and program not in PROGRAMS:
        raise InputError(f"There is no program {program!r}{nearest(program, PROGRAMS)}")
    name = program or "guided-diffusion"
    flags = with_defaults(settings, PROGRAMS[name], name)
    for flag in ("image_size", "num_channels", "num_res_blocks", "num_heads", "num_classes", "diffusion_steps"):
        least = 2 if flag == "diffusion_steps" else 1
        if flags[flag] < least:
            raise InputError(f"{flag} is {flags[flag]}; at least {least} is expected.")
    if program is None and "rescale_timesteps" not in settings and flags["diffusion_steps"] != 1000:
        raise InputError(
            f"With {flags['diffusion_steps']} diffusion_steps the scale of the time that the network is given must be "
            "known: give rescale_timesteps, or the program whose flags these are, improved-diffusion (True unless "
            "given) or guided-diffusion (False)."
        )
    up = flags["num_heads_upsample"]
    if up not in (-1, flags["num_heads"]) and flags["num_head_channels"] == -1:
        raise InputError(
            f"num_heads_upsample is {up} and num_heads {flags['num_heads']}: other heads on the way up than on the way "
            "down have no equivalent here."
        )
    return flags


def guided_network(flags: Settings, size: int) -> dict[str, Any]:
    """The network of the flags of guided-diffusion, for images of a side."""
    multiples = numbers(flags["channel_mult"]) or _MULTIPLES.get(size, ())
    if not multiples:
        raise InputError(f"guided-diffusion has no widths for a side of {size}; give channel_mult.")
    width, head_channels = flags["num_channels"], flags["num_head_channels"]
    return {
        "kind": "unet",
        "channels": tuple(int(multiple * width) for multiple in multiples),
        "blocks": flags["num_res_blocks"],
        "attention": resolutions(numbers(flags["attention_resolutions"]), size, len(multiples)),
        "resample": "block" if flags["resblock_updown"] else "learned" if flags["conv_resample"] else "fixed",
        "heads": flags["num_heads"],
        "head_channels": None if head_channels == -1 else head_channels,
        "embedding": 4 * width,
        "time_features": width,
        "time_scale": 1000.0 / flags["diffusion_steps"] if flags["rescale_timesteps"] else 1.0,
        "modulation": "adaptive" if flags["use_scale_shift_norm"] else "additive",
        "dropout": flags["dropout"],
    }


def guided(settings: Settings, program: str | None = None) -> Published:
    """A model by the flags of improved- or guided-diffusion (see :func:`flags_of`), sampled as these programs do."""
    flags = flags_of(settings, program)
    size, steps, learned = flags["image_size"], flags["diffusion_steps"], flags["learn_sigma"]
    model = {
        "schedule": {"kind": flags["noise_schedule"], "steps": steps},
        "parameterization": {"kind": "x0" if flags["predict_xstart"] else "eps"},
        "network": guided_network(flags, size),
        "learned_variance": learned,
    }
    variance = "learned" if learned else "small" if flags["sigma_small"] else "large"
    sampling = {"sampler": {"kind": "ancestral", "variance": variance}, "steps": steps, "clip": True}
    return Published(model, (3, size, size), flags["num_classes"] if flags["class_cond"] else 0, sampling)


def upsampler(settings: Settings, program: str | None = None) -> Published:
    """An up-sampling model by the flags of improved- or guided-diffusion.

    Its condition ``low_resolution`` is the mean of squares of pixels, scaled up bilinearly.

    Args:
        settings: the flags, with ``large_size`` and ``small_size`` in place of ``image_size``.
        program: as of :func:`flags_of`.
    """
    sizes = {"large_size": 256, "small_size": 64}
    known = {name: value for name, value in GUIDED_DEFAULTS.items() if name != "image_size"} | sizes
    given = with_defaults(settings, known, "guided-diffusion's up-sampler")
    large, small = given["large_size"], given["small_size"]
    rest = {name: value for name, value in settings.items() if name not in sizes}
    multiples = numbers(rest.get("channel_mult", "")) or UPSAMPLER_MULTIPLES.get(large)
    if not multiples:
        raise InputError(
            f"An up-sampler has no widths for a large_size of {large}; give channel_mult, or one of "
            f"{', '.join(map(str, UPSAMPLER_MULTIPLES))}."
        )
    if small < 1 or large % small:
        raise InputError(f"The small_size of an up-sampler divides the large_size; got {small} and {large}.")
    low = {"kind": "low_resolution", "factor": large // small, "down": "area", "up": "bilinear"}
    published = guided({**rest, "image_size": large, "channel_mult": multiples}, program)
    return replace(published, others={"low_resolution": low})


def classifier(settings: Settings) -> PublishedClassifier:
    """A classifier of noisy images by the flags of guided-diffusion, ``image_size``, ``classifier_width`` and so on."""
    flags = with_defaults(settings, CLASSIFIER_DEFAULTS, "guided-diffusion's classifier")
    if flags["classifier_pool"] != "attention":
        raise InputError(f"The classifier_pool {flags['classifier_pool']!r} can't be loaded; only attention can.")
    size = flags["image_size"]
    network = guided_network(
        GUIDED_DEFAULTS
        | {
            "num_channels": flags["classifier_width"],
            "num_res_blocks": flags["classifier_depth"],
            "num_head_channels": 64,
            "attention_resolutions": flags["classifier_attention_resolutions"],
            "channel_mult": flags["channel_mult"],
            "use_scale_shift_norm": flags["classifier_use_scale_shift_norm"],
            "resblock_updown": flags["classifier_resblock_updown"],
        },
        size,
    )
    del network["kind"]
    return PublishedClassifier(network, (3, size, size), flags["num_classes"])


GUIDED: dict[str, Settings] = settings_of("guided")
"""The flags of the published models of Nichol and Dhariwal 2021 and of Dhariwal and Nichol 2021."""

UPSAMPLERS: dict[str, Settings] = settings_of("upsampler")
"""The flags of the published up-samplers of Dhariwal and Nichol 2021."""

CLASSIFIERS: dict[str, PublishedClassifier] = {
    name: classifier(flags) for name, flags in settings_of("classifier").items()
}
"""The published classifiers of noisy images of Dhariwal and Nichol 2021."""
