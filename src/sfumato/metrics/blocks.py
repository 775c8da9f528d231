"""Which vectors of two sets are near each other: bounds by products in float32, decisions in float64, in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.random import permutation

_BLOCK = 1024  # vectors on each side of a block of distances
_PAIRS = 256  # pairs of vectors whose differences are held in float64 at once
_CROWDED = 0.125  # of a block: with more pairs that may be near, all of its distances are computed from differences
BELOW, ABOVE = 1.0 - 1e-12, 1.0 + 1e-12  # squared distances with a ratio between these are equal


@dataclass(frozen=True)
class Vectors:
    """A set of vectors in random order, for bounds of squared distances from products in float32.

    Lengths are measured from about the mean of both sets, in units of about the longest: products lose few digits then.
    """

    given: Tensor  # (n, d), in the order and precision that they came in
    rows: Tensor  # (n,) the place in `given` of each
    factor: Tensor  # (n, d + 2) in float32: y, 1, |y|^2 - slack
    squares: Tensor  # (n,) in float64, of the lengths
    unit: float  # of the lengths
    slack: float  # a squared distance from products is off by less than this times the sum of both squares

    def __len__(self) -> int:
        return len(self.rows)

    def exact(self, index: Tensor | slice) -> Tensor:
        return self.given[self.rows[index]].double()

    def left(self, part: slice) -> Tensor:
        r"""Products with ``factor`` are lower bounds of :math:`|x|^2 - 2 x \cdot y + |y|^2`, less a slack."""
        chunk = -2.0 * self.factor[part]
        chunk[:, -2:] = self.factor[part, -2:].flip(1)
        return chunk


class Pairs(NamedTuple):
    """Some pairs of vectors, with bounds of their squared distances; equal ones where they come from differences."""

    first: Tensor
    second: Tensor
    least: Tensor
    most: Tensor

    def where(self, index: Tensor) -> Pairs:
        return Pairs(*(part[index] for part in self))


def prepared(a: Tensor, b: Tensor) -> tuple[Vectors, Vectors]:
    """Two sets ``(n, d)`` and ``(m, d)``."""
    a, b = a.detach(), b.detach().to(a.device)
    if a.device.type == "mps":  # which has no float64
        a, b = a.cpu(), b.cpu()
    working = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    centre = (a.mean(dim=0).to(working) + b.mean(dim=0).to(working)) / 2.0
    ends = torch.stack([end.to(working) for x in (a, b) for end in torch.aminmax(x, dim=0)])
    extent = float((ends - centre).abs().max())
    if not math.isfinite(extent):
        raise InputError("nearest neighbours of NaN or infinite values are not defined; check both sets.")
    unit = extent * math.sqrt(a.shape[1]) or 1.0
    # rounding of the vectors, and of sums of d products, whose errors have either sign: the root of d
    slack = (16.0 + 2.0 * math.sqrt(a.shape[1])) * 2.0**-24 + _rounding(a.device)
    found: list[Vectors] = []
    for vectors, name in ((a, "a"), (b, "b")):
        rows = torch.from_numpy(permutation(0, f"neighbours/{name}", 0, len(vectors))).to(a.device)
        factor = torch.ones(len(vectors), vectors.shape[1] + 2, device=a.device)
        for start in range(0, len(rows), _BLOCK):
            chunk = vectors[rows[_part(start)]].to(working).sub_(centre).div_(unit)
            factor[_part(start), :-2] = chunk
            factor[_part(start), -1] = chunk.square_().sum(dim=1)
        squares = factor[:, -1].double()
        factor[:, -1] *= 1.0 - slack
        found.append(Vectors(vectors, rows, factor, squares, unit, slack))
    return found[0], found[1]


def _rounding(device: torch.device) -> float:
    """Of the factors of a product in float32: some devices keep fewer bits of them, if a person allows it."""
    factor = torch.full((256, 256), 1.0 + 2.0**-12, device=device)
    return 0.0 if bool((factor @ torch.eye(256, device=device) == factor).all()) else 2.0**-7


def _part(start: int) -> slice:
    return slice(start, start + _BLOCK)


def _upper(values: Tensor) -> Tensor:
    """float32 numbers that are not below."""
    return (values * (1.0 + 2.0**-22)).float()


def _differences(a: Vectors, i: slice, b: Vectors, j: slice) -> Tensor:
    distances = torch.cdist(a.exact(i), b.exact(j), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square_().div_(a.unit**2)


def _set(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and columns where a mask is set, which is seldom: eight are looked at together."""
    width = mask.shape[1]
    if width % 8 or not mask.is_contiguous():
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    groups = mask.view(torch.int64).flatten().nonzero()[:, 0]
    which, offset = mask.view(-1, 8)[groups].nonzero(as_tuple=True)
    index = 8 * groups[which] + offset
    return index // width, index % width


def _bounded(a: Vectors, first: Tensor, b: Vectors, second: Tensor, least: Tensor) -> Pairs:
    least = least.double()
    return Pairs(first, second, least, least + 2.0 * a.slack * (a.squares[first] + b.squares[second]))


def _crowded(mask: Tensor, count: int) -> bool:
    return count > _CROWDED * mask.numel()


