"""Where the weights of our U-Net are in a ``UNet2DModel``: one walk, for weights that come in and that go out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfumato.conditioning.encoders import Conditioned
from sfumato.interop.model import unet_of
from sfumato.interop.weights import Collected, Transfer, swapped
from sfumato.models.model import Model
from sfumato.networks.layers import Attention, ResBlock

_RES_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "modulation": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}


def walk(model: Model, transfer: Transfer | Collected, *, flipped: bool = True) -> None:
    """Meet every weight of the model with its name in a ``UNet2DModel``.

    Args:
        model: one whose network is a U-Net that has an equivalent there.
        transfer: what takes the weights in, or collects them.
        flipped: whether their time features begin with the cosines, as ours do; those that come in may not.
    """
    network = unet_of(model)
    time = network.time
    transfer.layer(time.first, "time_embedding.linear_1", lambda w: w if flipped or w.ndim < 2 else swapped(w))
    transfer.layer(time.second, "time_embedding.linear_2")
    transfer.layer(network.first, "conv_in")
    for way, stages in (("down", network.down), ("up", network.up)):
        for level, stage in enumerate(stages):
            _stage(transfer, stage, f"{way}_blocks.{level}", f"{way}samplers.0")
    _stage(transfer, network.middle, "mid_block", "")
    transfer.layer(network.norm, "conv_norm_out")
    transfer.layer(network.last, "conv_out")
    outer = model.denoiser.network
    if isinstance(outer, Conditioned):
        table: Tensor = outer.encoders["label"].table.weight  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
        transfer.labels(table, "class_embedding.weight")


def _stage(transfer: Transfer | Collected, stage: Any, name: str, sampler: str) -> None:
    for i, module in enumerate(stage):
        if isinstance(module, ResBlock):
            _res_block(transfer, module, f"{name}.{sampler}")
        elif hasattr(module, "res"):
            _res_block(transfer, module.res, f"{name}.resnets.{i}")
            if module.attention is not None:
                _attend(transfer, module.attention, f"{name}.attentions.{i}")
        else:
            learned = module.conv if sampler.startswith("up") else module.resample
            transfer.layer(learned, f"{name}.{sampler}.conv")


def _res_block(transfer: Transfer | Collected, block: ResBlock, name: str) -> None:
    transfer.block(block, {ours: f"{name}.{theirs}" for ours, theirs in _RES_BLOCK.items()})


def _attend(transfer: Transfer | Collected, layer: Attention, name: str) -> None:
    transfer.layer(layer.norm, f"{name}.group_norm")
    # files of the first releases have other names for the projections
    old = f"{name}.query.weight" in transfer.state
    parts, out = (("query", "key", "value"), "proj_attn") if old else (("to_q", "to_k", "to_v"), "to_out.0")
    transfer.joined(layer.qkv, [f"{name}.{part}" for part in parts])
    transfer.layer(layer.out, f"{name}.{out}")
