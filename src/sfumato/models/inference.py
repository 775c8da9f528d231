"""A denoiser made ready to be sampled from: the precision of its network, and whether that is compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch

from sfumato.config import SamplingConfig
from sfumato.diffusion.denoiser import Denoiser
from sfumato.errors import SfumatoWarning
from sfumato.networks.compilation import compile_in_place
from sfumato.networks.counting import count
from sfumato.networks.replicas import Half, twin
from sfumato.training.precision import convolves_faster_last, supports_bf16

LEAST_MACS = 50_000_000
"""Multiply-accumulates per sample from which bfloat16 is worth its rounding; smaller networks are fast as they are."""


def samples_in_bf16(denoiser: Denoiser, shape: Sequence[int], sampling: SamplingConfig) -> bool:
    """Whether the network computes in bfloat16 when it is sampled from.

    Warns:
        SfumatoWarning: if that is asked for of a processor that has no native bfloat16.
    """
    if sampling.precision == "fp32":
        return False
    device = next(denoiser.parameters()).device
    if not supports_bf16(device):
        if sampling.precision == "bf16":
            sentence = f"This processor ({device}) has no native bfloat16: sampling in fp32."
            warnings.warn(sentence, SfumatoWarning, stacklevel=2)
        return False
    if sampling.precision == "bf16":
        return True
    # no weight is used more than once per position: most small networks need not be followed through
    most = sum(parameter.numel() for parameter in denoiser.network.parameters()) * math.prod(shape[1:])
    return most >= LEAST_MACS and count(denoiser.network, shape).macs >= LEAST_MACS


def prepared(denoiser: Denoiser, shape: Sequence[int], sampling: SamplingConfig) -> Denoiser:
    """The denoiser as ``sampling`` wants its network; itself, if that is how it is.

    What is returned has the weights of this moment.

    Args:
        denoiser: it stays as it is.
        shape: ``(channels, *space)`` of a sample.
        sampling: the precision, and whether to compile.

    Warns:
        SfumatoWarning: if bfloat16 is asked for of a processor that has none.
    """
    if next(denoiser.network.parameters(), None) is None:
        # that of an inference engine, which has its own precision
        return denoiser
    half = samples_in_bf16(denoiser, shape, sampling)
    if not half and not sampling.compile:
        return denoiser
    network = Half(denoiser.network) if half else twin(denoiser.network)
    if half and convolves_faster_last(next(network.parameters()).device):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if sampling.compile:
        compile_in_place(network)
    return Denoiser(
        network,
        denoiser.schedule,
        denoiser.parameterization,
        denoiser.embed,
        learned_variance=denoiser.learned_variance,
        data_std=denoiser.data_std,
    )
