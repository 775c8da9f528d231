"""Shapes and types are checked at run time in tests, and only there."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config, install_import_hook

from tests import first_calls

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
install_import_hook("sfumato", "tests.first_calls.checked")

# tests are many small computations: two threads would mostly wait for each other
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    first_calls.begin()


@pytest.fixture
def unchecked() -> None:
    """Shapes are not checked at run time, as in the hands of a user: a wrong input meets the library's own message."""
    config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images of the tests are no business of the user's own cache."""
    from sfumato.io import files

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "cache_folder", lambda: folder)
        yield
