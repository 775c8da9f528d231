"""A denoiser made ready to be sampled from: the precision of its network, and whether it is compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from sfumato.config import SamplingConfig
from sfumato.diffusion.classifier import NoisyClassifier
from sfumato.diffusion.denoiser import Denoise, Denoiser
from sfumato.errors import SfumatoWarning
from sfumato.networks.execution import Bfloat16Copy, compile_in_place, copy_sharing_weights, count
from sfumato.training.precision import convolves_faster_last, supports_bf16

LEAST_MACS = 50_000_000
"""Multiply-accumulates per sample from which bfloat16 is worth its rounding; smaller networks are fast as they are."""


def samples_in_bf16(denoiser: Denoiser | NoisyClassifier, shape: Sequence[int], sampling: SamplingConfig) -> bool:
    """Whether the network computes in bfloat16 when it is sampled from; a warning where the hardware has none."""
    if sampling.precision == "fp32":
        return False
    device = next(denoiser.parameters()).device
    if not supports_bf16(device):
        if sampling.precision == "bf16":
            sentence = f"This {device.type.upper()} has no native bfloat16: sampling in fp32."
            warnings.warn(sentence, SfumatoWarning, stacklevel=2)
        return False
    if sampling.precision == "bf16":
        return True
    # no weight is used more than once per position: most small networks need not be counted
    most = sum(parameter.numel() for parameter in denoiser.network.parameters()) * math.prod(shape[1:])
    return most >= LEAST_MACS and count(denoiser.network, shape).macs >= LEAST_MACS


def prepared(denoiser: Denoise | NoisyClassifier, shape: Sequence[int], sampling: SamplingConfig) -> Any:
    """The denoiser, or the classifier that guides one, with its network as ``sampling`` asks for.

    It has the weights of this moment, and is itself if nothing is asked for.
    """
    if not isinstance(denoiser, Denoiser | NoisyClassifier) or next(denoiser.network.parameters(), None) is None:
        # an oracle, or the network of an inference engine, which has its own precision
        return denoiser
    half = samples_in_bf16(denoiser, shape, sampling)
    if not half and not sampling.compile:
        return denoiser
    network = Bfloat16Copy(denoiser.network) if half else copy_sharing_weights(denoiser.network)
    if half and convolves_faster_last(next(network.parameters()).device):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if sampling.compile:
        compile_in_place(network)
    return denoiser.with_network(network)
