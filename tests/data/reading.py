"""Reading with paths of any kind, as the tests have them."""

from pathlib import Path
from typing import Any

from sfumato import data


def load(source: str | Path, **options: Any) -> data.Dataset:
    """``sfumato.data.load`` of a path."""
    if "cache" in options:
        options["cache"] = str(options["cache"])
    if "value_range" in options:
        options["value_range"] = tuple(map(float, options["value_range"]))
    return data.load(str(source), **options)
