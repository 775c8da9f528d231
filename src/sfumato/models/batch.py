"""A batch of images before it is sampled, which edits change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.io.progress import Progress, progress_bar
from sfumato.sampling.sample import Frame, Noise, Step, sample


@dataclass(frozen=True, eq=False)
class SamplingBatch:
    """A batch of images before it is sampled: all that the loop needs, for edits to change what they like.

    Attributes:
        denoise: the denoiser as it is sampled from.
        x: the start, pure noise at the first level.
        levels: the grid.
        step: the solver.
        noise: the source of noise of these images.
        cond: their conditions.
        start: the place of the first of them among all that are sampled, from 0.
    """

    denoise: Denoise
    x: Float[Tensor, "batch channels *space"]
    levels: Level
    step: Step
    noise: Noise
    cond: dict[str, Tensor]
    start: int

    def __len__(self) -> int:
        return len(self.x)

    def frames(self, *, previews: bool = False) -> Iterator[Frame]:
        """Walk the levels, which an edit may have put in any order."""
        more: dict[str, Any] = {"noise": self.noise, "previews": previews, "any_order": True, **self.cond}
        yield from sample(self.denoise, self.x, self.levels, self.step, **more)

    def images(self) -> Float[Tensor, "batch channels *space"]:
        """Walk to the end: float32 images in [-1, 1], on the CPU."""
        x = self.x
        for frame in self.frames():
            x = frame.x
        return x.clamp(-1.0, 1.0).float().cpu()


def collected(
    batches: Iterator[SamplingBatch],
    edit: Callable[[SamplingBatch], SamplingBatch],
    count: int,
    progress: Progress,
    title: str = "sampling",
) -> Float[Tensor, "count channels *space"]:
    """The images of batches, each changed by ``edit`` before it is sampled."""
    done: list[Tensor] = []
    with progress_bar(title, count, progress) as advance:
        for batch in batches:
            done.append(edit(batch).images())
            advance(batch.start + len(batch))
    return torch.cat(done)


def cut(count: int, size: int, period: int) -> Iterator[tuple[int, int]]:
    """Where each batch starts, and its size, of at most ``size``: whole periods, or a part of one."""
    if period <= size:
        step = size // period * period
        yield from ((start, min(step, count - start)) for start in range(0, count, step))
        return
    for begin in range(0, count, period):
        end = min(begin + period, count)
        yield from ((start, min(size, end - start)) for start in range(begin, end, size))


def repeated(rows: Tensor, times: int) -> Tensor:
    """The rows one after the other, several times."""
    return rows if times == 1 else rows.repeat(times, *[1] * (rows.ndim - 1))


def repeating(noise: Noise, times: int) -> Noise:
    """A source of noise that gives the rows of each of several equal parts of a batch the same."""
    return noise if times == 1 else lambda x: repeated(noise(x[: len(x) // times]), times)
