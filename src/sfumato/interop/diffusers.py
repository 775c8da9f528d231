"""Models of diffusers: folders of a ``UNet2DModel`` or of a ``DDPMPipeline``."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import InputError, SfumatoWarning, nearest
from sfumato.interop.diffusers_format import PREDICTIONS, VARIANCES, WEIGHTS, transfer_weights
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
    settings = _json(folder / "config.json")
    places = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler = next((_json(p) for p in places if p.is_file()), {"_class_name": "DDPMScheduler"})
    network = network_settings(settings)
    channels, outputs = settings.get("in_channels", 3), settings.get("out_channels", 3)
    config, sampling = _meaning(scheduler, network, learned=outputs == 2 * channels)
    if outputs not in (channels, 2 * channels):
        raise InputError(f"A network from {channels} to {outputs} channels is no denoiser of images.")
    size = settings.get("sample_size")
    if size is None:
        raise InputError(f"{folder / 'config.json'} has no sample_size; add the side of the images to it.")
    height, width = (size, size) if isinstance(size, int) else size
    model = build_model(Published(config, (channels, height, width), settings.get("num_class_embeds") or 0, sampling))
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} holds no weights; expected {' or '.join(WEIGHTS)}.")
    transfer, unet = Transfer(file), unet_of(model.denoiser.network)
    require_groups(unet, unet.blueprint.groups)
    transfer_weights(model, transfer, cosines_first=bool(settings.get("flip_sin_to_cos", True)))
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


@dataclass(frozen=True)
class Kind:
    """A kind of value: its name, and whether a value is of it."""

    name: str
    holds: Callable[[Any], bool]

    @property
    def or_none(self) -> Kind:
        return Kind(f"{self.name} or null", lambda value: value is None or self.holds(value))

    @property
    def several(self) -> Kind:
        def holds(value: Any) -> bool:
            return isinstance(value, list | tuple) and bool(value) and all(map(self.holds, value))  # pyright: ignore[reportUnknownArgumentType]

        return Kind(f"a list, each {self.name}", holds)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


NUMBER = Kind("a number", _number)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
WHOLE = Kind("a whole number from 1 on", lambda value: type(value) is int and value >= 1)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
WORD = Kind("a word", lambda value: isinstance(value, str))


def check_kinds(settings: Mapping[str, Any], kinds: Mapping[str, Kind], origin: str) -> None:
    """Check that each setting that is there is of its kind."""
    for name, kind in kinds.items():
        if name in settings and not kind.holds(settings[name]):
            raise InputError(f"{name} is {settings[name]!r} in {origin}; {kind.name} is expected.")


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


def network_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Our settings for those of a ``UNet2DModel``."""
    name = settings.get("_class_name")
    if name != "UNet2DModel":
        raise InputError(f"The class {name!r} of diffusers is not known here; only UNet2DModel can be loaded.")
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
    return {
        "kind": "unet",
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
    }


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


def _meaning(
    scheduler: dict[str, Any], network: dict[str, Any], learned: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model and the sampling of a scheduler's settings."""
    kind = scheduler.get("_class_name")
    if kind not in _BETA_SCHEDULERS:
        raise InputError(f"The scheduler {kind!r} of diffusers has no table of betas that is known here.")
    check_kinds(scheduler, _SCHEDULER_KINDS, f"the configuration of the {kind}")
    output = scheduler.get("prediction_type", "epsilon")
    if output not in PREDICTIONS:
        raise InputError(f"The prediction_type {output!r} is not known here{nearest(str(output), PREDICTIONS)}")
    variance = scheduler.get("variance_type") or "fixed_small"
    if variance not in VARIANCES:
        raise InputError(
            f"The variance_type {variance!r} has no equivalent here; {', '.join(VARIANCES)} can be loaded."
        )
    clip = bool(scheduler.get("clip_sample", kind in ("DDPMScheduler", "DDIMScheduler")))
    if (clip and scheduler.get("clip_sample_range", 1.0) != 1.0) or scheduler.get("thresholding"):
        warnings.warn(
            "This scheduler clips by a rule that is not kept; estimates of the data are clipped to [-1, 1] instead.",
            SfumatoWarning,
            stacklevel=3,
        )
        clip = True
    steps = int(scheduler.get("num_train_timesteps", 1000))
    model = {
        "schedule": _schedule(scheduler, steps),
        "parameterization": {"kind": PREDICTIONS[output]},
        "network": network,
        "learned_variance": learned,
    }
    reverse = VARIANCES[variance] if learned or VARIANCES[variance] != "learned" else "small"
    if kind == "DDPMScheduler":
        return model, {"sampler": {"kind": "ancestral", "variance": reverse}, "steps": steps, "clip": clip}
    return model, {"sampler": {"kind": "ddim"}, "steps": 50, "clip": clip}


def _schedule(scheduler: dict[str, Any], steps: int) -> dict[str, Any]:
    """The settings of our schedule."""
    kind = scheduler.get("beta_schedule", "linear")
    start, end = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    trained = scheduler.get("trained_betas")
    table: dict[str, Any]
    if trained is None and kind == "linear" and steps == 1000:
        table = {"kind": "linear", "steps": steps, "beta_start": start, "beta_end": end}
    elif trained is None and kind == "squaredcos_cap_v2":
        table = {"kind": "cosine", "steps": steps}
    else:
        if trained is not None:
            betas = torch.tensor(trained, dtype=torch.float64)
        elif kind == "linear":
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        elif kind == "scaled_linear":
            betas = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
        elif kind == "sigmoid":
            betas = start + (end - start) * torch.linspace(-6.0, 6.0, steps, dtype=torch.float64).sigmoid()
        else:
            known = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
            raise InputError(f"The beta_schedule {kind!r} is not known here{nearest(str(kind), known)}")
        table = {"kind": "table", "betas": tuple(betas.tolist())}
    return {"kind": "zero_terminal_snr", "table": table} if scheduler.get("rescale_betas_zero_snr") else table
