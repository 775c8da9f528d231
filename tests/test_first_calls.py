"""The checks of types and shapes in these tests are at work, and end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from sfumato.diffusion.level import broadcast
from tests import first_calls


def test_only_the_first_calls_are_checked() -> None:
    wrong: Any = "no tensor"
    with pytest.raises(TypeCheckError, match="Actual value: 'no tensor'"):
        broadcast(1.0, wrong)
    for _ in range(first_calls.CALLS):
        broadcast(1.0, torch.zeros(2))
    assert broadcast(1.0, wrong) == 1.0
