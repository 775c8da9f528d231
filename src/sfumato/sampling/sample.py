"""The sampling loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level, float64
from sfumato.errors import InputError

# a source of noise: each call returns new standard normal noise of the shape, dtype and device of its argument
Noise = Callable[[Tensor], Tensor]
# a denoiser with its conditions filled in, as a step calls it
Predict = Callable[[Tensor, Level], Prediction]


def seeded_noise(seed: int, first: int = 0, temperature: float = 1.0) -> Noise:
    """Noise for images ``first``, ... of a seed; the k-th call returns each image's k-th noise, whatever the batch."""
    calls = itertools.count(1)

    def noise(x: Tensor) -> Tensor:
        normal = random.normal(seed, "sampling", first, x.shape[0], tuple(x.shape[1:]), step=next(calls))
        return (normal * temperature).to(x.dtype).to(x.device, non_blocking=True)

    return noise


def initial(
    levels: Level, shape: tuple[int, ...], seed: int, *, first: int = 0, count: int = 1, temperature: float = 1.0
) -> Float[Tensor, "batch *shape"]:
    r"""Pure noise at the first level of a grid, for the images ``first``, ...

    :math:`x \sim \mathcal N(0, (\tau \sigma)^2 I)` with the level's :math:`\sigma` and the temperature :math:`\tau`
    (Kingma and Dhariwal 2018, for flows).
    """
    return random.normal(seed, "prior", first, count, shape) * (levels[0].sigma * temperature)


@dataclass(slots=True)
class Memory:
    """What a solver carries from step to step: the noise source, the index of the step, and its own state."""

    noise: Noise
    index: int = 0
    state: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Step(Protocol):
    """One step of a sampler, from ``x`` at level ``t`` to level ``s``.

    It may call ``denoise(x, level)`` any number of times and at any level except ``sigma = 0``.
    """

    def __call__(self, denoise: Predict, x: Tensor, t: Level, s: Level, memory: Memory) -> Tensor: ...


@dataclass(slots=True)
class Frame:
    """The sample ``x`` at the ``level`` of a step's end; with ``previews``, also its last estimate of the data."""

    x: Tensor
    level: Level
    x0: Tensor | None = None


Watcher = Callable[[int, int, Frame], None]
"""What is called after each step: with its number from 1, the number of steps, and the frame, which has a preview."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Generator[None]:
    """Call ``watcher`` after each step of everything that this thread samples in the context.

    Functions that sample several times, such as those of a cascade or an edit, are watched as a whole. An exception
    that the watcher raises ends them.

    ::

        from sfumato.sampling.sample import watched

        with watched(lambda step, steps, frame: print(step, "of", steps, float(frame.level.sigma))):
            images = model.sample(4)
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def check_grid(levels: Level) -> None:
    """Check that a grid is finite and falls strictly in ``t`` from noise to ``sigma = 0``."""
    if len(levels) < 2:
        raise InputError("A grid needs at least one step: two levels, the last of them the data.")
    t, sigma = float64(levels.t), float64(levels.sigma)
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
    any_order: bool = False,
    **cond: Tensor,
) -> Iterator[Frame]:
    """Take ``x`` along a grid of levels; yields a :class:`Frame` after each step, the last of which is the sample.

    Args:
        levels: a grid of ``N + 1`` levels that falls to the data.
        step: the step from one level to the next.
        noise: the source of noise for stochastic steps; by default that of seed 0.
        previews: whether frames carry the last estimate of the data.
        any_order: whether the noise may also rise along the grid, as in editing.
    """
    if not any_order:
        check_grid(levels)
    watcher, steps = _watcher.get(), len(levels) - 1
    previews = previews or watcher is not None
    last: Prediction | None = None

    def denoise(x: Tensor, level: Level) -> Prediction:
        nonlocal last
        prediction = denoiser(x, level, **cond)
        if previews:
            last = prediction
        return prediction

    memory = Memory(noise or seeded_noise(0))
    without_gradient = torch.no_grad()
    for memory.index, (t, s) in enumerate(itertools.pairwise(levels)):
        with without_gradient:
            x = step(denoise, x, t, s, memory)
            estimate = last.x0 if last is not None else None
        frame = Frame(x, s, estimate)
        if watcher is not None:
            watcher(memory.index + 1, steps, frame)
        yield frame
