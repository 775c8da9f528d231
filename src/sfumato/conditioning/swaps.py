"""Captions of which words have changed places: what a picture does not show, though it has all or most of its words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from sfumato.errors import InputError

Groups = Sequence[Sequence[str]]
"""Words that can stand for each other, such as those of colours; each is in one group."""

_WORD = re.compile(r"[^\W_]+")


def require_groups(groups: Groups) -> None:
    """Check that each word is in one group, in lower case, and that no group has a single word."""
    words = [word for group in groups for word in group]
    wrong = next(
        (word for word in words if words.count(word) > 1 or not _WORD.fullmatch(word) or word.lower() != word), ""
    )
    if wrong or any(len(group) < 2 for group in groups):
        raise InputError(
            "Words that change places are groups of two or more single words in lower case, each in one group"
            + (f"; {wrong!r} is not." if wrong else ".")
        )


def exchanged(text: str, groups: Groups) -> list[str]:
    """The texts in which two different words of a group have changed places.

    ::

        from sfumato.conditioning.swaps import exchanged

        assert exchanged("a red circle on a blue ring", [("red", "blue")]) == ["a blue circle on a red ring"]
    """
    found = _found(text, groups)
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
    found = _found(text, groups)
    return [_with(text, {at.span(): word}) for at, group in found for word in group if word != at[0].lower()]


def _found(text: str, groups: Groups) -> list[tuple[re.Match[str], Sequence[str]]]:
    """The words of a text that are in a group, with the group."""
    group_of = {word: group for group in groups for word in group}
    return [(at, group_of[at[0].lower()]) for at in _WORD.finditer(text) if at[0].lower() in group_of]


def _with(text: str, words: dict[tuple[int, int], str]) -> str:
    """The text with other words at these places."""
    for (start, end), word in sorted(words.items(), reverse=True):
        text = text[:start] + word + text[end:]
    return text
