"""Scenes of shapes: what is in them, where things may be, and how they are drawn.

Lengths are in pixels of a picture of 32; a picture of 64 shows the same scene twice as large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.data.shapes.captions import write_caption
from sfumato.data.shapes.coverage import THICKNESS, coverage
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
_GREYS = (75.0, 190.0)  # of backgrounds
_REACH = {"circle": 1.0, "square": 0.9 * math.sqrt(2.0), "triangle": math.hypot(1.0, 0.8), "cross": 1.07, "ring": 1.0}
"""How far a shape of radius 1 reaches from its centre."""


@dataclass(frozen=True)
class Placed:
    """A thing with its place: centre and radius in pixels of 32, ``y`` downwards."""

    thing: Thing
    x: float
    y: float
    radius: float


def _hole(ring: float, radius: float, shape: str, strictness: float = 1.0) -> float:
    """How far a thing in a ring may be from its centre; less than 0 if there is no room for it."""
    return ring - THICKNESS - strictness * GAP - radius * _REACH[shape]


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
            is_ring = i != j and b.thing.shape == "ring"
            if is_ring and math.hypot(across, down) <= _hole(b.radius, a.radius, str(a.thing.shape), strictness):
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
        """The picture, ``(3, size, size)``; each pixel is the mean over its area."""
        step = SIDE / size
        edges = np.arange(size + 1) * step
        offset = edges[:-1] + (step - SIDE) / 2
        base, right, down = self.background[:, :, None, None]
        picture = base + right * offset + down * offset[:, None]
        for placed, colour in zip(self.placed, self.colours, strict=True):
            first = [max(math.floor((at - placed.radius) / step), 0) for at in (placed.y, placed.x)]
            last = [min(math.ceil((at + placed.radius) / step), size) for at in (placed.y, placed.x)]
            y, x = (edges[one : other + 1] for one, other in zip(first, last, strict=True))
            cover = coverage(str(placed.thing.shape), x - placed.x, y - placed.y, placed.radius) / step**2
            part = picture[:, first[0] : last[0], first[1] : last[1]]
            part += cover * (colour[:, None, None] - part)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


class _Numbers:
    """Uniform numbers one after the other, a function of the seed and the index of a scene."""

    def __init__(self, seed: int, stream: str, index: int) -> None:
        self._source = seed, stream, index
        self._block, self._left = 0, list[float]()

    def next(self) -> float:
        if not self._left:
            seed, stream, index = self._source
            self._left = uniform(seed, stream, index, 1, (128,), step=self._block)[0].tolist()[::-1]
            self._block += 1
        return self._left.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.next()

    def pick(self, count: int) -> int:
        return int(count * self.next())


def _thing(numbers: _Numbers, size: str | None = None, shape: str | None = None) -> Thing:
    shape, size = shape or SHAPES[numbers.pick(len(SHAPES))], size or SIZES[numbers.pick(len(SIZES))]
    return Thing(shape, COLOURS[numbers.pick(len(COLOURS))], size)


def _facts(numbers: _Numbers, count: int) -> Facts:
    word = RELATIONS[numbers.pick(len(RELATIONS) if count == 2 else 4)]  # a ring that holds one leaves no room for more
    while True:
        if word == "inside":
            things = (_thing(numbers, "small"), _thing(numbers, "large", "ring"))
        else:
            things = tuple(_thing(numbers) for _ in range(count))
        if len({(thing.shape, thing.colour) for thing in things}) == count:
            return Facts(things, (Relation(0, word, 1),) if count > 1 else ())


def _place(numbers: _Numbers, facts: Facts) -> tuple[Placed, ...] | None:
    """Places where the relation holds and nothing is too near, all alike likely; None if one try found none."""
    word = facts.relations[0].word if facts.relations else None
    radii = [
        numbers.between(*(HOLDERS if word == "inside" and index == 1 else RADII[str(thing.size)]))
        for index, thing in enumerate(facts.things)
    ]
    # the ranges of centres are the same along both axes
    ranges = [(EDGE + radius, SIDE - EDGE - radius) for radius in radii]
    places = [(numbers.between(*bounds), numbers.between(*bounds)) for bounds in ranges]
    if word == "inside":
        hole = _hole(radii[1], radii[0], str(facts.things[0].shape))
        across, down = numbers.between(-hole, hole), numbers.between(-hole, hole)
        if hole < 0.0 or math.hypot(across, down) > hole:
            return None
        places[0] = places[1][0] + across, places[1][1] + down
    elif word is not None:
        axis = 0 if word in ("left of", "right of") else 1
        near, far = (0, 1) if word in ("left of", "above") else (1, 0)  # which has the lower coordinate
        least = radii[0] + radii[1] + GAP
        # a pair of numbers in order is uniform over all pairs of coordinates that far apart
        low, high = sorted((numbers.next(), numbers.next()))
        room = ranges[far][1] - ranges[near][0] - least
        along = ranges[near][0] + room * low, ranges[far][1] - room * (1.0 - high)
        if along[1] - along[0] < RATIO * abs(places[0][1 - axis] - places[1][1 - axis]):
            return None
        for index, value in zip((near, far), along, strict=True):
            places[index] = (value, places[index][1]) if axis == 0 else (places[index][0], value)
    for i, (x, y) in enumerate(places[2:], start=2):
        for j in range(i):
            if max(abs(x - places[j][0]), abs(y - places[j][1])) < radii[i] + radii[j] + GAP:
                return None
    return tuple(Placed(thing, *at, radius) for thing, at, radius in zip(facts.things, places, radii, strict=True))


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
