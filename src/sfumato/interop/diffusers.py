"""Models of diffusers: folders of a ``UNet2DModel`` or of a ``DDPMPipeline``."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch

from sfumato.config import (
    X0,
    Ancestral,
    Ddim,
    Eps,
    ModelConfig,
    SamplingConfig,
    UNetConfig,
    V,
    parse,
)
from sfumato.errors import InputError, SfumatoWarning, nearest
from sfumato.interop import unet2d
from sfumato.interop.kinds import NUMBER, POSITIVE, TRUTH, WHOLE, WORD, Kind, check_kinds
from sfumato.interop.model import model_of, unet_of
from sfumato.interop.weights import Transfer, read_state, require_groups
from sfumato.models.model import Model

PREDICTIONS = {"epsilon": Eps(), "sample": X0(), "v_prediction": V()}
"""What a network predicts, by its name there."""

VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
"""The reverse variances by their names there."""

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_BETA_SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)


def load_diffusers(path: str | Path) -> Model:
    """The model of a folder that diffusers saved.

    ::

        model = sfumato.interop.load_diffusers("ddpm-cifar10-32")
        images = model.sample(16)

    Args:
        path: a pipeline (``unet/`` and ``scheduler/``, or all in one folder) or a lone ``UNet2DModel``, which is taken
            to predict noise on DDPM's linear betas.

    Returns:
        A model with the schedule, the meaning of the output and the reverse variance of theirs; sampling is ancestral
        over all steps for a ``DDPMScheduler``, DDIM in 50 steps for others.

    Raises:
        InputError: if a file is missing, of a class or with a setting that has no equivalent here, or if the weights
            are not those of the configuration.
    """
    path = Path(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    settings = _json(folder / "config.json")
    places = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler = next((_json(p) for p in places if p.is_file()), {"_class_name": "DDPMScheduler"})
    network = network_config(settings)
    channels, outputs = settings.get("in_channels", 3), settings.get("out_channels", 3)
    config, sampling = _meaning(scheduler, network, learned=outputs == 2 * channels)
    if outputs not in (channels, 2 * channels):
        raise InputError(f"A network from {channels} to {outputs} channels is no denoiser of pictures.")
    size = settings.get("sample_size")
    if size is None:
        raise InputError(f"{folder / 'config.json'} has no sample_size; add the side of the pictures to it.")
    sides = [size, size] if isinstance(size, int) else list(size)
    model = model_of(config, (channels, *sides), settings.get("num_class_embeds") or 0, sampling)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} holds no weights; expected {' or '.join(WEIGHTS)}.")
    transfer = Transfer(read_state(file), str(file))
    require_groups(unet_of(model), unet_of(model).plan.groups)
    unet2d.walk(model, transfer, flipped=bool(settings.get("flip_sin_to_cos", True)))
    transfer.finish()
    return model


def _json(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} can't be read ({reason}); expected a folder that diffusers saved.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold settings.")
    return values


_FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1, 1.0),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "time_embedding_type": ("positional",),
    "downsample_padding": (0, 1),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
"""Settings with the values that have an equivalent here."""

_SIDES = Kind(
    "a side, or a height and a width,",
    lambda value: WHOLE.or_none.holds(value) or (WHOLE.several.holds(value) and len(value) == 2),
)
_KINDS = {
    "sample_size": _SIDES,
    "in_channels": WHOLE,
    "out_channels": WHOLE,
    "time_embedding_dim": WHOLE.or_none,
    "freq_shift": NUMBER,
    "flip_sin_to_cos": TRUTH,
    "down_block_types": WORD.several,
    "up_block_types": WORD.several,
    "block_out_channels": WHOLE.several,
    "layers_per_block": WHOLE,
    "downsample_type": WORD,
    "upsample_type": WORD,
    "dropout": NUMBER,
    "attention_head_dim": WHOLE.or_none,
    "norm_num_groups": WHOLE,
    "attn_norm_num_groups": WHOLE.or_none,
    "norm_eps": POSITIVE,
    "add_attention": TRUTH,
    "num_class_embeds": WHOLE.or_none,
    "num_train_timesteps": WHOLE.or_none,
}
_KNOWN = {*_FIXED, *_KINDS}

_SCHEDULER_KINDS = {
    "num_train_timesteps": WHOLE,
    "beta_start": POSITIVE,
    "beta_end": POSITIVE,
    "beta_schedule": WORD,
    "trained_betas": POSITIVE.several.or_none,
    "prediction_type": WORD,
    "variance_type": WORD.or_none,
    "clip_sample": TRUTH,
    "clip_sample_range": POSITIVE,
    "thresholding": TRUTH,
    "rescale_betas_zero_snr": TRUTH,
}


def network_config(settings: dict[str, Any]) -> UNetConfig:
    """Our settings for those of a ``UNet2DModel``.

    Raises:
        InputError: for another class, an unknown setting, or one that has no equivalent here.
    """
    found = settings.get("_class_name")
    if found != "UNet2DModel":
        raise InputError(f"The class {found!r} of diffusers is not known here; only UNet2DModel can be loaded.")
    for name, value in settings.items():
        if not name.startswith("_") and name not in _KNOWN:
            raise InputError(f"UNet2DModel has no setting {name!r}{nearest(name, _KNOWN)}")
        if name in _FIXED and value not in _FIXED[name]:
            raise InputError(
                f"A UNet2DModel whose {name} is {value!r} has no equivalent here; "
                f"{' or '.join(map(repr, _FIXED[name]))} can be loaded."
            )
    check_kinds(settings, _KINDS, "the configuration of the UNet2DModel")
    channels = tuple(settings.get("block_out_channels", (224, 448, 672, 896)))
    head_channels, groups = settings.get("attention_head_dim", 8), settings.get("norm_num_groups", 32)
    shifted = settings.get("resnet_time_scale_shift", "default") == "scale_shift"
    middle = settings.get("add_attention", True)
    if middle and settings.get("attn_norm_num_groups", None if shifted else groups) not in (
        (groups,) if shifted else (groups, None)
    ):
        raise InputError(
            "The middle attention of this UNet2DModel is not normalized as the others are (attn_norm_num_groups), "
            "which has no equivalent here."
        )
    half, shift = channels[0] // 2, settings.get("freq_shift", 0)
    if shift >= half:
        raise InputError(
            f"freq_shift is {shift}; a number below {half}, half the first of block_out_channels, is expected."
        )
    return parse(
        UNetConfig,
        {
            "channels": channels,
            "blocks": settings.get("layers_per_block", 2),
            "attention": _attention(settings, len(channels)),
            "middle": 2,
            "middle_attention": middle,
            "resample": _resample(settings),
            "heads": 1,
            "head_channels": head_channels,
            "groups": groups,
            "eps": settings.get("norm_eps", 1e-5),
            "embedding": settings.get("time_embedding_dim"),
            # their exponents are i / (n - shift), ours i / n
            "time_period": 10_000.0 ** (half / (half - shift)),
            "modulation": "adaptive" if shifted else "additive",
            "dropout": settings.get("dropout", 0.0),
        },
        origin="the configuration of the UNet2DModel",
    )


def _attention(settings: dict[str, Any], levels: int) -> tuple[int, ...]:
    """Which resolutions have attention."""
    down = list(settings.get("down_block_types", ("DownBlock2D", *["AttnDownBlock2D"] * 3)))
    up = list(settings.get("up_block_types", (*["AttnUpBlock2D"] * 3, "UpBlock2D")))
    plain = {"DownBlock2D", "UpBlock2D", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"}
    for kind in down + up:
        if kind not in plain | {"AttnDownBlock2D", "AttnUpBlock2D"}:
            raise InputError(f"The block {kind!r} of a UNet2DModel has no equivalent here.")
    there, back = ([kind.startswith("Attn") for kind in kinds] for kinds in (down, reversed(up)))
    if len(there) != levels or len(back) != levels:
        raise InputError(
            f"A UNet2DModel of {levels} block_out_channels needs as many down_block_types and up_block_types."
        )
    if there != back:
        raise InputError("Attention at other resolutions on the way up than on the way down has no equivalent here.")
    return tuple(level for level, attends in enumerate(there) if attends)


def _resample(settings: dict[str, Any]) -> str:
    """How the resolution changes, which must be in one way throughout."""
    down, up = settings.get("down_block_types", ()), settings.get("up_block_types", ())
    kinds: set[str] = set()
    for blocks, plain, within in ((down, "DownBlock2D", "downsample_type"), (up, "UpBlock2D", "upsample_type")):
        # the last block of each way does not change the resolution
        for kind in list(blocks)[:-1]:
            inside = kind.startswith("Resnet") or (kind != plain and settings.get(within, "conv") == "resnet")
            kinds.add("block" if inside else "conv")
    if len(kinds) > 1:
        raise InputError("Resolutions that change by convolutions here and in residual blocks there can't be loaded.")
    if kinds == {"block"}:
        return "block"
    return "asymmetric" if settings.get("downsample_padding", 1) == 0 else "learned"


def _meaning(scheduler: dict[str, Any], network: UNetConfig, learned: bool) -> tuple[ModelConfig, SamplingConfig]:
    """Schedule, parameterization and sampling of a scheduler's settings."""
    kind = scheduler.get("_class_name")
    if kind not in _BETA_SCHEDULERS:
        raise InputError(f"The scheduler {kind!r} of diffusers has no table of betas that is known here.")
    check_kinds(scheduler, _SCHEDULER_KINDS, f"the configuration of the {kind}")
    output = scheduler.get("prediction_type", "epsilon")
    if output not in PREDICTIONS:
        raise InputError(f"The prediction_type {output!r} is not known here{nearest(str(output), PREDICTIONS)}")
    variance = scheduler.get("variance_type", "fixed_small")
    if variance is None:
        variance = "fixed_small"
    if variance not in VARIANCES:
        raise InputError(
            f"The variance_type {variance!r} has no equivalent here; {', '.join(VARIANCES)} can be loaded."
        )
    clip = bool(scheduler.get("clip_sample", kind in ("DDPMScheduler", "DDIMScheduler")))
    if (clip and scheduler.get("clip_sample_range", 1.0) != 1.0) or scheduler.get("thresholding"):
        warnings.warn(
            "This scheduler clips by a rule that is not kept; estimates of the data are held in [-1, 1] in its place.",
            SfumatoWarning,
            stacklevel=3,
        )
        clip = True
    steps = int(scheduler.get("num_train_timesteps", 1000))
    model = parse(
        ModelConfig,
        {
            "schedule": _schedule(scheduler, steps),
            "parameterization": PREDICTIONS[output],
            "network": network,
            "learned_variance": learned,
        },
        origin=f"the configuration of the {kind}",
    )
    reverse: Any = VARIANCES[variance] if learned or VARIANCES[variance] != "learned" else "small"
    if kind == "DDPMScheduler":
        return model, SamplingConfig(sampler=Ancestral(variance=reverse), steps=steps, clip=clip, classes="uniform")
    return model, SamplingConfig(sampler=Ddim(), steps=50, clip=clip, classes="uniform")


