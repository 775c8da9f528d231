"""Small models that come along, each a run with a card: ``sfumato.load(sfumato.pretrained.path("photos"))``."""

from __future__ import annotations

from pathlib import Path

from sfumato.errors import InputError, nearest

NAMES = ("photos",)
"""What there is: ``photos`` makes photographs 4 times larger."""


def path(name: str) -> Path:
    """The directory of a model, for :func:`sfumato.load`; its ``card.md`` says what it was trained on."""
    if name not in NAMES:
        raise InputError(f"No model {name!r} comes along{nearest(name, NAMES)}")
    return Path(__file__).with_name(name)
