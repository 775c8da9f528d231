"""The grammar of captions: facts become words and words become facts.

A caption names things, "a small red circle", and joins them in a form such as "N left of M". Training has many forms of
both; the forms of *held-out wording* put the same words into another order, which one who has only read the others can
understand: that "and" may join qualities, and that what has a relation may come last, training shows in other forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sfumato.data.shapes.facts import COLOURS, MOST_THINGS, SHAPES, SIZES, Facts, Relation, Thing, held_out_pairs
from sfumato.errors import InputError, shown

_BETWEEN = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "inside": ("inside", "in", "within"),
}
_BESIDE_IT = {
    "left of": ("to its left", "on its left"),
    "right of": ("to its right", "on its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it"),
    "inside": ("inside it", "in it"),
}
_OPENINGS = ("there is", "a picture of", "a picture with")

Pick = Callable[[int], int]
"""Gives a whole number from 0 up to below the one that it is given."""


@dataclass(frozen=True)
class _Form:
    """What joins things: {N} is the one that is related, {M} the one that it is related to, {K} any other."""

    text: str
    word: str | None = None
    is_held_out: bool = False
    can_open: bool = True  # whether "there is" may stand before it


def _forms_of_two(word: str) -> Iterator[_Form]:
    for between in _BETWEEN[word]:
        yield _Form(f"{{N}} {between} {{M}}", word)
        yield _Form(f"{{N}} is {between} {{M}}", word, can_open=False)
        yield _Form(f"{between} {{M}} is {{N}}", word, is_held_out=True, can_open=False)
        yield _Form(f"{between} {{M}} there is {{N}}", word, is_held_out=True, can_open=False)
    for beside in _BESIDE_IT[word]:
        yield _Form(f"{{M}} with {{N}} {beside}", word)
        yield _Form(f"{{M}} with {beside} {{N}}", word)
        yield _Form(f"{{M}} and {beside} {{N}}", word, is_held_out=True)


def _forms() -> Iterator[_Form]:
    yield _Form("{N}")
    for joint in ("and", "with"):
        yield _Form(f"{{N}} {joint} {{M}}")
        yield _Form(f"{{N}} {joint} {{M}} and {{K}}")
    for word in _BETWEEN:
        for form in _forms_of_two(word):
            yield form
            yield _Form(f"{form.text}, and {{K}}", word, form.is_held_out, form.can_open)


_FORMS = tuple(_forms())


def _order(form: _Form) -> list[str]:
    """The placeholders of a form in the order in which they come."""
    return re.findall(r"\{(\w)\}", form.text)


def _read(form: _Form) -> tuple[Relation | None, bool]:
    order = _order(form)
    relation = Relation(order.index("N"), form.word, order.index("M")) if form.word else None
    return relation, form.is_held_out


_READINGS = {re.sub(r"\{\w\}|,", lambda m: "" if m[0] == "," else "{}", form.text): _read(form) for form in _FORMS}
_CHOICES: dict[tuple[str | None, int, bool], list[_Form]] = {}
for _form in _FORMS:
    _CHOICES.setdefault((_form.word, len(_order(_form)), _form.is_held_out), []).append(_form)

_QUALITY = "|".join((*SIZES, *COLOURS))
_THING = re.compile(
    rf"\b(?:a|one)(?P<before>(?: (?:{_QUALITY})(?: and(?= (?:{_QUALITY})))?)*) (?P<shape>{'|'.join(SHAPES)}|shape)"
    rf"(?: that is (?P<after>{_QUALITY})(?: and (?P<last>{_QUALITY}))?)?\b"
)
_OPENING = re.compile(rf"^(?:{'|'.join(_OPENINGS)}) ")
_KNOWN = {
    *(*SHAPES, *COLOURS, *SIZES, "a", "one", "shape", "that", "is", "and", *" ".join(_OPENINGS).split()),
    *(word for form in _FORMS for word in re.sub(r"\{\w\}|,", "", form.text).split()),
}


def _words(caption: str) -> list[str]:
    """Letters, digits and other signs apart; punctuation says nothing here."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s.,;:!?-]", caption.lower())


def unknown_words(caption: str) -> tuple[str, ...]:
    """The words of a caption that the grammar does not have, each once, in lower case."""
    return tuple(dict.fromkeys(word for word in _words(caption) if word not in _KNOWN))


