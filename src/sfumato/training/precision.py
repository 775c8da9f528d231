"""Which precision and memory layout a device is good at."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native on the device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def convolves_faster_last(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are faster with the channels last even if that needs conversions: AMX has it."""
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


def prefers_channels_last(network: nn.Module, device: torch.device) -> bool:
    """Whether a network trains faster with the channels last in memory: where it has kernels in two dimensions.

    Tensor cores need that layout. On CPUs it was the faster one of all U-Nets that were measured, by 10 to 40 % in
    float32 and by half in bfloat16. Other devices keep the channels first.
    """
    return device.type in ("cpu", "cuda") and any(parameter.ndim == 4 for parameter in network.parameters())


@contextmanager
def tf32(device: torch.device) -> Generator[None]:
    """Let products of float32 matrices round what they multiply to TF32 on a GPU, as its convolutions do anyway.

    The sums stay in float32. The setting of before holds again afterwards, and within, unless it was the default.
    """
    before = torch.get_float32_matmul_precision()
    if device.type != "cuda" or before != "highest":
        yield
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def multiplies_in_tf32(device: torch.device) -> bool:
    """Whether products of float32 matrices are rounded to TF32 on the device as things stand."""
    return (
        device.type == "cuda" and torch.get_float32_matmul_precision() != "highest" and torch.cuda.is_tf32_supported()
    )
