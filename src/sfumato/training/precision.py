"""Which precision the processor is good at."""

from __future__ import annotations

import torch


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native on the device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