@dataclass(frozen=True)
class Reading:
    """A caption that was understood: its facts, and whether it is of the wording that training never sees."""

    facts: Facts
    is_held_out_wording: bool


def read_caption(caption: str) -> Reading:
    """The facts of a caption and the kind of its wording; raises as :func:`facts_of` does."""
    unknown = unknown_words(caption)
    if unknown:
        known = ", ".join((*SIZES, *COLOURS, *SHAPES))
        raise InputError(f"{shown(caption)} has unknown words: {', '.join(unknown)}; known of things are {known}.")
    things: list[Thing] = []
    wordings: list[bool] = []
    text = _OPENING.sub("", " ".join(_words(caption)))
    for match in _THING.finditer(text):
        before = [word for word in match["before"].split() if word != "and"]
        qualities = [*before, *(word for word in (match["after"], match["last"]) if word)]
        sizes = [word for word in qualities if word in SIZES]
        colours = [word for word in qualities if word in COLOURS]
        if len(sizes) > 1 or len(colours) > 1:
            raise InputError(f"{shown(caption)}: {match[0]!r} has two sizes or two colours; expected one of each.")
        shape = None if match["shape"] == "shape" else match["shape"]
        things.append(Thing(shape, next(iter(colours), None), next(iter(sizes), None)))
        wordings.append(match["last"] is not None)
    if not 1 <= len(things) <= MOST_THINGS:
        told = f"names {len(things)} things in the form 'a small red circle'"
        raise InputError(f"{shown(caption)} {told}; expected 1 to {MOST_THINGS}.")
    reading = _READINGS.get(_THING.sub("{}", text))
    if reading is None:
        example = "a small red circle left of a large blue square"
        raise InputError(f"{shown(caption)} can't be read as a description of shapes; say it as in: {example}.")
    relation, is_held_out = reading
    return Reading(Facts(tuple(things), (relation,) if relation else ()), is_held_out or any(wordings))


def facts_of(caption: str) -> Facts:
    """The facts that a caption states.

    Raises:
        InputError: it has unknown words, which are named, or no form that the grammar has.
    """
    return read_caption(caption).facts


def split_of(what: Facts | str) -> str:
    """``"seen"``, ``"held-out pair"`` or ``"held-out wording"``: the split that facts or a caption belong to.

    A caption of held-out wording with a held-out pair counts as "held-out pair", which is the harder of both.
    """
    reading = read_caption(what) if isinstance(what, str) else Reading(what, False)
    if held_out_pairs(reading.facts):
        return "held-out pair"
    return "held-out wording" if reading.is_held_out_wording else "seen"


def _name(thing: Thing, pick: Pick, is_held_out: bool) -> str:
    """The words of a thing."""
    shape, size, colour = thing.shape or "shape", thing.size, thing.colour
    article = "one" if pick(8) == 0 else "a"
    way = pick(10)
    if size and colour and is_held_out:
        first, second = (size, colour) if way % 2 else (colour, size)
        return f"{article} {shape} that is {first} and {second}"
    if size and colour and way == 0:
        return f"{article} {size} {shape} that is {colour}"
    if size and colour and way == 1:
        return f"{article} {colour} {shape} that is {size}"
    if size and colour and way == 2:
        return f"{article} {size} and {colour} {shape}"
    return " ".join(word for word in (article, size, colour, shape) if word)


def write_caption(facts: Facts, pick: Pick, *, is_held_out: bool = False) -> str:
    """A caption that states exactly these facts, in one of many wordings.

    Args:
        facts: with at most one relation.
        pick: what chooses among the wordings.
        is_held_out: in a wording that training never sees; it needs a relation, or a thing with size and colour.
    """
    things = facts.things
    word, told = None, [*range(len(things))]
    if facts.relations:
        relation = facts.relations[0]
        converse = relation.converse
        relation = converse if converse and pick(2) else relation
        word, told = relation.word, [relation.first, relation.second]
        told += [index for index in range(len(things)) if index not in told]
    forms = _CHOICES[word, len(things), is_held_out and word is not None]
    form = forms[pick(len(forms))]
    is_name_held_out = is_held_out and (word is None or pick(2) == 1)
    names = {letter: _name(things[index], pick, is_name_held_out) for letter, index in zip("NMK", told, strict=False)}
    caption = form.text.format(**names)
    opening = pick(2 * len(_OPENINGS))
    return f"{_OPENINGS[opening]} {caption}" if form.can_open and opening < len(_OPENINGS) else caption
