"""Models of OpenAI's improved-diffusion and guided-diffusion: plain state dicts, described by their flags."""

from __future__ import annotations

from typing import Any

from torch import nn

from sfumato.conditioning import Condition, Label, LowResolution
from sfumato.config import ModelConfig, parse
from sfumato.diffusion.denoiser import Denoiser
from sfumato.errors import InputError
from sfumato.interop.model import build_model, label_table, unet_of
from sfumato.interop.weights import HeadOrder, Transfer, Weights, put, require_fit, require_groups
from sfumato.models.model import Model
from sfumato.networks.classifier import Classifier
from sfumato.networks.unet import ResBlock, UNetBlock, UNetEncoder
from sfumato.recipes.openai import (
    CLASSIFIER_DEFAULTS,
    GUIDED,
    GUIDED_DEFAULTS,
    UPSAMPLER_MULTIPLES,
    flags_of,
    guided,
    guided_network,
)
from sfumato.recipes.settings import Settings, by_name, numbers, with_defaults

_RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "modulation": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}


def load_guided_diffusion(weights: Weights, settings: str | Settings, *, program: str | None = None) -> Model:
    """The model of a state dict of improved-diffusion or guided-diffusion.

    ::

        model = sfumato.interop.load_guided_diffusion("256x256_diffusion.pt", "adm-256")

    Args:
        weights: a file, or a mapping from names to tensors.
        settings: the name of a published model (``sfumato.recipes.openai.GUIDED``), or the flags of their programs.
        program: ``"guided-diffusion"`` or ``"improved-diffusion"``, whose flags these are; only needed where their
            defaults differ.

    Returns:
        The model; a class of -1 adds nothing to the embedding, which only a model without classes was trained for.
    """
    flags = flags_of(by_name(settings, GUIDED, "guided-diffusion"), program)
    transfer = Transfer(weights)
    model = build_model(guided(flags), transfer.state)
    _fill(transfer, model.denoiser.network, flags)
    return model


def load_guided_upsampler(weights: Weights, settings: Settings, *, program: str | None = None) -> Denoiser:
    """The denoiser of an up-sampling model of improved-diffusion or guided-diffusion.

    Args:
        weights: a file, or a mapping from names to tensors.
        settings: the flags of their programs, with ``large_size`` and ``small_size`` in place of ``image_size``.
        program: as of :func:`load_guided_diffusion`.

    Returns:
        A denoiser with the conditions ``low_res``, images of any size that are resized to the large one bilinearly,
        and ``label`` for a model with classes.
    """
    sizes = {"large_size": 256, "small_size": 64}
    known = {name: value for name, value in GUIDED_DEFAULTS.items() if name != "image_size"} | sizes
    size: int = with_defaults(settings, known, "guided-diffusion's up-sampler")["large_size"]
    rest = {name: value for name, value in settings.items() if name not in sizes}
    multiples = numbers(rest.get("channel_mult", "")) or UPSAMPLER_MULTIPLES.get(size)
    if not multiples:
        raise InputError(
            f"An up-sampler has no widths for a large_size of {size}; give channel_mult, or one of "
            f"{', '.join(map(str, UPSAMPLER_MULTIPLES))}."
        )
    flags = flags_of({**rest, "image_size": size, "channel_mult": multiples}, program)
    published, transfer = guided(flags), Transfer(weights)
    config = parse(ModelConfig, published.model)
    sizes = {"classes": published.classes, **published.model["network"]}
    require_fit(sizes, transfer.state, lambda: config.build_network(published.shape))
    conditions: dict[str, Condition] = {"low_res": LowResolution(factor=1, up="bilinear")}
    if published.classes:
        conditions["label"] = Label(drop=published.drop, names=tuple(map(str, range(published.classes))))
    denoiser = config.build(published.shape, conditions, 0.5)
    _fill(transfer, denoiser.network, flags)
    return denoiser.eval()


def load_guided_classifier(weights: Weights, settings: Settings) -> Classifier:
    """A classifier of noisy images of guided-diffusion, called with them and their step index.

    Args:
        weights: a file, or a mapping from names to tensors.
        settings: the flags of their programs, ``image_size``, ``classifier_width`` and so on.
    """
    flags = with_defaults(settings, CLASSIFIER_DEFAULTS, "guided-diffusion's classifier")
    if flags["classifier_pool"] != "attention":
        raise InputError(f"The classifier_pool {flags['classifier_pool']!r} can't be loaded; only attention can.")
    options = guided_network(
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
    del options["kind"]
    transfer = Transfer(weights)
    classes, size = flags["num_classes"], flags["image_size"]
    require_fit(
        {"classes": classes, "image_size": size, **options},
        transfer.state,
        lambda: Classifier(3, classes, (size, size), **options),
    )
    network = Classifier(3, classes, (size, size), **options)
    _fill_encoder(transfer, network, "heads_first")
    transfer.layer(network.norm, "out.0")
    put(network.position, transfer.tensor("out.2.positional_embedding", network.position.T.shape).T)
    transfer.layer(network.qkv, "out.2.qkv_proj")
    transfer.layer(network.out, "out.2.c_proj")
    transfer.finish()
    return network.eval()


def _fill(transfer: Transfer, network: nn.Module, flags: Settings) -> None:
    order: HeadOrder = "ours" if flags["use_new_attention_order"] else "heads_first"
    unet = unet_of(network)
    _fill_encoder(transfer, unet, order)
    number, place = -1, 0
    for module in (module for stage in unet.up for module in stage.children()):
        if isinstance(module, UNetBlock):
            number, place = number + 1, 0
        # what changes the resolution is the last part of the block before it
        place = _part(transfer, module, f"output_blocks.{number}", place, order)
    transfer.layer(unet.norm, "out.0")
    transfer.layer(unet.last, "out.2")
    transfer.labels(label_table(network), "label_emb.weight")
    transfer.finish()


def _fill_encoder(transfer: Transfer, network: UNetEncoder, order: HeadOrder) -> None:
    require_groups(network, 32)
    transfer.layer(network.time.first, "time_embed.0")
    transfer.layer(network.time.second, "time_embed.2")
    transfer.layer(network.first, "input_blocks.0.0")
    for number, module in enumerate((m for stage in network.down for m in stage.children()), start=1):
        _part(transfer, module, f"input_blocks.{number}", 0, order)
    place = 0
    for module in network.middle:
        place = _part(transfer, module, "middle_block", place, order)


def _part(transfer: Transfer, module: Any, name: str, place: int, order: HeadOrder) -> int:
    """Copy one of our modules, which is at ``name.place`` there; returns the next place."""
    here = f"{name}.{place}"
    if isinstance(module, ResBlock | UNetBlock):
        block = module if isinstance(module, ResBlock) else module.res
        transfer.block(block, here, _RES_BLOCK)
        if isinstance(module, UNetBlock) and module.attention is not None:
            place += 1
            there = f"{name}.{place}"
            transfer.attention(module.attention, f"{there}.norm", f"{there}.qkv", f"{there}.proj_out", order)
    elif hasattr(module, "conv"):
        transfer.layer(module.conv, f"{here}.conv")
    else:
        transfer.layer(module.resample, f"{here}.op")
    return place + 1
