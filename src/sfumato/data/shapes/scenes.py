"""Scenes of shapes: what is in them, where things may be, and how they are drawn.

Lengths are in pixels of a picture of 32; a picture of 64 shows the same scene twice as large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.data.shapes.captions import write_caption
from sfumato.data.shapes.facts import COLOURS, RELATIONS, SHAPES, SIZES, SPLITS, Facts, Relation, Thing, held_out_pairs
from sfumato.errors import InputError
from sfumato.random import uniform

Floats = npt.NDArray[np.floating[Any]]

SIDE = 32.0
PICTURE_SIZES = (32, 64)
PALETTE = np.array(
    [(230, 45, 15), (15, 109, 15), (15, 34, 219), (249, 200, 36), (250, 72, 194), (80, 250, 250)], dtype=np.float64
)
"""The colours in the order of COLOURS, 0 ... 255: at least 73 apart in CIELAB (D65), and every mixture of two of them,
or of one with a grey of the backgrounds, at least 41 from the other colours."""
RADII = {"small": (4.0, 4.6), "large": (6.2, 6.9)}
HOLDERS = (9.9, 10.9)  # the radii of rings that hold a thing, which are large too
GAP = 2.0  # between two things, at least
EDGE = 1.0  # between a thing and the edge of the picture
RATIO = 1.5  # by how much a relation outweighs the other axis
THICKNESS = 2.2  # of rings
_GREYS = (75.0, 190.0)  # of backgrounds
_REACH = {"circle": 1.0, "square": 0.9 * math.sqrt(2.0), "triangle": math.hypot(1.0, 0.8), "cross": 1.07, "ring": 1.0}
"""How far a shape of radius 1 reaches from its centre."""


def depth(shape: str, x: Floats, y: Floats, radius: Any) -> Floats:
    """How far points lie inside a shape around 0, negative outside; the shape touches or fits the box of its radius.

    Args:
        shape: one of SHAPES.
        x: to the right.
        y: downwards.
        radius: half the width of the shape (of a square 1/0.9 of that).
    """
    if shape == "circle":
        return radius - np.hypot(x, y)
    if shape == "ring":
        return THICKNESS / 2 - np.abs(np.hypot(x, y) - (radius - THICKNESS / 2))
    if shape == "square":
        return 0.9 * radius - np.maximum(np.abs(x), np.abs(y))
    if shape == "triangle":  # the apex above at (0, -1), the base from (-1, 0.8) to (1, 0.8)
        return np.minimum(0.8 * radius - y, (y + radius - 1.8 * np.abs(x)) / math.hypot(1.0, 1.8))
    across, along = np.abs(x), np.abs(y)
    return np.minimum(radius - np.maximum(across, along), 0.36 * radius - np.minimum(across, along))


@dataclass(frozen=True)
class Placed:
    """A thing with its place: centre and radius in pixels of 32, ``y`` downwards."""

    thing: Thing
    x: float
    y: float
    radius: float


def relations_of(placed: tuple[Placed, ...], strictness: float = 1.0) -> tuple[Relation, ...]:
    """The relations that hold between things, each told once: "left of", "above" and "inside".

    ``A`` is left of ``B`` where the centres are at least both radii and the gap apart along ``x``, and 1.5 times as far
    as along ``y``. It is inside where it lies in the hole of the ring ``B``, with a gap all around.

    Args:
        placed: the things.
        strictness: 1 for scenes as they are drawn; 0.5 asks for half of each margin.
    """
    relations: list[Relation] = []
    ratio = 1.0 + strictness * (RATIO - 1.0)
    for i, a in enumerate(placed):
        for j, b in enumerate(placed):
            across, down = b.x - a.x, b.y - a.y
            hole = b.radius - THICKNESS - strictness * GAP - a.radius * _REACH[str(a.thing.shape)]
            if i != j and b.thing.shape == "ring" and math.hypot(across, down) <= hole:
                relations.append(Relation(i, "inside", j))
            least = a.radius + b.radius + GAP
            if across >= strictness * least and across >= ratio * abs(down):
                relations.append(Relation(i, "left of", j))
            if down >= strictness * least and down >= ratio * abs(across):
                relations.append(Relation(i, "above", j))
    return tuple(relations)


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene before it is drawn.

    Attributes:
        facts: the things and, of two or three, the relation of the first two.
        placed: where the things are.
        caption: which states the facts, or a part of them.
        colours: of the things, 0 ... 255.
        background: the grey of each channel at the centre, and its slopes to the right and downwards per pixel of 32.
    """

    facts: Facts
    placed: tuple[Placed, ...]
    caption: str
    colours: Floats
    background: Floats

    def draw(self, size: int = 32) -> npt.NDArray[np.uint8]:
        """The picture, ``(3, size, size)``; each pixel is the mean of points on a grid, 256 to a side."""
        points = 256 // size
        step = SIDE / size
        centres = (np.arange(size) + 0.5) * step
        offset = centres - SIDE / 2
        base, right, down = self.background[:, :, None, None]
        picture = base + right * offset + down * offset[:, None]
        fine = (np.arange(size * points) + 0.5) * (step / points)
        for placed, colour in zip(self.placed, self.colours, strict=True):
            window: list[slice] = []
            for centre in (placed.y, placed.x):
                first = max(math.floor((centre - placed.radius) / step), 0)
                window.append(slice(first, min(math.ceil((centre + placed.radius) / step), size)))
            rows, columns = (fine[part.start * points : part.stop * points] for part in window)
            inside = depth(str(placed.thing.shape), columns - placed.x, rows[:, None] - placed.y, placed.radius) >= 0.0
            blocks = inside.reshape(len(rows) // points, points, len(columns) // points, points)
            cover = np.count_nonzero(blocks, axis=(1, 3)) / points**2
            part = picture[:, window[0], window[1]]
            part += cover * (colour[:, None, None] - part)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


class _Numbers:
    """Uniform numbers one after the other, a function of the seed and the index of a scene."""

    def __init__(self, seed: int, stream: str, index: int) -> None:
        self._numbers = self._read(seed, stream, index)

    @staticmethod
    def _read(seed: int, stream: str, index: int) -> Iterator[float]:
        step = 0
        while True:
            yield from uniform(seed, stream, index, 1, (128,), step=step)[0].tolist()
            step += 1

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._numbers)

    def pick(self, count: int) -> int:
        return int(count * next(self._numbers))


