"""Models of OpenAI's improved-diffusion and guided-diffusion: plain state dicts, described by their flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioning.encoders import Conditioned, LabelEncoder, Resized
from sfumato.diffusion.denoiser import Denoiser, embed_index
from sfumato.diffusion.schedule import Discrete
from sfumato.errors import InputError, nearest
from sfumato.interop.model import model_of, unet_of
from sfumato.interop.weights import HeadOrder, Transfer, put, read_state, require_groups, tensors_of
from sfumato.models.model import Model
from sfumato.networks.classifier import Classifier
from sfumato.networks.layers import Attention, ResBlock
from sfumato.networks.unet import UNet, WayDown
from sfumato.recipes.openai import (
    GUIDED,
    GUIDED_DEFAULTS,
    UPSAMPLER_MULTIPLES,
    flags_of,
    guided,
    guided_network,
)
from sfumato.recipes.settings import Settings, filled, numbers

Weights = str | Path | Mapping[str, Tensor]


def _state(weights: Weights) -> tuple[Mapping[str, Tensor], str]:
    if isinstance(weights, str | Path):
        return read_state(weights), str(weights)
    return tensors_of(weights, "What was given"), "the state dict"


def _settings(settings: str | Settings) -> Settings:
    if not isinstance(settings, str):
        return settings
    if settings not in GUIDED:
        raise InputError(f"There is no published model {settings!r} of guided-diffusion{nearest(settings, GUIDED)}")
    return GUIDED[settings]


def load_guided_diffusion(weights: Weights, settings: str | Settings, *, program: str | None = None) -> Model:
    """The model of a state dict of improved-diffusion or guided-diffusion.

    ::

        model = sfumato.interop.load_guided_diffusion("256x256_diffusion.pt", "adm-256")

    Args:
        weights: a file, or a mapping from names to tensors.
        settings: the name of a published model (``sfumato.recipes.openai.GUIDED``), or the flags of their programs.
        program: ``"guided-diffusion"`` or ``"improved-diffusion"``, whose flags these are: what is not given has other
            defaults in the two. Only where they differ in what the network is told must it be said.

    Returns:
        The model; a class of -1 adds nothing to the embedding, which only a model without classes was trained for.

    Raises:
        InputError: for unknown flags, or weights that are not those of the flags.
    """
    flags = flags_of(_settings(settings), program)
    published = guided(flags)
    transfer = Transfer(*_state(weights))
    model = model_of(published.model, published.shape, published.classes, published.sampling)
    _fill(transfer, unet_of(model), _order(flags))
    if isinstance(model.denoiser.network, Conditioned):
        _labels(transfer, model.denoiser.network.encoders["label"])
    transfer.finish()
    return model


def load_guided_upsampler(weights: Weights, settings: Settings, *, program: str | None = None) -> Denoiser:
    """The denoiser of an up-sampling model of improved-diffusion or guided-diffusion.

    Args:
        weights: a file, or a mapping from names to tensors.
        settings: the flags of their programs, with ``large_size`` and ``small_size`` in place of ``image_size``.
        program: as of :func:`load_guided_diffusion`.

    Returns:
        A denoiser with the conditions ``low_res``, pictures of any size that are brought to the large one bilinearly,
        and ``label`` for a model with classes.

    Raises:
        InputError: for unknown flags, or weights that are not those of the flags.
    """
    sizes = {"large_size": 256, "small_size": 64}
    known = {name: value for name, value in GUIDED_DEFAULTS.items() if name != "image_size"} | sizes
    size: int = filled(settings, known, "guided-diffusion's up-sampler")["large_size"]
    own = {name: value for name, value in settings.items() if name not in sizes}
    if not numbers(own.get("channel_mult", "")):
        own["channel_mult"] = UPSAMPLER_MULTIPLES.get(size, ())
    if not own["channel_mult"]:
        raise InputError(
            f"An up-sampler has no widths for a large_size of {size}; give channel_mult, or one of "
            f"{', '.join(map(str, UPSAMPLER_MULTIPLES))}."
        )
    flags = flags_of({**own, "image_size": size}, program)
    published = guided(flags)
    outputs = 6 if flags["learn_sigma"] else 3
    options: dict[str, Any] = {**guided_network(flags, size).options(), "concatenated": 3}
    network = UNet(3, outputs, **options)
    encoders: dict[str, nn.Module] = {"low_res": Resized(3, (size, size))}
    transfer = Transfer(*_state(weights))
    _fill(transfer, network, _order(flags))
    if published.classes:
        encoders["label"] = LabelEncoder(published.classes, network.width)
        _labels(transfer, encoders["label"])
    transfer.finish()
    schedule = published.model.schedule.build()
    assert isinstance(schedule, Discrete)
    meaning = published.model.parameterization.build(0.5, schedule)
    whole = Conditioned(network, encoders)
    return Denoiser(whole, schedule, meaning, embed_index(schedule.steps), learned_variance=flags["learn_sigma"]).eval()


CLASSIFIER_DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
    "classifier_use_fp16": False,
    "channel_mult": "",
    "num_classes": 1000,
}
"""What the flags of guided-diffusion's classifiers are when they are not given."""


