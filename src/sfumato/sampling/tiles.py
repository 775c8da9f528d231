"""Predictions for images larger than the network's input: made tile by tile, and blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.parameterization import v
from sfumato.errors import InputError


class Span(NamedTuple):
    """A tile along one axis: its pixels, and the weight of each in the blend."""

    start: int
    stop: int
    weights: Float[Tensor, " side"]


def spans(length: int, tile: int, overlap: int, multiple: int = 1, *, exact: bool = False) -> list[Span]:
    r"""Equal tiles that cover an axis, with weights that sum to one at every pixel.

    There are as few tiles as ``tile`` allows, each as small as that number allows. Across an overlap the weight rises
    from 0 to 1 as :math:`\sin^2`, but only in the middle quarter: pixels close to the edge of a tile, which lack part
    of their surroundings, have weight 0.

    Args:
        length: the number of pixels of the axis, a multiple of ``multiple``.
        tile: the most pixels of a tile, also a multiple of ``multiple``.
        overlap: the fewest pixels that neighbouring tiles share.
        multiple: tiles end at multiples of this, such as the down-sampling factor of a network.
        exact: whether tiles have exactly the size ``tile``.
    """
    overlap = math.ceil(overlap / multiple) * multiple
    if length % multiple or tile % multiple or not 0 <= overlap < tile:
        held = f"got a length of {length}, tiles of {tile} and an overlap of {overlap}"
        raise InputError(f"Tiles need an overlap below their size, and all sizes multiples of {multiple}; {held}.")
    if length <= tile and not (exact and length < tile):
        return [Span(0, length, torch.ones(length))]
    if length < tile:
        raise InputError(f"An axis of {length} pixels is shorter than a tile of {tile}.")
    count = math.ceil((length - overlap) / (tile - overlap))
    side = tile if exact else math.ceil((length + (count - 1) * overlap) / count / multiple) * multiple
    starts = [i * (length - side) // (count - 1) // multiple * multiple for i in range(count)]
    ramps = [torch.ones(side) for _ in starts]
    for i, (before, after) in enumerate(itertools.pairwise(starts)):
        shared = before + side - after
        if shared:
            place = (torch.arange(shared) + 0.5) / shared
            rise = torch.sin(0.5 * math.pi * (4.0 * place - 1.5).clamp(0.0, 1.0)).square()
            ramps[i][side - shared :] *= 1.0 - rise
            ramps[i + 1][:shared] *= rise
    return _normalized([Span(start, start + side, ramp) for start, ramp in zip(starts, ramps, strict=True)], length)


def _normalized(parts: Sequence[Span], length: int) -> list[Span]:
    """The same tiles, with weights that sum to one even where three tiles meet."""
    total = torch.zeros(length)
    for part in parts:
        total[part.start : part.stop] += part.weights
    return [Span(start, stop, weights / total[start:stop]) for start, stop, weights in parts]


@dataclass(frozen=True)
class Tiled:
    """A denoiser of large images made from a denoiser of small ones: it predicts tiles and blends the predictions.

    Every call blends the tiles into one prediction for the whole image, so that samplers, guidance and fitted grids
    work unchanged, and structures continue from one tile to the next. Estimates of the data and of the noise are linear
    in each other, so that either can be blended.

    Attributes:
        denoiser: the denoiser applied to tiles, such as a guided one.
        tile: the most rows and columns of a tile of ``x``.
        overlap: the fewest pixels that neighbouring tiles share.
        multiple: tiles end at multiples of this.
        exact: whether tiles have exactly the size ``tile``.
        local: the conditions that are images, each with the factor by which its sides are smaller than those of ``x``;
            they are cut like ``x``.
        pixels: the most pixels predicted at once, over all tiles of a batch, but always at least one tile.
        advance: called after each batch with the number of tiles done and the total number of tiles of this call.
    """

    denoiser: Denoise
    tile: tuple[int, int]
    overlap: int
    multiple: int = 1
    exact: bool = False
    local: Mapping[str, int] = field(default_factory=dict)
    pixels: int = 1 << 20
    advance: Callable[[int, int], object] | None = None

    def windows(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """The tiles of an image, each given by its rows and columns."""
        both = zip((height, width), self.tile, strict=True)
        rows, columns = (spans(*sides, self.overlap, self.multiple, exact=self.exact) for sides in both)
        return list(itertools.product(rows, columns))

    def __call__(self, x: Float[Tensor, "batch channels height width"], level: Level, **cond: Tensor) -> Prediction:
        windows = self.windows(*x.shape[2:])
        if len(windows) == 1:
            prediction = self.denoiser(x, level, **cond)
            self._advance(1, 1)
            return prediction
        rows, columns = windows[0]
        side = (rows.stop - rows.start) * (columns.stop - columns.start)
        at_once = max(1, self.pixels // (side * len(x)))
        # blend v, which determines both the data and the noise at every level
        blended, fraction = torch.zeros_like(x), None
        for start in range(0, len(windows), at_once):
            some = windows[start : start + at_once]
            prediction = self._predict(x, level, cond, some)
            target = prediction.mix(-1.0 * _repeated(level.sigma, len(some)), _repeated(level.alpha, len(some)))
            _add(blended, target, some)
            if prediction.variance_fraction is not None:
                fraction = torch.zeros_like(x) if fraction is None else fraction
                _add(fraction, prediction.variance_fraction, some)
            self._advance(start + len(some), len(windows))
        return Prediction(x, blended, v(level), fraction)

    def _predict(
        self, x: Tensor, level: Level, cond: Mapping[str, Tensor], windows: Sequence[tuple[Span, Span]]
    ) -> Prediction:
        cut = {
            name: torch.cat([_cut(value, window, self.local[name]) for window in windows])
            if name in self.local
            else torch.cat([value] * len(windows))
            for name, value in cond.items()
        }
        tiles = torch.cat([_cut(x, window) for window in windows])
        return self.denoiser(tiles, level.map(lambda value: _repeated(value, len(windows))), **cut)

    def _advance(self, done: int, count: int) -> None:
        if self.advance is not None:
            self.advance(done, count)


def _repeated(value: float | Tensor, count: int) -> float | Tensor:
    return value.repeat(count) if isinstance(value, Tensor) and value.ndim else value


def _cut(picture: Tensor, window: tuple[Span, Span], factor: int = 1) -> Tensor:
    rows, columns = (slice(span.start // factor, span.stop // factor) for span in window)
    return picture[..., rows, columns]


def _add(total: Tensor, tiles: Tensor, windows: Sequence[tuple[Span, Span]]) -> None:
    """Add tiles, ordered tile by tile with all samples of each, to whole images."""
    for (rows, columns), part in zip(windows, tiles.chunk(len(windows)), strict=True):
        weights = (rows.weights[:, None] * columns.weights).to(total)
        total[..., rows.start : rows.stop, columns.start : columns.stop].addcmul_(part.to(total.dtype), weights)