def _thing(numbers: _Numbers) -> Thing:
    shape, colour, size = (group[numbers.pick(len(group))] for group in (SHAPES, COLOURS, SIZES))
    return Thing(shape, colour, size)


def _facts(numbers: _Numbers, count: int) -> Facts:
    word = RELATIONS[numbers.pick(len(RELATIONS) if count == 2 else 4)]  # a ring that holds one leaves no room for more
    while True:
        things = tuple(_thing(numbers) for _ in range(count))
        fits = word != "inside" or (
            things[0].size == "small" and things[1].shape == "ring" and things[1].size == "large"
        )
        if fits and len({(thing.shape, thing.colour) for thing in things}) == count:
            return Facts(things, (Relation(0, word, 1),) if count > 1 else ())


def _place(numbers: _Numbers, facts: Facts) -> tuple[Placed, ...] | None:
    """Places where the relation holds and nothing is too near; None if these were not found in one try."""
    placed: list[Placed] = []
    is_inside = bool(facts.relations) and facts.relations[0].word == "inside"
    for index, thing in enumerate(facts.things):
        radius = numbers.between(*(HOLDERS if is_inside and index == 1 else RADII[str(thing.size)]))
        low, high = EDGE + radius, SIDE - EDGE - radius
        new = Placed(thing, numbers.between(low, high), numbers.between(low, high), radius)
        least = (0.0 if is_inside else other.radius + radius + GAP for other in placed)
        apart = (max(abs(new.x - other.x), abs(new.y - other.y)) for other in placed)
        if any(distance < bound for distance, bound in zip(apart, least, strict=True)):
            return None
        placed.append(new)
        if index == 1 and not Facts(facts.things[:2], relations_of(tuple(placed))).holds(facts.relations[0]):
            return None
    return tuple(placed)


def _said(facts: Facts, numbers: _Numbers) -> Facts:
    """A part of the facts, as partial captions state it; every thing stays."""

    def keep(word: str | None, chance: float) -> str | None:
        return word if numbers.between(0.0, 1.0) < chance else None

    things = tuple(Thing(keep(t.shape, 0.8), keep(t.colour, 0.65), keep(t.size, 0.65)) for t in facts.things)
    return Facts(things, tuple(relation for relation in facts.relations if keep(relation.word, 0.65)))


def scene(index: int, *, seed: int = 0, split: str = "seen", things: int | None = None) -> Scene:
    """Scene ``index`` of a seed, always the same.

    Args:
        index: from 0 on.
        seed: of the scenes.
        split: "seen" for training; "held-out pair" for scenes that each show a combination training never sees;
            "held-out wording" for seen scenes in wordings that training never sees. One caption in four of "seen" is
            partial, and those of the other splits are whole.
        things: how many there are, 1 to 3; None for 1, 2 and 3 in a quarter, a half and a quarter of the scenes.
    """
    if split not in SPLITS:
        raise InputError(f"The split is {split!r}; expected one of {', '.join(SPLITS)}.")
    if things not in (None, 1, 2, 3):
        raise InputError(f"{things} things can't be in a scene; expected 1 to 3, or None for any of these.")
    if index < 0:
        raise InputError(f"The index of a scene is {index}; expected 0 or more.")
    numbers = _Numbers(seed, f"shapes/{split}/{things or 'any'}", index)
    count = things or (1, 2, 2, 3)[numbers.pick(4)]
    is_pair = split == "held-out pair"
    while True:
        facts = _facts(numbers, count)
        if is_pair != bool(held_out_pairs(facts)):
            continue
        placed = next((found for _ in range(40) if (found := _place(numbers, facts))), None)
        # Another thing may show a held-out relation that nobody states, too
        if placed and (is_pair or not held_out_pairs(Facts(facts.things, relations_of(placed, 0.5)))):
            break
    said = _said(facts, numbers) if split == "seen" and numbers.pick(4) == 0 else facts
    caption = write_caption(said, numbers.pick, is_held_out=split == "held-out wording")
    colours = np.array([PALETTE[COLOURS.index(str(thing.colour))] for thing in facts.things])
    colours += [[numbers.between(-8.0, 8.0) for _ in range(3)] for _ in facts.things]
    grey, tint = numbers.between(*_GREYS), [numbers.between(-10.0, 10.0) for _ in range(3)]
    rise, angle = numbers.between(0.0, 45.0) / SIDE, numbers.between(0.0, 2.0 * math.pi)
    slopes = [rise * math.cos(angle), rise * math.sin(angle)]
    # The corners are further from the centre than the sides, yet their greys are to stay within the range
    spread = (abs(slopes[0]) + abs(slopes[1])) * SIDE / 2
    grey = min(max(grey, _GREYS[0] + spread), _GREYS[1] - spread)
    background = np.array([[grey + channel for channel in tint], *([slope] * 3 for slope in slopes)])
    return Scene(facts, placed, caption, np.clip(colours, 0.0, 255.0), background)
