"""What can be said of a scene: its things, their relation, and which combinations training never sees."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.errors import InputError

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below", "inside")
CONVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SPLITS = ("seen", "held-out pair", "held-out wording")
MOST_THINGS = 3

_UNSEEN_SIZES = {("small", "triangle"), ("large", "cross")}


@dataclass(frozen=True)
class Thing:
    """One object of a scene; what is None is not said."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        for word, known in ((self.shape, SHAPES), (self.colour, COLOURS), (self.size, SIZES)):
            if word is not None and word not in known:
                raise InputError(f"A thing can't be {word!r}; expected one of {', '.join(known)}, or None.")

    @property
    def known(self) -> int:
        """How many facts are said of it, 0 to 3."""
        return sum(word is not None for word in (self.shape, self.colour, self.size))


@dataclass(frozen=True)
class Relation:
    """``things[first]`` is ``word`` (such as "left of") ``things[second]``."""

    first: int
    word: str
    second: int

    def __post_init__(self) -> None:
        if self.word not in RELATIONS:
            raise InputError(f"A relation can't be {self.word!r}; expected one of {', '.join(RELATIONS)}.")

    @property
    def converse(self) -> Relation | None:
        """The same relation told from the other thing; None for "inside", which has no word for that."""
        word = CONVERSE.get(self.word)
        return Relation(self.second, word, self.first) if word else None


@dataclass(frozen=True)
class Facts:
    """What a caption says, or what a picture shows.

    Attributes:
        things: the objects, 1 to 3.
        relations: which hold between them: at most one in a caption, all that hold in a parsed picture.
    """

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.things)
        if not 1 <= count <= MOST_THINGS:
            raise InputError(f"These are {count} things; expected 1 to {MOST_THINGS}.")
        for relation in self.relations:
            if not {relation.first, relation.second} <= set(range(count)) or relation.first == relation.second:
                raise InputError(f"{relation} is between things that are not there; expected two of 0 ... {count - 1}.")

    @property
    def count(self) -> int:
        """How many facts these are: seven for "a small red circle left of a large blue square"."""
        return sum(thing.known for thing in self.things) + len(self.relations)

    def holds(self, relation: Relation) -> bool:
        """Whether the relation is one of these, in its own words or told from the other thing."""
        return relation in self.relations or relation.converse in self.relations


def held_out_pairs(facts: Facts) -> tuple[str, ...]:
    """The combinations of these facts that training never sees, in words; none for most facts.

    Of (colour, shape) a Latin square: colour ``i`` with shape ``i mod 5``, 6 of 30. Of (size, shape) 2 of 10. Of
    "A left of B", which is the same as "B right of A", shape ``i`` left of shape ``i + 1 mod 5``, 5 of 25.
    """
    pairs: list[str] = []
    for thing in facts.things:
        if thing.shape and thing.colour and COLOURS.index(thing.colour) % len(SHAPES) == SHAPES.index(thing.shape):
            pairs.append(f"{thing.colour} {thing.shape}")
        if (thing.size, thing.shape) in _UNSEEN_SIZES:
            pairs.append(f"{thing.size} {thing.shape}")
    for relation in facts.relations:
        told = relation.converse if relation.word == "right of" else relation
        if told is None or told.word != "left of":
            continue
        left, right = facts.things[told.first].shape, facts.things[told.second].shape
        if left and right and (SHAPES.index(right) - SHAPES.index(left)) % len(SHAPES) == 1:
            pairs.append(f"{left} left of {right}")
    return tuple(dict.fromkeys(pairs))
