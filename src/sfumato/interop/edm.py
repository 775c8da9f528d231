"""Networks of EDM (Karras et al. 2022), given as plain tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sfumato.interop.model import build_model, label_table, unet_of
from sfumato.interop.weights import Transfer, Weights, put, require_groups, swap_halves
from sfumato.models.model import Model
from sfumato.networks.unet import ResBlock, UNet
from sfumato.recipes.published import EDM, edm
from sfumato.recipes.settings import Settings, by_name

_RES_BLOCK = {
    "norm1": "norm0",
    "conv1": "conv0",
    "modulation": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "skip": "skip",
}


def load_edm(weights: Weights, settings: str | Settings) -> Model:
    """The model of the tensors of an EDM network, ``SongUNet`` or ``DhariwalUNet``, with EDM's preconditioning.

    Published files are pickles of programs, which are never loaded; where they are trusted, their own program can save
    the tensors, ``safetensors.torch.save_file(network.state_dict(), path)``.

    Args:
        weights: a file, or a mapping from names to tensors; names may begin with ``model.``, that of the network in
            its preconditioning.
        settings: the name of a published network (``sfumato.recipes.published.EDM``), or the arguments of the class
            with its ``class_name``.

    Returns:
        The model. Where a ``SongUNet`` was conditioned on the augmentation of training images (``augment_dim`` 9), this
        is its condition ``augmentation``, with which its training can go on; samples have none. A
        ``DhariwalUNet`` comes without.
    """
    settings = by_name(settings, EDM, "EDM")
    published = edm(settings)
    # the filters are part of the settings
    transfer = Transfer(weights, lambda n: None if n.endswith("resample_filter") else n.removeprefix("model."))
    if "map_augment.weight" not in transfer.state:
        published = replace(published, others={})
    model = build_model(published, transfer.state)
    network, song = unet_of(model.denoiser.network), settings.get("class_name", "SongUNet") == "SongUNet"
    require_groups(network, 32, at_least=4)
    _fill(transfer, network, song, published.shape[1])
    _labels(transfer, label_table(model.denoiser.network), song)
    if "augmentation" in model.conditions:
        encoder: Any = model.denoiser.network.encoders["augmentation"]
        # its rows are the time features, to which it is added
        put(encoder.linear.weight, swap_halves(transfer.tensor("map_augment.weight", encoder.linear.weight.shape).T).T)
    transfer.finish("map_augment.")
    return model


def _fill(transfer: Transfer, network: UNet, song: bool, size: int) -> None:
    time = network.time
    # a SongUNet has sines before cosines
    transfer.layer(time.first, "map_layer0", change=swap_halves if song else None)
    transfer.layer(time.second, "map_layer1")
    if network.blueprint.time_kind == "fourier":
        frequencies = transfer.tensor("map_noise.freqs", time.features.frequencies.shape)
        put(time.features.frequencies, 2.0 * math.pi * frequencies)
    names = [f"{size // 2**level}x{size // 2**level}" for level in range(len(network.down))]
    transfer.layer(network.first, f"enc.{names[0]}_conv")
    for name, below, stage in zip(names, [*names[1:], ""], network.down, strict=True):
        _stage(transfer, stage, f"enc.{name}", f"enc.{below}_down")
    if network.blueprint.residual_input:
        for name, module in zip(names[1:], network.residuals, strict=True):
            transfer.layer(module.conv, f"enc.{name}_aux_residual")  # pyright: ignore[reportArgumentType]
    for i, module in enumerate(network.middle):
        _block(transfer, module, f"dec.{names[-1]}_in{i}")
    for name, above, stage in zip(names[::-1], [*names[-2::-1], ""], network.up, strict=True):
        _stage(transfer, stage, f"dec.{name}", f"dec.{above}_up")
    ends = (f"dec.{names[0]}_aux_norm", f"dec.{names[0]}_aux_conv") if song else ("out_norm", "out_conv")
    transfer.layer(network.norm, ends[0])
    transfer.layer(network.last, ends[1])


def _stage(transfer: Transfer, stage: Any, name: str, resampling: str) -> None:
    for i, module in enumerate(stage):
        _block(transfer, module, resampling if isinstance(module, ResBlock) else f"{name}_block{i}")


def _block(transfer: Transfer, module: Any, name: str) -> None:
    block = module if isinstance(module, ResBlock) else module.res
    transfer.block(block, name, _RES_BLOCK)
    if not isinstance(module, ResBlock) and module.attention is not None:
        transfer.attention(module.attention, f"{name}.norm2", f"{name}.qkv", f"{name}.proj", "qkv_last")


def _labels(transfer: Transfer, table: Tensor | None, song: bool) -> None:
    """Labels are one-hot vectors there, zeros for none; those of a SongUNet are scaled to unit variance."""
    if table is None:
        return
    classes, width = table.shape[0] - 1, table.shape[1]
    weight = transfer.tensor("map_label.weight", (width, classes)).T
    if song:
        bias = transfer.tensor("map_label.bias", (width,))
        put(table, swap_halves(torch.cat([bias[None], weight * math.sqrt(classes) + bias])))
    else:
        put(table, torch.cat([torch.zeros_like(weight[:1]), weight]))
