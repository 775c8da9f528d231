"""Models as diffusers keeps them: a folder that its pipelines load."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from sfumato.diffusion.schedule import Discrete
from sfumato.errors import InputError
from sfumato.interop.diffusers_format import WEIGHTS, UNet2DModel, transfer_weights
from sfumato.interop.model import drops_labels, label_table, unet_of
from sfumato.interop.schedulers import PREDICTIONS, VARIANCES
from sfumato.interop.weights import Collection
from sfumato.models.model import Model
from sfumato.networks.attention import Attention
from sfumato.networks.blueprint import Blueprint
from sfumato.networks.unet import UNet

_VERSION = "0.30.0"
"""The version whose settings are written; later ones read them."""


def write_diffusers(model: Model, folder: Path) -> list[str]:
    """Write a model as a ``DDPMPipeline``, or a ``DDIMPipeline`` where it is sampled by DDIM there.

    Its network gives the same outputs. Its scheduler is that of the sampler: of ancestral sampling, DDIM, DPM-Solver++
    or UniPC, and of DDIM for any other. It takes the levels of grid timesteps, or those of the grid uniform, which are
    the same wherever the number of steps divides that of the table.

    Returns:
        Sentences on what its user must know.
    """
    table, null_label = label_table(model.denoiser.network), drops_labels(model)
    classes = 0 if table is None else len(table) - 1
    settings = network_settings(model, classes, null_label)
    for name in model.conditions:
        if name != "label" or table is None:
            raise _refuse(f"it has the condition {name!r}, and the U-Net there takes no other than the class, 'label'")
    scheduler, notes = scheduler_settings(model)
    weights = Collection(null_label=null_label)
    transfer_weights(model, weights)
    pipeline = "DDIMPipeline" if scheduler["_class_name"] == "DDIMScheduler" else "DDPMPipeline"
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
    safetensors.torch.save_file(state, folder / "unet" / WEIGHTS, metadata={"format": "pt"})
    if classes:
        none = f", and {classes} is none" if null_label else ""
        notes.append(
            f"The pipelines of diffusers take no class: call unet(x, t, class_labels=...) with the scheduler; the "
            f"classes are 0 to {classes - 1}{none}."
        )
    return notes


def _refuse(what: str) -> InputError:
    return InputError(f"diffusers can't express this model: {what}. Export it to onnx, openvino or safetensors.")


def network_settings(model: Model, classes: int, null_label: bool) -> dict[str, Any]:
    """The settings of a ``UNet2DModel`` that computes what the network of the model does."""
    kind = model.config.model.network.kind
    if kind != "unet":
        raise _refuse(f"its network is of the kind {kind}, and only U-Nets have an equivalent")
    network = unet_of(model.denoiser.network)
    blueprint = network.blueprint
    _check(blueprint)
    groups = {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)}
    if len(groups) > 1:
        raise _refuse(
            f"its normalizations have {' and '.join(map(str, sorted(groups)))} groups, not one number of them"
        )
    (group,) = groups
    shifted, inside = blueprint.modulation == "adaptive", blueprint.resample == "block"
    attends = [level in blueprint.attention for level in range(len(blueprint.channels))]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if inside else ("DownBlock2D", "UpBlock2D")
    channels, *sides = model.info.shape
    half = blueprint.channels[0] // 2
    settings: dict[str, Any] = {
        "sample_size": sides,
        "in_channels": channels,
        "out_channels": 2 * channels if model.denoiser.learned_variance else channels,
        "block_out_channels": list(blueprint.channels),
        "down_block_types": ["AttnDownBlock2D" if a else plain[0] for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else plain[1] for a in reversed(attends)],
        "layers_per_block": blueprint.depths[0],
        "downsample_type": "resnet" if inside else "conv",
        "upsample_type": "resnet" if inside else "conv",
        "downsample_padding": 0 if blueprint.resample == "asymmetric" else 1,
        "add_attention": blueprint.middle_attention,
        "attention_head_dim": _head_width(network),
        "norm_num_groups": group,
        "attn_norm_num_groups": group if shifted else None,
        "norm_eps": blueprint.eps,
        "dropout": blueprint.dropout,
        "resnet_time_scale_shift": "scale_shift" if shifted else "default",
        "time_embedding_dim": blueprint.embedding_width,
        # their exponents are i / (n - shift), ours i / n
        "freq_shift": round(half * (1.0 - math.log(10_000.0) / math.log(blueprint.time_period)), 9),
        "num_class_embeds": classes + null_label if classes else None,
    }
    square = {"sample_size": sides[0]} if sides[0] == sides[1] else {}
    facts = {"_class_name": "UNet2DModel", "_diffusers_version": _VERSION}
    return facts | UNet2DModel(**settings).model_dump() | square


def _check(b: Blueprint) -> None:
    """Check that a U-Net has nothing that a ``UNet2DModel`` can't be."""
    if b.dims != 2:
        raise _refuse("it makes signals, and the U-Net there takes images")
    if b.tokens is not None:
        raise _refuse("it attends to tokens of a condition")
    if b.concatenated:
        raise _refuse("it takes channels of a condition")
    width = b.channels[0]
    equivalents: dict[str, tuple[Any, ...]] = {
        "patch": (1,),
        "first": (None, width),
        "coordinates": (False,),
        "blocks": (b.blocks if isinstance(b.blocks, int) else (b.depths[0],) * len(b.depths),),
        "order": ("blocks",),
        "skips": ("all",),
        "skip_scale": (1.0,),
        "down_attention": ("all",),
        "up_attention": ("all",),
        "middle": (2,),
        "resample": ("learned", "asymmetric", "block"),
        "taps": ((1.0, 1.0),) if b.resample == "block" else (b.taps,),
        "residual_input": (False,),
        "rescale": (False,),
        "time_kind": ("sinusoidal",),
        "time_features": (width,) if width % 2 else (None, width),
        "time_scale": (1.0,),
        "vector_in": ("embedding",),
    }
    for name, values in equivalents.items():
        if getattr(b, name) not in values:
            only = " or ".join(map(str, values))
            raise _refuse(f"model.network.{name} is {getattr(b, name)}, and only {only} has an equivalent there")


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
    """The settings of a scheduler with the levels and the sampler of the model; and what differs, in words."""
    config, sampling = model.config.model, model.config.sampling
    schedule = model.denoiser.schedule
    if not isinstance(schedule, Discrete):
        raise _refuse(f"its schedule {config.schedule.kind} is no table of betas")
    if config.time not in ("auto", "index"):
        raise _refuse(f"its network is given the noise level as {config.time}, not as the index of a step")
    names = {kind: name for name, kind in PREDICTIONS.items()}
    output = config.parameterization.kind
    if output not in names:
        raise _refuse(f"its network predicts {output}, not eps, x0 or v")
    notes: list[str] = []
    sampler = sampling.sampler
    ancestral = sampler.kind == "ancestral" or config.learned_variance
    multistep = not ancestral and _has_multistep(sampler)
    kinds = {"dpm_solver": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
    settings: dict[str, Any] = {
        "_class_name": kinds[sampler.kind] if multistep else "DDPMScheduler" if ancestral else "DDIMScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": schedule.steps,
        "prediction_type": names[output],
        "clip_sample": output == "eps" if sampling.clip is None else sampling.clip,
        "clip_sample_range": 1.0,
        **_spacing(sampling.grid, multistep),
        **_betas(model, schedule),
    }
    if ancestral:
        variance = sampler.variance if sampler.kind == "ancestral" else "learned"
        theirs = {ours: name for name, ours in reversed(VARIANCES.items())}
        # a network of twice the channels is only understood so
        name = theirs["learned"] if config.learned_variance else theirs.get(variance, theirs["small"])
        settings["variance_type"] = name
        if VARIANCES[name] != variance:
            notes.append(f"The reverse variance is {name}, since diffusers has none for {variance} here.")
    elif multistep:
        notes += _multistep(settings, sampler, schedule)
    else:
        notes += _ddim(settings, sampler, schedule)
        if settings["clip_sample"] and getattr(sampler, "clip_data", None) is None:
            notes.append("DDIM here takes the noise from the clipped estimate: pass use_clipped_model_output=True.")
    if sampler.kind not in ("ancestral", "ddim") and not multistep:
        notes.append(
            f"The sampler {sampler.kind} is left to its user; the pipeline samples by {settings['_class_name']}."
        )
    if sampling.grid.kind not in ("uniform", "trailing") and "steps_offset" not in settings:
        notes.append(f"The levels of the grid {sampling.grid.kind} are not in the pipeline; it takes those of uniform.")
    if sampling.guidance != type(sampling.guidance)():
        notes.append("The guidance of this run is not in the pipeline.")
    return settings, notes


def _has_multistep(sampler: Any) -> bool:
    """Whether the sampler is DPM-Solver++ or UniPC as diffusers takes them: of order 3, neither is the same there."""
    if sampler.kind == "unipc":
        return sampler.order < 3 and sampler.corrector and sampler.b == "bh2"
    return sampler.kind == "dpm_solver" and sampler.order < 3


def _multistep(settings: dict[str, Any], sampler: Any, schedule: Discrete) -> list[str]:
    """What DPM-Solver++ and UniPC have there, written into the settings; and what is left of it."""
    # dynamic thresholds of at most 1 clip
    settings |= {"thresholding": settings.pop("clip_sample"), "sample_max_value": settings.pop("clip_sample_range")}
    settings |= {"solver_order": sampler.order, "final_sigmas_type": "zero"}
    notes: list[str] = []
    if sampler.kind == "unipc":
        settings |= {"solver_type": "bh2", "predict_x0": True}
        notes.append(
            "The pipelines of diffusers give their scheduler a generator, which that of UniPC does not take: call "
            "unet(x, t) and scheduler.step(out, t, x) for t in scheduler.timesteps."
        )
    else:
        settings |= {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
    if sampler.final_order != 1 and sampler.order > 1:
        notes.append("The last step has order 1 there, as with sampler.final_order 1 here.")
    if float(schedule.alpha_bars[-1]) == 0.0:
        settings["rescale_betas_zero_snr"] = True
        notes.append("Sampling starts with alpha_bar 2^-24 there, and without signal here.")
    return notes


def _spacing(grid: Any, multistep: bool) -> dict[str, Any]:
    """The spacing of the steps: ours where it is one of theirs, else that of our uniform grid."""
    if grid.kind != "timesteps" or grid.noisiest is not None:
        return {"timestep_spacing": "trailing"}
    if grid.before_last != multistep and grid.spacing != "trailing":
        return {"timestep_spacing": "trailing"}
    return {"timestep_spacing": grid.spacing, "steps_offset": grid.offset}


def _ddim(settings: dict[str, Any], sampler: Any, schedule: Discrete) -> list[str]:
    """What only DDIM has, written into the settings; and what is left of it."""
    settings["set_alpha_to_one"] = True
    if sampler.kind != "ddim":
        return []
    if sampler.clip_data is not None:
        settings |= {"clip_sample": True, "clip_sample_range": sampler.clip_data}
    notes: list[str] = []
    if sampler.final_sigma > 0.0:
        settings["set_alpha_to_one"] = False
        first = float(schedule(1.0 / schedule.steps).sigma)
        if not math.isclose(first, sampler.final_sigma, rel_tol=1e-6):
            notes.append(f"The noise left in a sample is {first:.3g} there, and {sampler.final_sigma:.3g} here.")
    if sampler.eta > 0.0:
        notes.append(f"The pipeline takes the noise of DDIM when it is called: pass eta={sampler.eta:g}.")
    return notes


def _betas(model: Model, schedule: Discrete) -> dict[str, Any]:
    """The table by its name where it has one there, else number by number."""
    config: Any = model.config.model.schedule
    if config.kind == "linear" and config.steps == 1000:
        return {"beta_schedule": "linear", "beta_start": config.beta_start, "beta_end": config.beta_end}
    if config.kind == "cosine" and config.s == 0.008:
        return {"beta_schedule": "squaredcos_cap_v2"}
    return {"trained_betas": schedule.betas.tolist()}
