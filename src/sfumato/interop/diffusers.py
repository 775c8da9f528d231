"""Models of diffusers: folders of a ``UNet2DModel`` or of a ``DDPMPipeline``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.config import ModelConfig, parse
from sfumato.diffusion.schedule import Discrete
from sfumato.errors import InputError, SfumatoWarning
from sfumato.interop.diffusers_format import UNet2DModel, transfer_weights
from sfumato.interop.folders import read_folder, read_json
from sfumato.interop.model import build_model, unet_of
from sfumato.interop.schedulers import PREDICTIONS, Scheduler, read_scheduler, schedule_settings
from sfumato.interop.weights import Transfer, require_groups
from sfumato.models.model import Model
from sfumato.recipes.settings import Published


def load_diffusers(path: str | Path, *, variant: str | None = None) -> Model:
    """The model of a folder that diffusers saved, and how it is sampled there.

    ::

        model = sfumato.interop.load_diffusers("ddpm-cifar10-32")
        images = model.sample(16)

    Args:
        path: a pipeline (``unet/`` and ``scheduler/``, or all in one folder) or a lone ``UNet2DModel``, which is taken
            to predict noise on DDPM's linear betas.
        variant: which weights, where there are several: ``"fp16"`` for ``diffusion_pytorch_model.fp16.safetensors``;
            by default those without a variant, or the only ones.

    Returns:
        A model with the schedule, the meaning of the output and the reverse variance of theirs, whose sampling is that
        of their scheduler: solver, levels, clipping, and as many steps as its pipeline takes (20 for multistep ones).
        What of it has no equivalent is named in a warning.
    """
    path = Path(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    theirs = _unet(read_json(folder / "config.json"))
    places = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler, unknown = read_scheduler(
        next((read_json(p) for p in places if p.is_file()), {"_class_name": "DDPMScheduler"})
    )
    channels, outputs = theirs.in_channels, theirs.out_channels
    if outputs not in (channels, 2 * channels):
        raise InputError(f"A network from {channels} to {outputs} channels is no denoiser of images.")
    if theirs.sample_size is None:
        raise InputError(f"{folder / 'config.json'} has no sample_size; add the side of the images to it.")
    height, width = theirs.sample_size
    config: dict[str, Any] = {
        "schedule": schedule_settings(scheduler),
        "parameterization": {"kind": PREDICTIONS[scheduler.prediction_type]},
        "network": network_settings(theirs),
        "learned_variance": outputs == 2 * channels,
    }
    sampling = _sampling(scheduler, unknown, config)
    state, origin = read_folder(folder, variant)
    published = Published(config, (channels, height, width), theirs.num_class_embeds or 0, sampling)
    model = build_model(published, state)
    transfer = Transfer(state, origin=origin)
    require_groups(unet_of(model.denoiser.network), theirs.norm_num_groups)
    transfer_weights(model, transfer, cosines_first=theirs.flip_sin_to_cos)
    transfer.finish()
    return model


def _sampling(scheduler: Scheduler, unknown: Sequence[str], config: dict[str, Any]) -> dict[str, Any]:
    """The settings of sampling, with a warning that names what is not in them."""
    table = parse(ModelConfig, {name: config[name] for name in ("schedule", "parameterization")}).schedule.build()
    assert isinstance(table, Discrete)
    sampling, notes = scheduler.sampling(config["learned_variance"], table)
    notes += [f"{name}, which is not known here" for name in unknown]
    if notes:
        warnings.warn(
            f"Not all of this scheduler is carried over, so that samples differ from those of diffusers: "
            f"{'; '.join(notes)}.",
            SfumatoWarning,
            stacklevel=3,
        )
    return {"grid": scheduler.grid(), "steps": scheduler.count(), **sampling}


_OF_AVERAGES = frozenset(
    {
        *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
        *("collected_params", "cur_decay_value"),
    }
)
"""What ``EMAModel.save_pretrained`` adds to the settings of the network whose average it is."""


def _unet(settings: dict[str, Any]) -> UNet2DModel:
    name = settings.get("_class_name")
    if name != "UNet2DModel":
        raise InputError(f"The class {name!r} of diffusers is not known here; only UNet2DModel can be loaded.")
    public = {name: value for name, value in settings.items() if name[:1] != "_" and name not in _OF_AVERAGES}
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
