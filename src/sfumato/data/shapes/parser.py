"""What a picture of shapes shows, or why that can't be said; how far it agrees with a caption.

The background is a plane per channel, fitted robustly. What differs from it falls into connected components; to each of
these every shape is fitted by least squares with a free place, size, sharpness and colour, and the likelihoods of the
fits are compared. A picture is refused if two shapes fit alike, if a colour or a size lies between the known ones, or
if the fitted scene, drawn again, leaves something unexplained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sfumato.data.shapes.captions import facts_of
from sfumato.data.shapes.coverage import depth
from sfumato.data.shapes.facts import COLOURS, MOST_THINGS, SHAPES, Facts, Thing
from sfumato.data.shapes.scenes import HOLDERS, PALETTE, PICTURE_SIZES, RADII, SIDE, Placed, relations_of
from sfumato.errors import InputError

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

# Thresholds, on values from 0 to 1; tests/data/test_shapes.py measures what they let through.
_FOREGROUND = 0.1  # from the background, more of which is no background
_NOISE = 0.06  # standard deviation, the most
_MISFIT = 0.12  # root mean square of a thing's fit, as a part of its contrast
_ODDS = 12.0  # difference of log-likelihood between the best shape and the second
_MODEL_ERROR = 0.05  # of the fitted coverage, as a part of the contrast
_LEFTOVER = 0.14  # the most of the picture less the fit, averaged over squares of a tenth of the side
_COLOUR = 16.0  # in CIELAB, from the colour of the palette
_TINT = 0.18  # between channels of the background
_BLUR = 2.6  # pixels across an edge, the most
_SIZES = {
    "small": (RADII["small"][0] - 0.6, RADII["small"][1] + 0.5),
    "large": (RADII["large"][0] - 0.6, HOLDERS[1] + 1),
}


@dataclass(frozen=True)
class Parsed:
    """What a picture shows.

    Attributes:
        facts: the things, from left to right, with all relations that hold; None if the picture was refused.
        refusal: why it was refused; None if it was not.
        placed: where the things are, in the order of the facts; empty if the picture was refused.
    """

    facts: Facts | None
    refusal: str | None = None
    placed: tuple[Placed, ...] = ()


class _Refusal(Exception):
    """Why a picture can't be parsed."""


def parse(picture: Any) -> Parsed:
    """The facts of one picture, or a refusal with its reason.

    Args:
        picture: ``(3, 32, 32)`` or ``(3, 64, 64)``, an array or a tensor on the CPU: uint8, or floats in [-1, 1].
    """
    pixels = _pixels(picture)
    try:
        placed = _placed(pixels)
    except _Refusal as refusal:
        return Parsed(None, str(refusal))
    facts = Facts(tuple(thing.thing for thing in placed), relations_of(placed, 0.5))
    return Parsed(facts, None, placed)


def _pixels(picture: Any) -> Floats:
    """Values from 0 to 1."""
    array = np.asarray(picture)
    if (
        array.ndim != 3
        or array.shape[0] != 3
        or array.shape[1] != array.shape[2]
        or array.shape[1] not in PICTURE_SIZES
    ):
        raise InputError(f"The picture has shape {array.shape}; expected (3, 32, 32) or (3, 64, 64).")
    if array.dtype == np.uint8:
        return array / 255.0
    if array.dtype.kind != "f":
        raise InputError(f"The picture is {array.dtype}; expected uint8, or floats in [-1, 1].")
    return (array.astype(np.float64) + 1.0) / 2.0


@cache
def _grid(size: int) -> tuple[Floats, Floats, Mask]:
    """The centres of pixels along one side, the matrix of planes (size^2, 3), and which pixels are at the border."""
    centres = (np.arange(size) + 0.5) * (SIDE / size)
    down, across = np.meshgrid(centres - SIDE / 2, centres - SIDE / 2, indexing="ij")
    planes = np.stack([np.ones_like(across), across / SIDE, down / SIDE], axis=-1).reshape(-1, 3)
    border = np.maximum(np.abs(across), np.abs(down)) > SIDE / 2 - 1.0
    return centres, planes, border.reshape(-1)


