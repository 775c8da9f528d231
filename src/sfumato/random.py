"""Stateless randomness: every draw is a pure function of a seed, a named stream, a step and a sample index.

The counter-based generator Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011;
NumPy guarantees its stream for all versions) is keyed by the seed. Its 256-bit counter is laid out as
``(sample index * blocks per sample, step, stream, 0)``, so any run of consecutive samples is one seek and one
read, whatever the batch size, the number of processes or what was drawn before.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

_WORD = 2**64


def _bits(seed: int, stream: str, step: int, start: int, count: int, per_sample: int) -> npt.NDArray[np.uint32]:
    """``(count, per_sample)`` random 32-bit words of samples ``start ... start + count - 1``."""
    blocks = max(1, -(-per_sample // 8))  # a block of Philox4x64 is 4 words of 64 bits
    counter = np.array([start * blocks, step % _WORD, zlib.crc32(stream.encode()), 0], dtype=np.uint64)
    key = np.array([seed % _WORD, 0], dtype=np.uint64)
    raw = np.random.Philox(counter=counter, key=key).random_raw(count * blocks * 4)
    return raw.view(np.uint32).reshape(count, blocks * 8)[:, :per_sample]


def uniform(
    seed: int, stream: str, start: int, count: int, shape: tuple[int, ...] = (), *, step: int = 0
) -> Float[Tensor, "batch *shape"]:
    """float64 uniform draws in [0, 1) of shape ``(count, *shape)`` for samples ``start ... start + count - 1``."""
    words = _bits(seed, stream, step, start, count, math.prod(shape))
    return torch.from_numpy(words * 2.0**-32).reshape(count, *shape)


def normal(
    seed: int, stream: str, start: int, count: int, shape: tuple[int, ...] = (), *, step: int = 0
) -> Float[Tensor, "batch *shape"]:
    r"""float32 standard normal draws of shape ``(count, *shape)`` for samples ``start ... start + count - 1``.

    Box and Muller (1958): :math:`\sqrt{-2 \ln u_1}\, (\cos 2 \pi u_2, \sin 2 \pi u_2)`, which uses a fixed number of
    uniforms per normal, so that a sample's draws can be found by arithmetic.
    """
    size = math.prod(shape)
    half = -(-size // 2)
    # NumPy, not torch: one thread is faster here, and the result does not depend on where the batch is cut
    words = _bits(seed, stream, step, start, count, 2 * half).astype(np.float32)
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
    counter = np.array([0, step % _WORD, zlib.crc32(stream.encode()), 1], dtype=np.uint64)
    key = np.array([seed % _WORD, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key)).permutation(size)


def fold(seed: int, stream: str, step: int = 0) -> int:
    """A derived 63-bit seed, for libraries that own their generator."""
    counter = np.array([0, step % _WORD, zlib.crc32(stream.encode()), 2], dtype=np.uint64)
    key = np.array([seed % _WORD, 0], dtype=np.uint64)
    return int(np.random.Philox(counter=counter, key=key).random_raw()) >> 1
