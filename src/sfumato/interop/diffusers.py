"""Models of diffusers: folders of a ``UNet2DModel`` or of a ``DDPMPipeline``."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch

from sfumato.config import parse
from sfumato.errors import InputError, SfumatoWarning
from sfumato.interop.diffusers_format import PREDICTIONS, VARIANCES, WEIGHTS, Scheduler, UNet2DModel, transfer_weights
from sfumato.interop.model import build_model, unet_of
from sfumato.interop.weights import Transfer, require_groups
from sfumato.models.model import Model
from sfumato.recipes.settings import Published

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
    """
    path = Path(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    theirs = _unet(_json(folder / "config.json"))
    places = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler = next((_json(p) for p in places if p.is_file()), {"_class_name": "DDPMScheduler"})
    channels, outputs = theirs.in_channels, theirs.out_channels
    config, sampling = _meaning(scheduler, network_settings(theirs), learned=outputs == 2 * channels)
    if outputs not in (channels, 2 * channels):
        raise InputError(f"A network from {channels} to {outputs} channels is no denoiser of images.")
    if theirs.sample_size is None:
        raise InputError(f"{folder / 'config.json'} has no sample_size; add the side of the images to it.")
    height, width = theirs.sample_size
    model = build_model(Published(config, (channels, height, width), theirs.num_class_embeds or 0, sampling))
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} holds no weights; expected {' or '.join(WEIGHTS)}.")
    transfer = Transfer(file)
    require_groups(unet_of(model.denoiser.network), theirs.norm_num_groups)
    transfer_weights(model, transfer, cosines_first=theirs.flip_sin_to_cos)
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


def _unet(settings: dict[str, Any]) -> UNet2DModel:
    name = settings.get("_class_name")
    if name != "UNet2DModel":
        raise InputError(f"The class {name!r} of diffusers is not known here; only UNet2DModel can be loaded.")
    public = {name: value for name, value in settings.items() if not name.startswith("_")}
    return parse(UNet2DModel, public, origin="the configuration of the UNet2DModel")


def network_settings(theirs: UNet2DModel) -> dict[str, Any]:
    """Our settings for those of a ``UNet2DModel``."""
    channels, groups = tuple(theirs.block_out_channels), theirs.norm_num_groups
    shifted = theirs.resnet_time_scale_shift == "scale_shift"
    if theirs.add_attention and theirs.attn_norm_num_groups not in ((groups,) if shifted else (groups, None)):
        raise InputError(
            "The middle attention of this UNet2DModel is not normalized as the others are (attn_norm_num_groups), "
            "which has no equivalent here."
        )
    half, shift = channels[0] // 2, theirs.freq_shift
    if shift >= half:
        raise InputError(
            f"freq_shift is {shift:g}; a number below {half}, half the first of block_out_channels, is expected."
        )
    return {
        "kind": "unet",
        "channels": channels,
        "blocks": theirs.layers_per_block,
        "attention": _attention(theirs),
        "middle": 2,
        "middle_attention": theirs.add_attention,
        "resample": _resample(theirs),
        "heads": 1,
        "head_channels": theirs.attention_head_dim,
        "groups": groups,
        "eps": theirs.norm_eps,
        "embedding": theirs.time_embedding_dim,
        # their exponents are i / (n - shift), ours i / n
        "time_period": 10_000.0 ** (half / (half - shift)),
        "modulation": "adaptive" if shifted else "additive",
        "dropout": theirs.dropout,
    }


def _attention(theirs: UNet2DModel) -> tuple[int, ...]:
    """Which resolutions have attention."""
    down = [kind.startswith("Attn") for kind in theirs.down_block_types]
    up = [kind.startswith("Attn") for kind in reversed(theirs.up_block_types)]
    levels = len(theirs.block_out_channels)
    if len(down) != levels or len(up) != levels:
        raise InputError(
            f"A UNet2DModel of {levels} block_out_channels needs as many down_block_types and up_block_types."
        )
    if down != up:
        raise InputError("Attention at other resolutions on the way up than on the way down has no equivalent here.")
    return tuple(level for level, attends in enumerate(down) if attends)


def _resample(theirs: UNet2DModel) -> str:
    """How the resolution changes, which must be in one way throughout."""
    ways = ((theirs.down_block_types, theirs.downsample_type), (theirs.up_block_types, theirs.upsample_type))
    # the last block of each way does not change the resolution
    inside = {
        kind.startswith("Resnet") or (kind.startswith("Attn") and attended == "resnet")
        for kinds, attended in ways
        for kind in kinds[:-1]
    }
    if len(inside) > 1:
        raise InputError("Resolutions that change by convolutions here and in residual blocks there can't be loaded.")
    if inside == {True}:
        return "block"
    return "asymmetric" if theirs.downsample_padding == 0 else "learned"


def _meaning(settings: dict[str, Any], network: dict[str, Any], learned: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model and the sampling of a scheduler's settings."""
    kind = settings.get("_class_name")
    if kind not in _BETA_SCHEDULERS:
        raise InputError(f"The scheduler {kind!r} of diffusers has no table of betas that is known here.")
    scheduler = parse(Scheduler, settings, origin=f"the configuration of the {kind}")
    clip = kind in ("DDPMScheduler", "DDIMScheduler") if scheduler.clip_sample is None else scheduler.clip_sample
    if (clip and scheduler.clip_sample_range != 1.0) or scheduler.thresholding:
        warnings.warn(
            "This scheduler clips by a rule that is not kept; estimates of the data are clipped to [-1, 1] instead.",
            SfumatoWarning,
            stacklevel=3,
        )
        clip = True
    steps = scheduler.num_train_timesteps
    model = {
        "schedule": _schedule(scheduler, steps),
        "parameterization": {"kind": PREDICTIONS[scheduler.prediction_type]},
        "network": network,
        "learned_variance": learned,
    }
    variance = VARIANCES[scheduler.variance_type or "fixed_small"]
    reverse = variance if learned or variance != "learned" else "small"
    if kind == "DDPMScheduler":
        return model, {"sampler": {"kind": "ancestral", "variance": reverse}, "steps": steps, "clip": clip}
    return model, {"sampler": {"kind": "ddim"}, "steps": 50, "clip": clip}


def _schedule(scheduler: Scheduler, steps: int) -> dict[str, Any]:
    """The settings of our schedule."""
    kind, start, end = scheduler.beta_schedule, scheduler.beta_start, scheduler.beta_end
    table: dict[str, Any]
    if scheduler.trained_betas is not None:
        table = {"kind": "table", "betas": tuple(scheduler.trained_betas)}
    elif kind == "linear" and steps == 1000:
        table = {"kind": "linear", "steps": steps, "beta_start": start, "beta_end": end}
    elif kind == "squaredcos_cap_v2":
        table = {"kind": "cosine", "steps": steps}
    else:
        if kind == "linear":
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        elif kind == "scaled_linear":
            betas = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
        else:
            betas = start + (end - start) * torch.linspace(-6.0, 6.0, steps, dtype=torch.float64).sigmoid()
        table = {"kind": "table", "betas": tuple(betas.tolist())}
    return {"kind": "zero_terminal_snr", "table": table} if scheduler.rescale_betas_zero_snr else table