def _background(pixels: Floats) -> tuple[Floats, float]:
    """The background of every pixel, ``(3, H, W)``, and the standard deviation of what is left of it."""
    size = pixels.shape[1]
    _, planes, border = _grid(size)
    values = pixels.reshape(3, -1).T
    chosen = border
    fit = np.median(values[chosen], axis=0) * np.array([[1.0], [0.0], [0.0]])
    for tolerance in (0.4, 0.25, 0.15, _FOREGROUND + _NOISE, _FOREGROUND + _NOISE):
        near = np.linalg.norm(values - planes @ fit, axis=1) < tolerance
        chosen = near & border if tolerance > 0.2 else near
        if np.count_nonzero(chosen) < 0.1 * (len(chosen) if tolerance <= 0.2 else np.count_nonzero(border)):
            raise _Refusal("there is no smooth background")
        fit = np.linalg.lstsq(planes[chosen], values[chosen], rcond=None)[0]
    plane = planes @ fit
    # Quartiles, since the edges of things are among these pixels
    low, high = np.percentile((values - plane)[chosen], (25.0, 75.0))
    noise = float(high - low) / 1.349
    if noise > _NOISE:
        raise _Refusal(f"noise of {noise:.2f} covers the picture")
    if np.ptp(fit[0]) > _TINT:
        raise _Refusal("the background has a colour")
    return plane.T.reshape(pixels.shape), noise


def _placed(pixels: Floats) -> tuple[Placed, ...]:
    if not np.isfinite(pixels).all():
        raise _Refusal("it has values that are not finite")
    size = pixels.shape[1]
    background, noise = _background(pixels)
    difference = pixels - background
    palette = PALETTE[:, :, None, None] / 255.0 - background
    # How much of each colour of the palette a pixel has; the colour that leaves the least decides
    parts = np.maximum(np.einsum("kchw,chw->khw", palette, difference) / (palette**2).sum(axis=1), 0.0)
    rest = ((difference - parts[:, None] * palette) ** 2).sum(axis=1)
    cover = np.take_along_axis(parts, rest.argmin(axis=0)[None], axis=0)[0]
    found: Any = ndimage.label(cover > 0.5, structure=np.ones((3, 3)))
    labels, count = found
    areas = np.bincount(labels.reshape(-1))[1:]
    scale = size / SIDE
    large = [index + 1 for index in range(count) if areas[index] >= 6 * scale**2]
    if not large:
        raise _Refusal("there is no thing in it")
    if len(large) > MOST_THINGS:
        raise _Refusal(f"there are {len(large)} things; expected 1 to {MOST_THINGS}")
    fitted = background.copy()
    placed: list[Placed] = []
    for label in large:
        own = labels == label
        others = np.asarray(ndimage.binary_dilation((labels > 0) & ~own, iterations=1), dtype=np.bool_)
        placed.append(_thing(difference, background, own, others, noise, fitted))
    for a, b in itertools.combinations(placed, 2):
        is_inside = any(relation.word == "inside" for relation in relations_of((a, b), 0.5))
        if not is_inside and np.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius - 1.0:
            raise _Refusal("two things overlap")
    square: Any = (0, *[round(3 * scale)] * 2)
    worst = float(np.abs(ndimage.uniform_filter(pixels - fitted, square)).max())
    if worst > _LEFTOVER:
        raise _Refusal(f"something in it is no thing that is known (a difference of {worst:.2f})")
    return tuple(sorted(placed, key=lambda thing: thing.x))


@dataclass(frozen=True)
class _Fit:
    shape: str
    x: float
    y: float
    radius: float
    blur: float
    cover: Floats
    error: float  # sum of squares, as a part of the contrast


