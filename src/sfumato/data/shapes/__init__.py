"""Captioned scenes of shapes, and an exact parser that says what a picture shows."""

from sfumato.data.shapes.captions import facts_of, split_of, unknown_words
from sfumato.data.shapes.facts import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    Facts,
    Relation,
    Thing,
    held_out_pairs,
)
from sfumato.data.shapes.parser import Agreement, Parsed, agreement, parse
from sfumato.data.shapes.scenes import Placed, Scene, scene
from sfumato.data.shapes.source import shapes

__all__ = [
    "COLOURS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Agreement",
    "Facts",
    "Parsed",
    "Placed",
    "Relation",
    "Scene",
    "Thing",
    "agreement",
    "facts_of",
    "held_out_pairs",
    "parse",
    "scene",
    "shapes",
    "split_of",
    "unknown_words",
]