def load_guided_classifier(weights: Weights, settings: Settings) -> Classifier:
    """A classifier of noisy pictures of guided-diffusion, called with them and their step index.

    Args:
        weights: a file, or a mapping from names to tensors.
        settings: the flags of their programs, ``image_size``, ``classifier_width`` and so on.

    Raises:
        InputError: for unknown flags, another pooling than attention, or weights that are not those of the flags.
    """
    flags = filled(settings, CLASSIFIER_DEFAULTS, "guided-diffusion's classifier")
    if flags["classifier_pool"] != "attention":
        raise InputError(f"The classifier_pool {flags['classifier_pool']!r} can't be loaded; only attention can.")
    config = guided_network(
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
        flags["image_size"],
    )
    network = Classifier(3, flags["num_classes"], flags["image_size"], **config.options())
    transfer = Transfer(*_state(weights))
    _down(transfer, network, "heads_first")
    transfer.layer(network.norm, "out.0")
    pool = "out.2"
    shape = network.position.T.shape
    put(network.position, transfer.tensor(f"{pool}.positional_embedding", shape).T)
    transfer.layer(network.qkv, f"{pool}.qkv_proj")
    transfer.layer(network.out, f"{pool}.c_proj")
    transfer.finish()
    return network.eval()


def _order(flags: Settings) -> HeadOrder:
    return "ours" if flags["use_new_attention_order"] else "heads_first"


def _labels(transfer: Transfer, encoder: nn.Module) -> None:
    assert isinstance(encoder, LabelEncoder)
    table = encoder.table.weight
    put(table[1:], transfer.tensor("label_emb.weight", table[1:].shape))
    put(table[0], torch.zeros(()))


def _fill(transfer: Transfer, network: UNet, order: HeadOrder) -> None:
    _down(transfer, network, order)
    number = -1
    for stage in network.up:
        place = 0
        for module in _modules(stage):
            if hasattr(module, "res"):
                number, place = number + 1, 0
            # what changes the resolution is the last part of the block before it
            place = _part(transfer, module, f"output_blocks.{number}", place, order)
    transfer.layer(network.norm, "out.0")
    transfer.layer(network.last, "out.2")


def _down(transfer: Transfer, network: WayDown, order: HeadOrder) -> None:
    require_groups(network, 32)
    transfer.layer(network.time.first, "time_embed.0")
    transfer.layer(network.time.second, "time_embed.2")
    transfer.layer(network.first, "input_blocks.0.0")
    for number, module in enumerate((m for stage in network.down for m in _modules(stage)), start=1):
        _part(transfer, module, f"input_blocks.{number}", 0, order)
    place = 0
    for module in network.middle:
        place = _part(transfer, module, "middle_block", place, order)


def _modules(stage: nn.Module) -> Iterable[Any]:
    return stage.children()


def _part(transfer: Transfer, module: Any, name: str, place: int, order: HeadOrder) -> int:
    """Take one of our modules, which is at ``name.place`` there; returns the next place."""
    here = f"{name}.{place}"
    if isinstance(module, ResBlock):
        _res_block(transfer, module, here)
    elif hasattr(module, "res"):
        _res_block(transfer, module.res, here)
        if module.attention is not None:
            place += 1
            _attend(transfer, module.attention, f"{name}.{place}", order)
    elif hasattr(module, "conv"):
        transfer.layer(module.conv, f"{here}.conv")
    else:
        transfer.layer(module.resample, f"{here}.op")
    return place + 1


def _attend(transfer: Transfer, layer: Attention, name: str, order: HeadOrder) -> None:
    transfer.attention(layer, f"{name}.norm", f"{name}.qkv", f"{name}.proj_out", order)


def _res_block(transfer: Transfer, block: ResBlock, name: str) -> None:
    theirs = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "modulation": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
    }
    transfer.block(block, {ours: f"{name}.{theirs[ours]}" for ours in theirs})
