"""Models as diffusers keeps them: a folder that its pipelines load."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from sfumato.conditioning.encoders import Conditioned
from sfumato.config import Ancestral, Cosine, Ddim, Eps, Linear, Score, UNetConfig
from sfumato.diffusion.schedule import Discrete
from sfumato.errors import InputError
from sfumato.interop import unet2d
from sfumato.interop.diffusers import PREDICTIONS, VARIANCES, WEIGHTS
from sfumato.interop.weights import Collected
from sfumato.models.model import Model
from sfumato.networks.layers import Attention
from sfumato.networks.unet import UNet

_VERSION = "0.30.0"
"""The version whose settings are written; later ones read them."""


def write_diffusers(model: Model, folder: Path) -> list[str]:
    """Write a model as a ``DDPMPipeline`` (for ancestral sampling) or ``DDIMPipeline``, which either loads.

    Its network gives the same outputs, and its scheduler walks the same levels, those of our uniform grid, wherever the
    number of steps divides that of the table.

    Returns:
        Sentences on what its user must know.

    Raises:
        InputError: if diffusers has no equivalent of the network, the schedule or what the network predicts.
    """
    null_label = bool(model.facts.classes) and model.config.objective.label_dropout > 0.0
    settings = network_settings(model, null_label)
    scheduler, notes = scheduler_settings(model)
    weights = Collected(null_label=null_label)
    unet2d.walk(model, weights)
    pipeline = "DDPMPipeline" if scheduler["_class_name"] == "DDPMScheduler" else "DDIMPipeline"
    index = {
        "_class_name": pipeline,
        "_diffusers_version": _VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    for path, value in (
        ("model_index.json", index),
        ("unet/config.json", settings),
        ("scheduler/scheduler_config.json", scheduler),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    state = {name: value.float().cpu().contiguous().clone() for name, value in weights.state.items()}
    safetensors.torch.save_file(state, folder / "unet" / WEIGHTS[0], metadata={"format": "pt"})
    if model.facts.classes:
        count = len(model.facts.classes)
        none = f", and {count} is none" if null_label else ""
        notes.append(
            f"The pipelines of diffusers ask for no class: call unet(x, t, class_labels=...) with the scheduler; the "
            f"classes are 0 to {count - 1}{none}."
        )
    return notes


def _refuse(what: str) -> InputError:
    return InputError(f"diffusers can't express this model: {what}. Export it to onnx, openvino or safetensors.")


def network_settings(model: Model, null_label: bool = False) -> dict[str, Any]:
    """The settings of a ``UNet2DModel`` that computes what the network of the model does.

    Raises:
        InputError: if there are none.
    """
    config = model.config.model.network
    outer = model.denoiser.network
    network = outer.network if isinstance(outer, Conditioned) else outer
    if not isinstance(config, UNetConfig) or not isinstance(network, UNet):
        raise _refuse(f"its network is of the kind {config.kind}, and only U-Nets have an equivalent")
    plan = network.plan
    for differs, what in _differences(config, network):
        if differs:
            raise _refuse(what)
    groups = {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)}
    if len(groups) > 1:
        raise _refuse(
            f"its normalizations have {' and '.join(map(str, sorted(groups)))} groups, not one number of them"
        )
    (group,) = groups
    shifted, inside = plan.modulation == "adaptive", plan.resample == "block"
    attends = [level in plan.attention for level in range(len(plan.channels))]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if inside else ("DownBlock2D", "UpBlock2D")
    channels, *sides = model.facts.shape
    half = plan.channels[0] // 2
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": _VERSION,
        "sample_size": sides[0] if sides[0] == sides[1] else sides,
        "in_channels": channels,
        "out_channels": 2 * channels if model.denoiser.learned_variance else channels,
        "block_out_channels": list(plan.channels),
        "down_block_types": ["AttnDownBlock2D" if a else plain[0] for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else plain[1] for a in reversed(attends)],
        "layers_per_block": plan.blocks,
        "downsample_type": "resnet" if inside else "conv",
        "upsample_type": "resnet" if inside else "conv",
        "downsample_padding": 0 if plan.resample == "asymmetric" else 1,
        "add_attention": plan.middle_attention,
        "attention_head_dim": _head_width(network),
        "norm_num_groups": group,
        "attn_norm_num_groups": group if shifted else None,
        "norm_eps": plan.eps,
        "act_fn": "silu",
        "dropout": plan.dropout,
        "resnet_time_scale_shift": "scale_shift" if shifted else "default",
        "time_embedding_type": "positional",
        "time_embedding_dim": plan.width,
        "flip_sin_to_cos": True,
        # their exponents are i / (n - shift), ours i / n
        "freq_shift": round(half * (1.0 - math.log(10_000.0) / math.log(plan.time_period)), 9),
        "num_class_embeds": len(model.facts.classes) + null_label if model.facts.classes else None,
    }


def _differences(config: UNetConfig, network: UNet) -> list[tuple[bool, str]]:
    """What a ``UNet2DModel`` can't be, and whether the network is so."""
    plan = network.plan
    return [
        (plan.dims != 2, "it draws signals, and the U-Net there takes images"),
        (plan.patch != 1, "it sees patches of its input (model.network.patch)"),
        (plan.first not in (None, plan.channels[0]), "its first convolution has a width of its own"),
        (plan.skips != "all", "its skips join the activations of blocks only (model.network.skips blocks)"),
        (plan.up_attention != "all", "only the last block of each resolution attends on the way up"),
        (plan.middle != 2, f"its middle has {plan.middle} blocks, where there are always 2"),
        (
            plan.resample not in ("learned", "asymmetric", "block"),
            f"its resolution changes in the way {plan.resample} (model.network.resample)",
        ),
        (plan.resample == "block" and tuple(plan.taps) != (1.0, 1.0), "it is resampled by a filter of its own"),
        (plan.residual_input, "its input is added at every resolution, as in NCSN++"),
        (plan.rescale, "sums of its branches are rescaled, as in DDPM++ and NCSN++"),
        (
            plan.time_kind != "sinusoidal",
            f"its time features are {'random Fourier ones' if plan.time_kind == 'fourier' else plan.time_kind}, whose "
            "frequencies have no place there",
        ),
        (plan.time_scale != 1.0, "its time features have a scale (model.network.time_scale)"),
        (plan.features != plan.channels[0], "it has more or fewer time features than channels at first"),
        (plan.vector_in != "embedding", "its labels are added to the features of time"),
        (plan.tokens is not None, "it attends to tokens of a condition"),
        (plan.concatenated > 0, "it takes channels of a condition"),
    ]