def _thing(difference: Floats, background: Floats, own: Mask, others: Mask, noise: float, fitted: Floats) -> Placed:
    """The thing that explains a component best; draws it into ``fitted``."""
    size = own.shape[0]
    rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
    box = tuple(slice(max(span[0] - 3, 0), span[-1] + 4) for span in (rows, columns))
    part, mask = difference[:, box[0], box[1]], own[box]
    weight = ~others[box]
    strength = np.linalg.norm(part, axis=0) * mask
    strong = strength > 0.85 * np.percentile(strength[mask], 90)
    colour = part[:, strong].mean(axis=1)
    contrast = float(colour @ colour)
    cover = np.einsum("c,chw->hw", colour, part) / contrast
    centres = _grid(size)[0]
    x, y = centres[box[1]], centres[box[0]][:, None]
    half = SIDE / size / 2
    edges = (centres[columns[0]] - half, centres[columns[-1]] + half, centres[rows[0]] - half, centres[rows[-1]] + half)
    fits = [_fit(shape, cover, weight, x, y, edges, SIDE / size) for shape in SHAPES]
    best, second = sorted(fits, key=lambda fit: fit.error)[:2]
    pixels = np.count_nonzero(weight)
    variance = noise**2 / contrast
    misfit = np.sqrt(max(best.error / pixels - variance, 0.0))
    if misfit > _MISFIT:
        raise _Refusal(f"a thing fits no shape (a {best.shape} leaves {misfit:.2f} of its contrast)")
    odds = (second.error - best.error) / (2.0 * (variance + _MODEL_ERROR**2))
    if odds < _ODDS:
        raise _Refusal(f"a thing is between {best.shape} and {second.shape}")
    if best.blur > _BLUR:
        raise _Refusal("it is blurred")
    word = next((word for word, (low, high) in _SIZES.items() if low <= best.radius <= high), None)
    if word is None:
        raise _Refusal(f"a thing of radius {best.radius:.1f} is neither small nor large")
    covered = best.cover * weight
    colour = (part * covered).sum(axis=(1, 2)) / (covered**2).sum()
    named = _colour(colour + (background[:, box[0], box[1]] * covered).sum(axis=(1, 2)) / covered.sum())
    # Where another thing is, in the hole of a ring, its own fit is drawn
    fitted[:, box[0], box[1]] += best.cover * colour[:, None, None]
    return Placed(Thing(best.shape, named, word), best.x, best.y, best.radius)


def _fit(shape: str, cover: Floats, weight: Mask, x: Floats, y: Floats, edges: tuple[float, ...], pixel: float) -> _Fit:
    """The least squares of a shape's coverage, by Gauss and Newton, in place, radius, sharpness and contrast."""
    width, height = edges[1] - edges[0], edges[3] - edges[2]
    middle = (edges[2] + edges[3]) / 2
    radius = {"square": (width + height) / 3.6, "triangle": width / 2}.get(shape, (width + height) / 4)
    # x, y, radius, and pixels across an edge
    at = np.array([(edges[0] + edges[1]) / 2, middle + (0.1 * radius if shape == "triangle" else 0.0), radius, 1.6])
    nudges = np.vstack([np.zeros(4), np.diag([0.05, 0.05, 0.05, 0.05])])
    bounds = (np.array([0.0, 0.0, 2.0, 0.6]), np.array([SIDE, SIDE, 15.0, 3.5]))
    target = cover[weight]
    found: tuple[float, Floats, Floats] | None = None
    step = np.zeros(4)
    for _ in range(12):
        trial = np.clip((at if found is None else found[1]) + step, *bounds)
        tries = (trial + nudges)[:, :, None, None]
        inside = depth(shape, x - tries[:, 0], y - tries[:, 1], tries[:, 2]) / (pixel * tries[:, 3])
        drawn = np.clip(inside + 0.5, 0.0, 1.0)
        values = drawn[:, weight]
        here = values[0]
        contrast = float(here @ target) / max(float(here @ here), 1e-9)
        error = float(((target - contrast * here) ** 2).sum())
        if found is not None and error > found[0]:
            step = step / 3
            continue
        is_settled = found is not None and error > 0.97 * found[0]
        found = (error, trial, drawn[0])
        if is_settled or error < 1e-4 * len(target):
            break
        slopes = np.column_stack([contrast * (values[1:] - here).T / 0.05, here])
        normal = slopes.T @ slopes + 1e-3 * np.eye(5)
        step = np.clip(np.linalg.solve(normal, slopes.T @ (target - contrast * here))[:4], -1.0, 1.0)
    assert found is not None
    error, at, best = found
    return _Fit(shape, float(at[0]), float(at[1]), float(at[2]), float(at[3]), best, error)


