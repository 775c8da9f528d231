"""Stateless randomness: every random number is a pure function of a seed, a named stream, a step and a sample index.

The counter-based generator Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011;
NumPy guarantees its stream for all versions) is keyed by the seed. Its 256-bit counter is
``(sample index * blocks per sample, step, stream, 0)``, so any run of consecutive samples is one seek and one
read, whatever the batch size, the number of processes or what was generated before.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

_WORD = 2**64
CPU = torch.device("cpu")


def _philox(seed: int, stream: str, step: int, start: int, use: int) -> np.random.Philox:
    counter = np.array([start, step % _WORD, zlib.crc32(stream.encode()), use], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=np.array([seed % _WORD, 0], dtype=np.uint64))


def _words(seed: int, stream: str, step: int, start: int, count: int, per_sample: int) -> npt.NDArray[np.uint32]:
    """``(count, per_sample)`` random 32-bit words of samples ``start ... start + count - 1``."""
    blocks = max(1, -(-per_sample // 8))  # a block of Philox4x64 is 4 words of 64 bits
    raw = _philox(seed, stream, step, start * blocks, 0).random_raw(count * blocks * 4)
    return raw.view(np.uint32).reshape(count, blocks * 8)[:, :per_sample]


def uniform(
    seed: int, stream: str, start: int, count: int, shape: tuple[int, ...] = (), *, step: int = 0
) -> Float[Tensor, "batch *shape"]:
    """float64 uniform numbers in [0, 1) of shape ``(count, *shape)`` for samples ``start ... start + count - 1``."""
    words = _words(seed, stream, step, start, count, math.prod(shape))
    return torch.from_numpy(words * 2.0**-32).reshape(count, *shape)


def normal(
    seed: int, stream: str, start: int, count: int, shape: tuple[int, ...] = (), *, step: int = 0
) -> Float[Tensor, "batch *shape"]:
    r"""float32 standard normal numbers of shape ``(count, *shape)`` for samples ``start ... start + count - 1``.

    Box and Muller (1958): :math:`\sqrt{-2 \ln u_1}\, (\cos 2 \pi u_2, \sin 2 \pi u_2)`, which uses a fixed number of
    uniforms per normal, so that the position of a sample's numbers in the stream is known.
    """
    size = math.prod(shape)
    half = -(-size // 2)
    # NumPy, not torch: one thread is faster here, and the result does not depend on how the batch is split
    words = _words(seed, stream, step, start, count, 2 * half).astype(np.float32)
    radius, angle = words[:, :half], words[:, half:]
    radius += np.float32(1.0)
    radius *= np.float32(2.0**-32)
    np.log(np.minimum(radius, np.float32(1.0), out=radius), out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2.0**-32 * 2.0 * math.pi)
    both = np.empty_like(words)
    np.multiply(radius, np.cos(angle), out=both[:, :half])
    np.multiply(radius, np.sin(angle), out=both[:, half:])
    return torch.from_numpy(both[:, :size]).reshape(count, *shape)


def permutation(seed: int, stream: str, step: int, size: int) -> npt.NDArray[np.int64]:
    """A uniformly random order of ``0 ... size - 1``: the order of epoch ``step``, for example."""
    return np.random.Generator(_philox(seed, stream, step, 0, 1)).permutation(size)


def fold(seed: int, stream: str, step: int = 0) -> int:
    """A derived 63-bit seed, for libraries that have their own generator."""
    return int(_philox(seed, stream, step, 0, 2).random_raw()) >> 1


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A GPU keeps computing during the copy, which only pinned memory allows."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers for training samples ``start ... start + count - 1``, each a function of seed and sample."""

    seed: int
    start: int
    count: int
    batch_size: int  # samples per optimizer step, over which `stratified` spreads its numbers
    device: torch.device = CPU  # for normal numbers and keys; uniform numbers, which drive decisions, stay on the CPU
    prefix: str = ""  # prepended to the names of the streams

    def within(self, prefix: str) -> Draws:
        """The same samples with other stream names, so that two callers with the same name do not share numbers."""
        return replace(self, prefix=f"{self.prefix}{prefix}/")

    def normal(self, name: str, shape: Sequence[int]) -> Float[Tensor, "batch *shape"]:
        """float32 standard normal numbers of shape ``(count, *shape)``, on the device."""
        return sent(normal(self.seed, self.prefix + name, self.start, self.count, tuple(shape)), self.device)

    def uniform(self, name: str, shape: Sequence[int] = ()) -> Float[Tensor, "batch *shape"]:
        """float64 uniform numbers in [0, 1) of shape ``(count, *shape)``."""
        return uniform(self.seed, self.prefix + name, self.start, self.count, tuple(shape))

    def stratified(self, name: str) -> Float[Tensor, "batch"]:
        """float64 uniform numbers, spread evenly over each batch: one in every ``1 / batch_size`` of [0, 1).

        (Kingma et al. 2021, app. I.1.) They share one uniform shift per batch.
        """
        index = torch.arange(self.start, self.start + self.count)
        steps = index.div(self.batch_size, rounding_mode="floor")
        first, last = int(steps[0]), int(steps[-1])
        shift = uniform(self.seed, self.prefix + name, first, last - first + 1)[steps - first]
        return (shift + (index % self.batch_size) / self.batch_size) % 1.0

    def keys(self, name: str = "dropout") -> Int[Tensor, "batch"]:
        """A 31-bit number per sample, which decides what the dropout layers of a network drop."""
        words = uniform(self.seed, self.prefix + name, self.start, self.count) * 2.0**31
        return sent(words.int(), self.device)
