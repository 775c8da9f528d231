"""Networks of published models with fresh weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from sfumato.conditioning import Label
from sfumato.config import ModelConfig, parse


def network_of(model: dict[str, Any], shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network of the settings of a model, with the encoder of its labels if there are classes."""
    conditions = {"label": Label(names=tuple(map(str, range(classes))))} if classes else {}
    return parse(ModelConfig, model).build_network(shape, conditions)
