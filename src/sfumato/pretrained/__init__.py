"""Small models that come along, each a run or a system with a card: ``sfumato.load(pretrained.path("photos"))``."""

from __future__ import annotations

from pathlib import Path

from sfumato.errors import InputError, nearest

SAID = {
    "digits": "digits by their class, trained on those of scikit-learn",
    "photos": "photographs 4 times larger, trained on 16 photographs of Debian, scikit-image and scikit-learn",
    "shapes": "scenes by their captions, trained on those of sfumato.data.shapes",
    "unclip": "scenes by their captions and by their embeddings, trained on those of sfumato.data.shapes",
}
"""What there is, and what each was trained on."""


def path(name: str) -> Path:
    """The directory of a model, for :func:`sfumato.load`; its ``card.md`` says what it was trained on."""
    if name not in SAID:
        raise InputError(f"There is no included model {name!r}{nearest(name, SAID)}")
    return Path(__file__).with_name(name)
