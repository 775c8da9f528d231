"""The command line in this process."""

from __future__ import annotations

import pytest

from sfumato.cli import main


def run(*arguments: str) -> int:
    """The exit code of ``sfumato`` with these arguments."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return int(exit_.value.code or 0)
