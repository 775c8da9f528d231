"""What models that come from diffusers and models that go there share: settings, names, and where each weight is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from sfumato.config import Component
from sfumato.interop.model import label_table, unet_of
from sfumato.interop.weights import Collection, Transfer, swap_halves
from sfumato.models.model import Model
from sfumato.networks.attention import Attention
from sfumato.networks.unet import ResBlock, UNetBlock

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file of the weights."""

Whole = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
Sides = Annotated[
    list[Whole],
    Field(min_length=2, max_length=2),
    BeforeValidator(lambda value: [value, value] if isinstance(value, int) else value),
]
"""A height and a width, or one number for both."""

DownBlocks = list[Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]]
UpBlocks = list[Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]]


class UNet2DModel(Component):
    """The settings of the network of diffusers, with its defaults; of their values those with an equivalent here."""

    model_config = ConfigDict(strict=True)

    sample_size: Sides | None = None
    in_channels: Whole = 3
    out_channels: Whole = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Whole | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: DownBlocks = Field(
        default=["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
    )
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: UpBlocks = Field(default=["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"])
    block_out_channels: list[Whole] = Field(default=[224, 448, 672, 896], min_length=1)
    layers_per_block: Whole = 2
    mid_block_scale_factor: float = Field(default=1, ge=1, le=1)
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: Whole | None = 8
    norm_num_groups: Whole = 32
    attn_norm_num_groups: Whole | None = None
    norm_eps: Positive = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: Whole | None = None
    num_train_timesteps: Whole | None = None


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
    transfer.layer(time.first, "time_embedding.linear_1", change=None if cosines_first else swap_halves)
    transfer.layer(time.second, "time_embedding.linear_2")
    transfer.layer(network.first, "conv_in")
    for way, stages in (("down", network.down), ("up", network.up)):
        for level, stage in enumerate(stages):
            _stage(transfer, stage, f"{way}_blocks.{level}", f"{way}samplers.0")
    _stage(transfer, network.middle, "mid_block", "")
    transfer.layer(network.norm, "conv_norm_out")
    transfer.layer(network.last, "conv_out")
    transfer.labels(label_table(model.denoiser.network), "class_embedding.weight")


def _stage(transfer: Transfer | Collection, stage: Any, name: str, sampler: str) -> None:
    for i, module in enumerate(stage):
        if isinstance(module, ResBlock):
            transfer.block(module, f"{name}.{sampler}", _RES_BLOCK)
        elif isinstance(module, UNetBlock):
            transfer.block(module.res, f"{name}.resnets.{i}", _RES_BLOCK)
            if module.attention is not None:
                _attention(transfer, module.attention, f"{name}.attentions.{i}")
        else:
            learned = module.conv if sampler.startswith("up") else module.resample
            transfer.layer(learned, f"{name}.{sampler}.conv")


def _attention(transfer: Transfer | Collection, layer: Attention, name: str) -> None:
    transfer.layer(layer.norm, f"{name}.group_norm")
    # files of the first releases have other names for the projections
    old = f"{name}.query.weight" in transfer.state
    parts, out = (("query", "key", "value"), "proj_attn") if old else (("to_q", "to_k", "to_v"), "to_out.0")
    transfer.layer(layer.qkv, *(f"{name}.{part}" for part in parts))
    transfer.layer(layer.out, f"{name}.{out}")
