"""Which memory layout a network trains faster in, by a short measurement."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.data import Loader
from sfumato.networks.counting import count

MACS = 100_000_000_000
"""What a measured step computes, at most, unless one sample is more: a step that takes a second on two cores."""
BF16 = 3
"""How many times as much it may be in bfloat16. With too few samples what differs between layouts is hidden."""
MARGIN = 0.97
"""Channels-last must take less than this part of the time; a tie is left as it is."""


def has_layouts(network: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the layout matters: images, and kernels in two dimensions."""
    return len(shape) == 3 and any(parameter.ndim == 4 for parameter in network.parameters())


def measured_batch(network: nn.Module, shape: Sequence[int], most: int, *, bf16: bool) -> int:
    """As many samples, up to ``most``, as a measurement can afford."""
    affordable = (BF16 if bf16 else 1) * MACS
    return max(1, min(most, affordable // max(1, 3 * count(network, shape).macs)))


def layout_seconds(
    network: nn.Module, x: Float[Tensor, "batch channels height width"], *, bf16: bool, rounds: int = 4
) -> Float[Tensor, "2"]:
    """Seconds of a forward and backward pass of a copy of ``network``: channels first, and last.

    The two take turns and the best of each counts, because other work on the machine only adds. Nothing is drawn at
    random, and neither the weights nor the gradients of ``network`` are touched.

    Args:
        network: called as ``network(x, time)``.
        x: the input.
        bf16: whether it computes in bfloat16.
        rounds: turns, after a first one that is not counted.
    """
    trial = copy.deepcopy(network)
    level = x.new_full((len(x),), 0.5)
    best = torch.full((2,), torch.inf)
    for turn in range(rounds + 1):
        for last, layout in enumerate((torch.contiguous_format, torch.channels_last)):
            trial.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
            trial.zero_grad(set_to_none=True)
            _wait(x.device)
            began = time.perf_counter()
            with torch.enable_grad(), torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
                trial(x, level).square().mean().backward()
            _wait(x.device)
            if turn:
                best[last] = min(float(best[last]), time.perf_counter() - began)
    return best


class Measured(NamedTuple):
    """What was found of a network.

    Attributes:
        last: whether it trains faster with the channels last.
        seconds: of a forward and backward pass per sample, in the faster layout; None if nothing was measured.
    """

    last: bool
    seconds: float | None


def measured(network: nn.Module, loader: Loader, share: int, accelerator: Accelerator, *, bf16: bool) -> Measured:
    """Whether ``network`` trains faster with the channels last, on average over all processes, and how fast.

    Args:
        network: on the device of the process.
        loader: the data, whose first samples are computed with.
        share: samples that a process computes at once.
        accelerator: the processes.
        bf16: whether the network computes in bfloat16.
    """
    if not has_layouts(network, loader.shape):
        return Measured(False, None)
    x = loader.batch(0, measured_batch(network, loader.shape, max(1, share), bf16=bf16)).x0.to(accelerator.device)
    seconds = layout_seconds(network, x, bf16=bf16).to(accelerator.device)
    first, last = accelerator.reduce(seconds, reduction="mean").tolist()  # pyright: ignore[reportAttributeAccessIssue]
    chosen = last < MARGIN * first
    return Measured(chosen, (last if chosen else first) / len(x))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
