"""The only sampling loop of the package."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import random
from sfumato.allocator import keep_freed_memory
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level
from sfumato.errors import InputError

Noise = Callable[[Tensor], Tensor]
"""A source of standard normal noise of the shape, dtype and device of its argument; each call gives fresh noise."""


def seeded_noise(seed: int, first: int = 0) -> Noise:
    """Noise in which image ``first + i`` of the seed draws the same numbers whatever the batch size.

    The k-th call is the k-th draw of each image; a batch holds the images ``first``, ``first + 1``, ...
    """
    draw = 0

    def noise(x: Tensor) -> Tensor:
        nonlocal draw
        draw += 1
        fresh = random.normal(seed, "sampling", first, x.shape[0], tuple(x.shape[1:]), step=draw)
        return fresh.to(x.dtype).to(x.device, non_blocking=True)

    return noise


def initial(
    levels: Level, shape: tuple[int, ...], seed: int, *, first: int = 0, count: int = 1
) -> Float[Tensor, "batch *shape"]:
    r"""Pure noise at the first level of a grid, :math:`x \sim \mathcal N(0, \sigma^2 I)`, for images of a seed.

    Args:
        levels: a grid, or the level to start at.
        shape: ``(C, *space)`` of an image.
        seed: which images.
        first: the number of the first image.
        count: how many images.
    """
    return random.normal(seed, "prior", first, count, shape) * next(iter(levels)).sigma


@dataclass(slots=True)
class Memory:
    """What a step may carry to the next: the explicit state of a solver.

    Attributes:
        noise: the source of noise of stochastic steps; deterministic steps never call it.
        reuse: whether a step may write its result over ``x``.
        index: the number of the step, from 0.
        state: free for the step's own use, empty at the start.
    """

    noise: Noise
    reuse: bool = False
    index: int = 0
    state: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Step(Protocol):
    """One step of a sampler, from ``x`` at level ``t`` to level ``s``.

    It may call ``denoise(x, level)`` as often and at whatever level it likes, but never at ``sigma = 0``.
    """

    def __call__(
        self, denoise: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level, memory: Memory
    ) -> Tensor: ...


@dataclass(slots=True)
class Frame:
    """What the loop yields after each step.

    Attributes:
        x: the sample at ``level``.
        level: the level that was reached.
        x0: the last estimate of the data that was made on the way, when the loop was asked for ``previews``.
    """

    x: Tensor
    level: Level
    x0: Tensor | None = None


def check_grid(levels: Level) -> None:
    """Check that a grid goes from noise to the data.

    Raises:
        InputError: if it has no step, does not end at ``sigma = 0``, is not strictly falling in ``t`` or not finite.
    """
    if len(levels) < 2:
        raise InputError("A grid needs at least one step: two levels, the last one the data.")
    t, sigma = torch.as_tensor(levels.t), torch.as_tensor(levels.sigma)
    if not bool(torch.isfinite(t).all() and torch.isfinite(sigma).all()):
        raise InputError("A grid must be finite.")
    if float(sigma[-1]) != 0.0:
        raise InputError(f"A grid must end at the data (sigma = 0); this one ends at sigma = {float(sigma[-1]):.4g}.")
    if not bool((t.diff() < 0.0).all()):
        raise InputError("A grid must fall strictly from noise to the data: a time is repeated or out of order.")


def sample(
    denoiser: Denoise,
    x: Float[Tensor, "batch *shape"],
    levels: Level,
    step: Step,
    *,
    noise: Noise | None = None,
    previews: bool = False,
    reuse: bool = False,
    **cond: Tensor,
) -> Iterator[Frame]:
    """Walk ``x`` down a grid of levels; yields a :class:`Frame` after each step, the last of which is the sample.

    Args:
        denoiser: any denoiser.
        x: the start, at the first level of the grid.
        levels: a grid of ``N + 1`` levels that ends at the data.
        step: what is done between two levels.
        noise: the source of noise for stochastic steps; by default that of seed 0.
        previews: whether frames carry the last estimate of the data.
        reuse: whether steps may write over the tensor of the frame before, which spares memory and time where only the
            last frame is wanted.
        cond: conditions, passed on to the denoiser.

    Raises:
        InputError: if the grid does not go down to the data, or previews are wanted of tensors that are reused.
    """
    check_grid(levels)
    yield from walk(denoiser, x, levels, step, noise=noise, previews=previews, reuse=reuse, **cond)


def walk(
    denoiser: Denoise,
    x: Float[Tensor, "batch *shape"],
    levels: Level,
    step: Step,
    *,
    noise: Noise | None = None,
    previews: bool = False,
    reuse: bool = False,
    **cond: Tensor,
) -> Iterator[Frame]:
    """The loop of :func:`sample` over levels in any order, for steps that know what to do between two of them.

    Editing needs it: inversion goes from the data to the noise, and resampling goes back and forth.

    Raises:
        InputError: if previews are wanted of tensors that are reused.
    """
    if previews and reuse:
        raise InputError("Previews need the tensors of the step before: sample with reuse=False.")
    if reuse:
        x = x.clone()
    last: Prediction | None = None

    def denoise(x: Tensor, level: Level) -> Prediction:
        nonlocal last
        prediction = denoiser(x, level, **cond)
        if previews:
            last = prediction
        return prediction

    keep_freed_memory()
    memory = Memory(noise or seeded_noise(0), reuse)
    without_gradient = torch.no_grad()
    for memory.index, (t, s) in enumerate(itertools.pairwise(list(levels))):
        with without_gradient:
            x = step(denoise, x, t, s, memory)
            estimate = last.x0 if last is not None else None
        yield Frame(x, s, estimate)
