"""Captions of which words have changed places: what a picture does not show, though it has all or most of its words."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence

from sfumato.conditioning.words import WORD, split
from sfumato.errors import InputError

Groups = Sequence[Sequence[str]]
"""Words that can stand for each other, such as those of colours; each is in one group."""


def groups_of(lines: Sequence[str]) -> list[list[str]]:
    """Groups from the words of each line, such as ``"red green blue"``; two words or more, each in one group."""
    groups = [split(line) for line in lines]
    words = [word for group in groups for word in group]
    twice = next((word for word in words if words.count(word) > 1), None)
    if twice is not None or any(len(group) < 2 for group in groups):
        raise InputError(
            "Words that change places are given as groups of two or more, such as 'red green blue' 'left right', each "
            "word once" + (f"; {twice!r} is there twice." if twice else ".")
        )
    return groups


def exchanged(text: str, groups: Groups) -> list[str]:
    """The texts in which two different words of a group have changed places.

    ::

        from sfumato.conditioning.swaps import exchanged

        assert exchanged("a red circle on a blue ring", [("red", "blue")]) == ["a blue circle on a red ring"]
    """
    text, found = _found(text, groups)
    pairs = itertools.combinations(found, 2)
    changes = ({a.span(): b[0], b.span(): a[0]} for (a, one), (b, other) in pairs if one is other)
    texts = (_with(text, change) for change in changes)
    return [other for other in dict.fromkeys(texts) if other.lower() != text.lower()]


def replaced(text: str, groups: Groups) -> list[str]:
    """The texts in which one word is another of its group.

    ::

        from sfumato.conditioning.swaps import replaced

        assert replaced("a red circle", [("red", "green", "blue")]) == ["a green circle", "a blue circle"]
    """
    text, found = _found(text, groups)
    return [_with(text, {at.span(): word}) for at, group in found for word in group if word != at[0].lower()]


def neighbours(text: str, groups: Groups) -> set[tuple[str, str]]:
    """Pairs of words of groups of which one follows the other, at once or with one word between, such as red circle.

    A description that has such a pair which others never have is told by it alone, whatever the picture shows.
    """
    words, known = split(text), {word for group in groups for word in group}
    pairs = (pair for step in (1, 2) for pair in zip(words, words[step:], strict=False))
    return {pair for pair in pairs if known.issuperset(pair)}


def _found(text: str, groups: Groups) -> tuple[str, list[tuple[re.Match[str], Sequence[str]]]]:
    """The text as its words are split, and those that are in a group, with the group."""
    text = unicodedata.normalize("NFC", text)
    group_of = {word: group for group in groups for word in group}
    return text, [(at, group_of[at[0].lower()]) for at in WORD.finditer(text) if at[0].lower() in group_of]


def _with(text: str, words: dict[tuple[int, int], str]) -> str:
    """The text with other words at these places."""
    for (start, end), word in sorted(words.items(), reverse=True):
        text = text[:start] + word + text[end:]
    return text