def pairs_within(a: Vectors, b: Vectors, of_a: Tensor, of_b: Tensor) -> Iterator[Pairs]:
    """Block by block, all pairs whose squared distance may be at most that ``of_a`` or that ``of_b``."""
    reach_a, reach_b = _upper(of_a * ABOVE), _upper(of_b * ABOVE)
    for i in range(0, len(a), _BLOCK):
        left = a.left(_part(i))
        for j in range(0, len(b), _BLOCK):
            values = left @ b.factor[_part(j)].T
            mask = values <= reach_a[_part(i), None]
            mask |= values <= reach_b[_part(j)]
            rows, columns = _set(mask)
            if _crowded(mask, len(rows)):
                exact = _differences(a, _part(i), b, _part(j))[rows, columns]
                yield Pairs(rows + i, columns + j, exact, exact)
            else:
                yield _bounded(a, rows + i, b, columns + j, values[rows, columns])


def exact_squares(a: Vectors, b: Vectors, pairs: Pairs) -> Tensor:
    """The squared distances of pairs, from differences in float64."""
    squares = pairs.least.clone()
    for index in (pairs.least < pairs.most).nonzero()[:, 0].split(_PAIRS):
        difference = a.exact(pairs.first[index]).sub_(b.exact(pairs.second[index]))
        squares[index] = difference.square_().sum(dim=1) / a.unit**2
    return squares


class Radii:
    """The squared distance of each vector to its k-th nearest other, for every k of ``ranks``: bounds, or settled.

    Within a block on the diagonal, the k-th smallest upper bound of a row is above the k-th smallest distance of all.
    What has a lower bound beyond it is left out in every block, and each other block serves its rows and its columns.
    """

    def __init__(self, vectors: Vectors, ranks: tuple[int, ...]) -> None:
        k, n = max(ranks), len(vectors)
        bounds = torch.full((n,), math.inf, dtype=torch.float64, device=vectors.squares.device)
        found: list[Pairs] = []
        for i in range(0, n, _BLOCK):  # the diagonal sets the bounds
            found += _nearest(vectors, i, i, vectors.left(_part(i)), k, bounds)
        for i in range(0, n, _BLOCK):
            left = vectors.left(_part(i))
            for j in range(i + _BLOCK, n, _BLOCK):
                found += _nearest(vectors, i, j, left, k, bounds)
        pairs = Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        del found
        self.vectors, self.ranks = vectors, ranks
        most = _smallest(pairs.first, pairs.most, n, ranks)
        self._pairs = pairs.where(pairs.least <= most[ranks.index(k)][pairs.first])
        self.least = _smallest(self._pairs.first, self._pairs.least, n, ranks)  # (ranks, n)
        self.most = most
        self._settled = torch.zeros(n, dtype=torch.bool, device=bounds.device)

    def settle(self, index: Tensor) -> None:
        """Make both bounds of these vectors the exact numbers."""
        chosen = torch.zeros_like(self._settled)
        chosen[index] = True
        chosen &= ~self._settled
        names = chosen.nonzero()[:, 0]
        if len(names):
            pairs = self._pairs.where(chosen[self._pairs.first])
            squares = exact_squares(self.vectors, self.vectors, pairs)
            place = chosen.cumsum(0) - 1
            self.least[:, names] = _smallest(place[pairs.first], squares, len(names), self.ranks)
            self.most[:, names] = self.least[:, names]
            self._settled |= chosen


def _nearest(vectors: Vectors, i: int, j: int, left: Tensor, k: int, bounds: Tensor) -> list[Pairs]:
    """Pairs of a block that may be among the k nearest of a vector, which comes first; ``bounds`` are set by i = j."""
    rows, columns = _part(i), _part(j)
    values = left @ vectors.factor[columns].T
    if i == j:
        values.fill_diagonal_(math.inf)
        if len(values) > k:
            least, nearest = values.topk(k, dim=1, largest=False)
            squares = vectors.squares[rows]
            bounds[rows] = (least + 2.0 * vectors.slack * (squares[:, None] + squares[nearest])).amax(dim=1)
    masks = [values <= _upper(bounds[rows])[:, None]]
    if i == j:
        masks[0].fill_diagonal_(False)
    else:
        masks.append(values <= _upper(bounds[columns]))
    places = [_set(mask) for mask in masks]
    found: list[Pairs] = []
    if any(_crowded(mask, len(place[0])) for mask, place in zip(masks, places, strict=True)):
        exact = _differences(vectors, rows, vectors, columns)
        for mask, dim in zip(masks, (1, 0), strict=False):
            # of many that are as near as each other, k are enough
            held = exact.masked_fill(~mask, math.inf)
            least, nearest = held.topk(min(k, held.shape[dim]), dim=dim, largest=False)
            first, second = (torch.zeros_like(mask).scatter_(dim, nearest, True) & mask).nonzero(as_tuple=True)
            squares = exact[first, second]
            names = (first + i, second + j) if dim == 1 else (second + j, first + i)
            found.append(Pairs(*names, squares, squares))
            if i == j and len(held) > k:
                bounds[rows] = torch.minimum(bounds[rows], least[:, -1])
        return found
    for (first, second), swapped in zip(places, (False, True), strict=False):
        names = (second + j, first + i) if swapped else (first + i, second + j)
        found.append(_bounded(vectors, names[0], vectors, names[1], values[first, second]))
    return found


def _smallest(rows: Tensor, values: Tensor, count: int, ranks: tuple[int, ...]) -> Tensor:
    """The ``ranks``-th smallest values (from 1) of each of ``count`` rows, every one of which has enough."""
    order = values.argsort()
    order = order[rows[order].argsort(stable=True)]
    starts = torch.searchsorted(rows[order], torch.arange(count, device=rows.device))
    return torch.stack([values[order[starts + rank - 1]] for rank in ranks])
