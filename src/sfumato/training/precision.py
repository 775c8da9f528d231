"""Which precision the processor is good at."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native on the device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def convolves_faster_last(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are known to be faster with the channels last, without measuring.

    So it is on processors with AMX, where bringing the channels last and back takes longer than the convolution.
    """
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


@contextmanager
def tf32(device: torch.device) -> Generator[None]:
    """Let products of float32 matrices round what they multiply to TF32 on a GPU, as its convolutions do anyway.

    The sums stay in float32. What was asked for before holds again afterwards, and within, unless it was the default.
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
