"""What models that come from diffusers and models that go there share: names, and where each weight is."""

from __future__ import annotations

from typing import Any

from sfumato.interop.model import label_table, unet_of
from sfumato.interop.weights import Collection, Transfer, swap_halves
from sfumato.models.model import Model
from sfumato.networks.attention import Attention
from sfumato.networks.unet import ResBlock, UNetBlock

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""What a network predicts, by its name there."""

VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
"""The reverse variances by their names there."""

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

_RES_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "modulation": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}


def transfer_weights(model: Model, transfer: Transfer | Collection, *, cosines_first: bool = True) -> None:
    """Copy every weight of a U-Net from or to its name in a ``UNet2DModel``.

    Args:
        model: one whose network is a U-Net that has an equivalent there.
        transfer: what copies the weights in, or collects them.
        cosines_first: whether their time features begin with the cosines, as ours do.
    """
    network = unet_of(model.denoiser.network)
    time = network.time
    transfer.layer(time.first, "time_embedding.linear_1", None if cosines_first else _swapped)
    transfer.layer(time.second, "time_embedding.linear_2")
    transfer.layer(network.first, "conv_in")
    for way, stages in (("down", network.down), ("up", network.up)):
        for level, stage in enumerate(stages):
            _stage(transfer, stage, f"{way}_blocks.{level}", f"{way}samplers.0")
    _stage(transfer, network.middle, "mid_block", "")
    transfer.layer(network.norm, "conv_norm_out")
    transfer.layer(network.last, "conv_out")
    transfer.labels(label_table(model.denoiser.network), "class_embedding.weight")


def _swapped(parameter: Any) -> Any:
    return parameter if parameter.ndim < 2 else swap_halves(parameter)


def _stage(transfer: Transfer | Collection, stage: Any, name: str, sampler: str) -> None:
    for i, module in enumerate(stage):
        if isinstance(module, ResBlock):
            _res_block(transfer, module, f"{name}.{sampler}")
        elif isinstance(module, UNetBlock):
            _res_block(transfer, module.res, f"{name}.resnets.{i}")
            if module.attention is not None:
                _attention(transfer, module.attention, f"{name}.attentions.{i}")
        else:
            learned = module.conv if sampler.startswith("up") else module.resample
            transfer.layer(learned, f"{name}.{sampler}.conv")


def _res_block(transfer: Transfer | Collection, block: ResBlock, name: str) -> None:
    transfer.block(block, {ours: f"{name}.{theirs}" for ours, theirs in _RES_BLOCK.items()})


def _attention(transfer: Transfer | Collection, layer: Attention, name: str) -> None:
    transfer.layer(layer.norm, f"{name}.group_norm")
    # files of the first releases have other names for the projections
    old = f"{name}.query.weight" in transfer.state
    parts, out = (("query", "key", "value"), "proj_attn") if old else (("to_q", "to_k", "to_v"), "to_out.0")
    transfer.joined(layer.qkv, [f"{name}.{part}" for part in parts])
    transfer.layer(layer.out, f"{name}.{out}")
