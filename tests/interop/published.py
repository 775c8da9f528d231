"""Networks of published models with fresh weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from sfumato.config import Config, ModelConfig, parse
from sfumato.networks.classifier import Classifier
from sfumato.recipes.openai import CLASSIFIERS
from sfumato.recipes.published import PRESETS
from sfumato.recipes.settings import Published


def network_of(published: Published, shape: tuple[int, ...] | None = None) -> nn.Module:
    """The network of a model with the encoders of its conditions, for its own images or those of another shape."""
    settings: Any = parse(Config, {"conditions": published.described}).conditions
    conditions = {name: condition.build() for name, condition in settings.items()}
    return parse(ModelConfig, published.model).build_network(shape or published.shape, conditions)


def named(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The network of a published model or classifier, and the shape of its images."""
    if name not in CLASSIFIERS:
        return network_of(PRESETS[name]), PRESETS[name].shape
    published = CLASSIFIERS[name]
    channels, size, _ = published.shape
    return Classifier(channels, published.classes, (size, size), **published.network), published.shape
