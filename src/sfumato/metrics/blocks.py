"""Which vectors of two sets are near each other: bounds by products in float32, decisions in float64, in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.random import permutation

_CHUNK = 4096  # vectors that are held in float64 at once
_BLOCK = 2048  # vectors on each side of a block of distances
_PAIRS = 512  # pairs of vectors whose differences are held in float64 at once
_CROWDED = 0.125  # of a block: with more pairs that may be near, all of its distances are computed from differences
BELOW, ABOVE = 1.0 - 1e-12, 1.0 + 1e-12  # squared distances with a ratio between these are equal


@dataclass(frozen=True)
class Vectors:
    """A set of vectors in random order, for bounds of squared distances from products in float32.

    Lengths are measured from the mean of both sets, in units of the longest: products lose few digits then.
    """

    given: Tensor  # (n, d), in the order and precision that they came in
    rows: Tensor  # (n,) the place in `given` of each
    centred: Tensor  # (n, d) in float32, in random order
    squares: Tensor  # (n,) in float64, of the lengths
    unit: float  # of the lengths
    slack: float  # a squared distance from products is off by less than this times the sum of both squares

    def __len__(self) -> int:
        return len(self.rows)

    def exact(self, index: Tensor | slice) -> Tensor:
        return self.given[self.rows[index]].double()


class Pairs(NamedTuple):
    """Some pairs of vectors, with bounds of their squared distances; equal ones where they come from differences."""

    first: Tensor
    second: Tensor
    least: Tensor
    most: Tensor


def prepared(a: Tensor, b: Tensor) -> tuple[Vectors, Vectors]:
    """Two finite sets ``(n, d)`` and ``(m, d)``."""
    a, b = a.detach(), b.detach().to(a.device)
    if a.device.type == "mps":  # which has no float64
        a, b = a.cpu(), b.cpu()
    centre = (a.sum(dim=0, dtype=torch.float64) + b.sum(dim=0, dtype=torch.float64)) / (len(a) + len(b))
    lengths = [torch.cat([(x.double() - centre).square().sum(dim=1) for x in v.split(_CHUNK)]) for v in (a, b)]
    unit = math.sqrt(max(float(squares.max()) for squares in lengths)) or 1.0
    # rounding of the vectors, and of sums of d products, whose errors have either sign: the root of d
    slack = (4.0 + 2.0 * math.sqrt(a.shape[1])) * 2.0**-24 + _rounding(a.device)
    found: list[Vectors] = []
    for vectors, squares, name in zip((a, b), lengths, "ab", strict=True):
        rows = torch.from_numpy(permutation(0, f"neighbours/{name}", 0, len(vectors))).to(a.device)
        centred = torch.cat([((vectors[chunk].double() - centre) / unit).float() for chunk in rows.split(_CHUNK)])
        found.append(Vectors(vectors, rows, centred, squares[rows] / unit**2, unit, slack))
    return found[0], found[1]


def _rounding(device: torch.device) -> float:
    """Of the factors of a product in float32: some devices keep fewer bits of them, if a person allows it."""
    factor = torch.full((256, 256), 1.0 + 2.0**-12, device=device)
    return 0.0 if bool((factor @ torch.eye(256, device=device) == factor).all()) else 2.0**-7


def _part(start: int) -> slice:
    return slice(start, start + _BLOCK)


def _factor(vectors: Vectors, part: slice, left: bool) -> Tensor:
    """Products of a left and a right factor are lower bounds of squared distances: |x|^2 - 2 x.y + |y|^2 - slack."""
    chunk, squares = vectors.centred[part], (1.0 - vectors.slack) * vectors.squares[part, None]
    columns = [squares.float(), torch.ones_like(squares, dtype=torch.float32)]
    return torch.cat([-2.0 * chunk, *columns] if left else [chunk, *columns[::-1]], dim=1)


def _upper(values: Tensor) -> Tensor:
    """float32 numbers that are not below."""
    return (values * (1.0 + 2.0**-22)).float()


def _differences(a: Vectors, i: slice, b: Vectors, j: slice) -> Tensor:
    distances = torch.cdist(a.exact(i), b.exact(j), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square_().div_(a.unit**2)


def _crowded(mask: Tensor) -> bool:
    return int(mask.count_nonzero()) > _CROWDED * mask.numel()


def _pairs(a: Vectors, i: int, b: Vectors, j: int, values: Tensor, mask: Tensor, exact: bool = False) -> Pairs:
    """Those of a block that starts at (i, j) where the mask is set."""
    rows, columns = mask.nonzero(as_tuple=True)
    first, second, least = rows + i, columns + j, values[rows, columns].double()
    most = least if exact else least + 2.0 * a.slack * (a.squares[first] + b.squares[second])
    return Pairs(first, second, least, most)


def pairs_within(a: Vectors, b: Vectors, of_a: Tensor, of_b: Tensor) -> Iterator[Pairs]:
    """Block by block, all pairs whose squared distance may be at most that ``of_a`` or that ``of_b``."""
    reach_a, reach_b = _upper(of_a * ABOVE), _upper(of_b * ABOVE)
    for i in range(0, len(a), _BLOCK):
        left = _factor(a, _part(i), left=True)
        for j in range(0, len(b), _BLOCK):
            values = left @ _factor(b, _part(j), left=False).T
            mask = values <= reach_a[_part(i), None]
            mask |= values <= reach_b[_part(j)]
            if crowded := _crowded(mask):
                values = _differences(a, _part(i), b, _part(j))
            yield _pairs(a, i, b, j, values, mask, crowded)


def decided(a: Vectors, b: Vectors, pairs: Pairs, edges: tuple[Tensor, ...] | None = None) -> Tensor:
    """Squared distances on the right side of each of the ``edges``, or exact ones.

    Where the bounds hold an edge between them, differences in float64 decide.
    """
    doubtful = pairs.least < pairs.most
    if edges is not None:
        held = [(pairs.least <= edge * ABOVE) & (pairs.most >= edge * BELOW) for edge in edges]
        doubtful &= torch.stack(held).any(dim=0)
    squares = (pairs.least + pairs.most) / 2.0
    for index in doubtful.nonzero()[:, 0].split(_PAIRS):
        difference = a.exact(pairs.first[index]) - b.exact(pairs.second[index])
        squares[index] = difference.square_().sum(dim=1) / a.unit**2
    return squares


def radii(vectors: Vectors, ranks: tuple[int, ...]) -> list[Tensor]:
    """The squared distance of each vector to its k-th nearest other, for every k of ``ranks``.

    Within a block on the diagonal, the k-th smallest upper bound of a row is above the k-th smallest distance of all.
    What has a lower bound beyond it is left out in every block, and each other block serves its rows and its columns.
    """
    k, n = max(ranks), len(vectors)
    bounds = torch.full((n,), math.inf, dtype=torch.float64, device=vectors.squares.device)
    found: list[Pairs] = []
    for i in range(0, n, _BLOCK):
        left = _factor(vectors, _part(i), left=True)
        values = left @ _factor(vectors, _part(i), left=False).T
        found += _nearest(vectors, i, i, values, k, bounds)
    for i in range(0, n, _BLOCK):
        left = _factor(vectors, _part(i), left=True)
        for j in range(i + _BLOCK, n, _BLOCK):
            values = left @ _factor(vectors, _part(j), left=False).T
            found += _nearest(vectors, i, j, values, k, bounds)
    pairs = Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    del found
    kept = pairs.least <= _smallest(pairs.first, pairs.most, n, k)[pairs.first]
    pairs = Pairs(*(part[kept] for part in pairs))
    squares = decided(vectors, vectors, pairs)
    return [_smallest(pairs.first, squares, n, rank) for rank in ranks]


def _nearest(vectors: Vectors, i: int, j: int, values: Tensor, k: int, bounds: Tensor) -> list[Pairs]:
    """Pairs of a block that may be among the k nearest of a vector, which comes first; ``bounds`` are set by i = j."""
    rows, columns = _part(i), _part(j)
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
        masks.append((values <= _upper(bounds[columns])).T)
    found: list[Pairs] = []
    exact = _differences(vectors, rows, vectors, columns) if any(map(_crowded, masks)) else None
    for mask, (start, other), side in zip(masks, ((i, j), (j, i)), (values, values.T), strict=False):
        if exact is None:
            found.append(_pairs(vectors, start, vectors, other, side, mask))
            continue
        # of many that are as near as each other, k are enough
        side = (exact if start == i else exact.T).masked_fill(~mask, math.inf)
        least, nearest = side.topk(min(k, side.shape[1]), dim=1, largest=False)
        chosen = torch.zeros_like(mask).scatter_(1, nearest, True) & mask
        found.append(_pairs(vectors, start, vectors, other, side, chosen, exact=True))
        if i == j and len(side) > k:
            bounds[rows] = torch.minimum(bounds[rows], least[:, -1])
    return found


def _smallest(rows: Tensor, values: Tensor, count: int, rank: int) -> Tensor:
    """The ``rank``-th smallest value (from 1) of each of ``count`` rows; every row has enough."""
    order = values.argsort()
    order = order[rows[order].argsort(stable=True)]
    starts = torch.searchsorted(rows[order], torch.arange(count, device=rows.device))
    return values[order[starts + rank - 1]]
