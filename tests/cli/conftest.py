"""A run for the commands."""

from __future__ import annotations

import pytest

from sfumato.runs.train import train
from tests.training.tiny import LABELLED, tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of digits with classes, after four steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(conditions=LABELLED, training={"steps": 4}), run=folder)
    return str(folder)