def _colour(rgb: Floats) -> str:
    """The name of a colour, 0 ... 1."""
    distances = np.linalg.norm(lab(np.clip(rgb, 0.0, 1.0)) - lab(PALETTE / 255.0), axis=1)
    nearest = int(distances.argmin())
    if distances[nearest] > _COLOUR:
        raise _Refusal(f"a colour is {distances[nearest]:.0f} from {COLOURS[nearest]}, the nearest")
    return COLOURS[nearest]


def lab(rgb: Floats) -> Floats:
    """CIELAB under D65 of sRGB values in 0 ... 1, the last axis (IEC 61966-2-1; CIE 15:2004)."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x = linear @ (matrix / matrix.sum(axis=1, keepdims=True)).T
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@dataclass(frozen=True)
class Agreement:
    """How far a picture agrees with a caption.

    Attributes:
        right: of each kind of fact ("shape", "colour", "size", "relation") that the caption states, how many hold.
        said: how many of each kind it states.
        whole: whether all hold and the picture has as many things as the caption.
        refusal: why the picture was refused, in which case nothing holds.
    """

    right: dict[str, int]
    said: dict[str, int]
    whole: bool
    refusal: str | None = None

    @property
    def fraction(self) -> float:
        """The part of the stated facts that hold; 1 or 0 with ``whole`` where nothing but things is stated."""
        total = sum(self.said.values())
        return sum(self.right.values()) / total if total else float(self.whole)


def agreement(wanted: str | Facts, picture: Any) -> Agreement:
    """How far a picture agrees with a caption or facts; the things are matched so that the most facts hold.

    Args:
        wanted: a caption that :func:`facts_of` reads, or facts.
        picture: as :func:`parse` takes it, or what it returned.
    """
    facts = facts_of(wanted) if isinstance(wanted, str) else wanted
    parsed = picture if isinstance(picture, Parsed) else parse(picture)
    said = {
        kind: sum(getattr(thing, kind) is not None for thing in facts.things) for kind in ("shape", "colour", "size")
    }
    said["relation"] = len(facts.relations)
    if parsed.facts is None:
        return Agreement(dict.fromkeys(said, 0), said, False, parsed.refusal)
    right = max(_matches(facts, parsed.facts), key=lambda counts: sum(counts.values()))
    return Agreement(right, said, right == said and len(facts.things) == len(parsed.facts.things))


def _matches(wanted: Facts, shown: Facts) -> Iterator[dict[str, int]]:
    """How many facts of each kind hold, for every way to match the things."""
    count = len(wanted.things)
    for order in itertools.permutations(range(max(count, len(shown.things))), count):
        right = dict.fromkeys(("shape", "colour", "size"), 0)
        for thing, index in zip(wanted.things, order, strict=True):
            for kind in right if index < len(shown.things) else ():
                told = getattr(thing, kind)
                right[kind] += told is not None and told == getattr(shown.things[index], kind)
        relations = [type(r)(order[r.first], r.word, order[r.second]) for r in wanted.relations]
        yield {**right, "relation": sum(shown.holds(relation) for relation in relations)}