def _head_width(network: UNet) -> int | None:
    """The channels of a head, None for a single head everywhere."""
    layers = [m for m in network.modules() if isinstance(m, Attention)]
    if all(layer.heads == 1 for layer in layers):
        return None
    widths = {layer.norm.num_channels // layer.heads for layer in layers}
    if len(widths) > 1:
        raise _refuse(
            f"its attention heads have {' and '.join(map(str, sorted(widths)))} channels, not one number of them "
            "(model.network.head_channels)"
        )
    return widths.pop()


def scheduler_settings(model: Model) -> tuple[dict[str, Any], list[str]]:
    """The settings of a scheduler with the levels and the sampler of the model; and what differs, in words.

    Raises:
        InputError: if there are none.
    """
    config, sampling = model.config.model, model.config.sampling
    schedule = model.denoiser.schedule
    if not isinstance(schedule, Discrete):
        raise _refuse(f"its schedule {config.schedule.kind} is no table of betas")
    if config.time not in ("auto", "index"):
        raise _refuse(f"its network is told {config.time} of the noise level, not the index of a step")
    kinds = {kind.kind: name for name, kind in PREDICTIONS.items()}
    if config.parameterization.kind not in kinds:
        raise _refuse(f"its network predicts {config.parameterization.kind}, not eps, x0 or v")
    notes: list[str] = []
    sampler = sampling.sampler
    ancestral = isinstance(sampler, Ancestral) or config.learned_variance
    of_noise = isinstance(config.parameterization, Eps | Score)
    found: dict[str, Any] = {
        "_class_name": "DDPMScheduler" if ancestral else "DDIMScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": schedule.steps,
        "prediction_type": kinds[config.parameterization.kind],
        "clip_sample": of_noise if sampling.clip is None else sampling.clip,
        "clip_sample_range": 1.0,
        "timestep_spacing": "trailing",
        **_betas(model, schedule),
    }
    if ancestral:
        asked = sampler.variance if isinstance(sampler, Ancestral) else "learned"
        names: dict[str, str] = {}
        for theirs, ours in VARIANCES.items():
            names.setdefault(ours, theirs)
        # a network of twice the channels is only understood so
        found["variance_type"] = names["learned"] if config.learned_variance else names.get(asked, names["small"])
        if VARIANCES[found["variance_type"]] != asked:
            notes.append(
                f"The reverse variance is {found['variance_type']}, since diffusers has none for {asked} here."
            )
    else:
        found["set_alpha_to_one"] = True
        if found["clip_sample"]:
            notes.append("DDIM here takes the noise from the clipped estimate: pass use_clipped_model_output=True.")
    if not isinstance(sampler, Ancestral | Ddim):
        notes.append(f"The sampler {sampler.kind} is left to its user; the pipeline samples by {found['_class_name']}.")
    if sampling.guidance != type(sampling.guidance)():
        notes.append("The guidance of this run is not in the pipeline.")
    return found, notes


def _betas(model: Model, schedule: Discrete) -> dict[str, Any]:
    """The table by its name where it has one there, else number by number."""
    config = model.config.model.schedule
    if isinstance(config, Linear) and config.steps == 1000:
        return {"beta_schedule": "linear", "beta_start": config.beta_start, "beta_end": config.beta_end}
    if isinstance(config, Cosine) and config.s == 0.008:
        return {"beta_schedule": "squaredcos_cap_v2"}
    return {"trained_betas": schedule.betas.tolist()}
