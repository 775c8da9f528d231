"""Shapes and types are checked at run time in tests, and only there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config, install_import_hook

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
install_import_hook("sfumato", "beartype.beartype")

# decoded images of the tests are no business of the user's own cache
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sfumato-tests-")

# tests are many small computations: two threads would mostly wait for each other
torch.set_num_threads(1)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes are not checked at run time, as in the hands of a user: a wrong input meets the library's own message."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
