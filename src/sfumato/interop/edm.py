"""Networks of EDM (Karras et al. 2022), given as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioning.encoders import Conditioned
from sfumato.errors import InputError, nearest
from sfumato.interop.model import model_of, unet_of
from sfumato.interop.weights import Transfer, put, read_state, require_groups, swapped, tensors_of
from sfumato.models.model import Model
from sfumato.networks.layers import ResBlock
from sfumato.networks.unet import UNet
from sfumato.recipes.published import EDM, Settings, edm


def load_edm(weights: str | Path | Mapping[str, Tensor], settings: str | Settings) -> Model:
    """The model of the tensors of an EDM network, ``SongUNet`` or ``DhariwalUNet``, with EDM's preconditioning.

    Published files are pickles of programs, which are never loaded; where they are trusted, their own program can save
    the tensors, ``safetensors.torch.save_file(network.state_dict(), path)``.

    Args:
        weights: a file, or a mapping from names to tensors; names may begin with ``model.``, that of the network in
            its preconditioning.
        settings: the name of a published network (``sfumato.recipes.published.EDM``), or the arguments of the class
            with its ``class_name``.

    Returns:
        The model. What it was told of the augmentation of its training pictures is left out: none.

    Raises:
        InputError: for an unknown class or setting, or weights that are not those of the settings.
    """
    if isinstance(settings, str):
        if settings not in EDM:
            raise InputError(f"There is no published network {settings!r} of EDM{nearest(settings, EDM)}")
        settings = EDM[settings]
    published = edm(settings)
    if isinstance(weights, str | Path):
        state, origin = read_state(weights), str(weights)
    else:
        state, origin = tensors_of(weights, "What was given"), "the state dict"
    # the filters are part of the settings
    state = {n.removeprefix("model."): t for n, t in state.items() if not n.endswith("resample_filter")}
    transfer = Transfer(state, origin)
    model = model_of(published.model, published.shape, published.classes, published.sampling)
    network, song = unet_of(model), settings.get("class_name", "SongUNet") == "SongUNet"
    require_groups(network, 32, at_least=4)
    _fill(transfer, network, song, published.shape[1])
    if isinstance(model.denoiser.network, Conditioned):
        table: Any = model.denoiser.network.encoders["label"].table.weight  # pyright: ignore[reportAttributeAccessIssue]
        _labels(transfer, table, song)
    transfer.finish(("map_augment.",))
    return model


def _fill(transfer: Transfer, network: UNet, song: bool, size: int) -> None:
    time = network.time
    # a SongUNet has sines before cosines
    transfer.layer(time.first, "map_layer0", lambda w: swapped(w) if song and w.ndim > 1 else w)
    transfer.layer(time.second, "map_layer1")
    if network.plan.time_kind == "fourier":
        frequencies = transfer.tensor("map_noise.freqs", time.features.frequencies.shape)
        put(time.features.frequencies, 2.0 * math.pi * frequencies)
    sides = [size // 2**level for level in range(len(network.down))]
    names = [f"{side}x{side}" for side in sides]
    transfer.layer(network.first, f"enc.{names[0]}_conv")
    for level, stage in enumerate(network.down):
        _stage(transfer, stage, f"enc.{names[level]}", f"enc.{names[min(level + 1, len(names) - 1)]}_down")
    if network.plan.residual_input:
        for name, module in zip(names[1:], network.residuals, strict=True):
            transfer.layer(module.conv, f"enc.{name}_aux_residual")  # pyright: ignore[reportArgumentType]
    for i, module in enumerate(network.middle):
        _block(transfer, module, f"dec.{names[-1]}_in{i}")
    for name, above, stage in zip(names[::-1], [*names[-2::-1], ""], network.up, strict=True):
        _stage(transfer, stage, f"dec.{name}", f"dec.{above}_up")
    ends = (f"dec.{names[0]}_aux_norm", f"dec.{names[0]}_aux_conv") if song else ("out_norm", "out_conv")
    transfer.layer(network.norm, ends[0])
    transfer.layer(network.last, ends[1])


def _stage(transfer: Transfer, stage: Any, name: str, sampler: str) -> None:
    for i, module in enumerate(stage):
        _block(transfer, module, sampler if isinstance(module, ResBlock) else f"{name}_block{i}")


def _block(transfer: Transfer, module: Any, name: str) -> None:
    theirs = {
        "norm1": "norm0",
        "conv1": "conv0",
        "modulation": "affine",
        "norm2": "norm1",
        "conv2": "conv1",
        "skip": "skip",
    }
    block = module if isinstance(module, ResBlock) else module.res
    transfer.block(block, {ours: f"{name}.{theirs[ours]}" for ours in theirs})
    if not isinstance(module, ResBlock) and module.attention is not None:
        transfer.attention(module.attention, f"{name}.norm2", f"{name}.qkv", f"{name}.proj", "qkv_last")


def _labels(transfer: Transfer, table: Tensor, song: bool) -> None:
    """Labels are one-hot vectors there, zeros for none; those of a SongUNet are scaled to unit variance."""
    classes, width = table.shape[0] - 1, table.shape[1]
    weight = transfer.tensor("map_label.weight", (width, classes)).T
    if song:
        bias = transfer.tensor("map_label.bias", (width,))
        put(table, swapped(torch.cat([bias[None], weight * math.sqrt(classes) + bias])))
    else:
        put(table, torch.cat([torch.zeros_like(weight[:1]), weight]))
