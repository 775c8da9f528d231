"""Conditions: what a denoiser knows besides the noisy image."""

from sfumato.conditioning.augmentation import Augmentation
from sfumato.conditioning.base import Condition
from sfumato.conditioning.colours import Colours
from sfumato.conditioning.embedding import Embedding, Tokens
from sfumato.conditioning.labels import Label
from sfumato.conditioning.low_resolution import LowResolution
from sfumato.conditioning.network import Conditioned
from sfumato.conditioning.text import Text

__all__ = [
    "Augmentation",
    "Colours",
    "Condition",
    "Conditioned",
    "Embedding",
    "Label",
    "LowResolution",
    "Text",
    "Tokens",
]