def _schedule(scheduler: dict[str, Any], steps: int) -> dict[str, Any]:
    """The settings of our schedule."""
    kind = scheduler.get("beta_schedule", "linear")
    start, end = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    given = scheduler.get("trained_betas")
    if given is not None:
        table: dict[str, Any] = {"kind": "table", "betas": tuple(given)}
    elif kind == "linear" and steps == 1000:
        table = {"kind": "linear", "steps": steps, "beta_start": start, "beta_end": end}
    elif kind == "linear":
        table = {"kind": "table", "betas": tuple(torch.linspace(start, end, steps, dtype=torch.float64).tolist())}
    elif kind == "scaled_linear":
        line = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64)
        table = {"kind": "table", "betas": tuple(line.square().tolist())}
    elif kind == "squaredcos_cap_v2":
        table = {"kind": "cosine", "steps": steps}
    elif kind == "sigmoid":
        line = torch.linspace(-6.0, 6.0, steps, dtype=torch.float64).sigmoid()
        table = {"kind": "table", "betas": tuple((start + (end - start) * line).tolist())}
    else:
        known = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
        raise InputError(f"The beta_schedule {kind!r} is not known here{nearest(str(kind), known)}")
    return {"kind": "zero_terminal_snr", "table": table} if scheduler.get("rescale_betas_zero_snr") else table
