"""Models of OpenAI's improved-diffusion and guided-diffusion: plain state dicts, described by their flags."""

from __future__ import annotations

from typing import Any

from torch import nn

from sfumato.interop.model import build_model, label_table, unet_of
from sfumato.interop.weights import HeadOrder, Transfer, Weights, put, require_fit, require_groups
from sfumato.models.model import Model
from sfumato.networks.classifier import Classifier
from sfumato.networks.unet import ResBlock, UNetBlock, UNetEncoder
from sfumato.recipes.openai import GUIDED, UPSAMPLERS, classifier, flags_of, guided, upsampler
from sfumato.recipes.settings import Settings, by_name, settings_of, with_defaults

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


def load_guided_upsampler(weights: Weights, settings: str | Settings, *, program: str | None = None) -> Model:
    """The up-sampling model of a state dict of improved-diffusion or guided-diffusion.

    ::

        model = sfumato.interop.load_guided_upsampler("64_256_upsampler.pt", "adm-64-256")
        large = model.sample(1, low_resolution="small.png", label=207)

    Args:
        weights: a file, or a mapping from names to tensors.
        settings: the name of a published one (``sfumato.recipes.openai.UPSAMPLERS``), or the flags of their programs,
            with ``large_size`` and ``small_size`` in place of ``image_size``.
        program: as of :func:`load_guided_diffusion`.

    Returns:
        A model with the conditions ``low_resolution``, images of any size that are scaled up to the large one
        bilinearly, and ``label`` if it has classes.
    """
    settings = by_name(settings, UPSAMPLERS, "guided-diffusion")
    published, transfer = upsampler(settings, program), Transfer(weights)
    model = build_model(published, transfer.state)
    _fill(transfer, model.denoiser.network, settings)
    return model


def load_guided_classifier(weights: Weights, settings: str | Settings) -> Classifier:
    """A classifier of noisy images of guided-diffusion, called with them and their step index.

    Args:
        weights: a file, or a mapping from names to tensors.
        settings: the name of a published one (``sfumato.recipes.openai.CLASSIFIERS``), or the flags of their programs,
            ``image_size``, ``classifier_width`` and so on.
    """
    published = classifier(by_name(settings, settings_of("classifier"), "guided-diffusion"))
    transfer, options = Transfer(weights), published.network
    channels, size, _ = published.shape
    require_fit(
        {"classes": published.classes, "image_size": size, **options},
        transfer.state,
        lambda: Classifier(channels, published.classes, size, **options),
    )
    network = Classifier(channels, published.classes, size, **options)
    _fill_encoder(transfer, network, "heads_first")
    transfer.layer(network.norm, "out.0")
    put(network.position, transfer.tensor("out.2.positional_embedding", network.position.T.shape).T)
    transfer.layer(network.qkv, "out.2.qkv_proj")
    transfer.layer(network.out, "out.2.c_proj")
    transfer.finish()
    return network.eval()


def _fill(transfer: Transfer, network: nn.Module, settings: Settings) -> None:
    name = "use_new_attention_order"
    new = with_defaults({name: settings.get(name, False)}, {name: False}, "guided-diffusion")[name]
    order: HeadOrder = "ours" if new else "heads_first"
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
