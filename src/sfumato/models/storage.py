"""What describes a run: ``config.json``, with the configuration and what its model must know of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

import sfumato
from sfumato.config import Component, Config, parse
from sfumato.errors import InputError
from sfumato.io.files import write_json

FORMAT = 1
"""The version of the layout of a run directory."""


class Facts(Component):
    """What a model must know of the data it was trained on."""

    shape: tuple[int, ...] = Field(description="(C, *space) of one image.")
    classes: tuple[str, ...] = Field(default=(), description="Names of the classes, for a model with labels.")
    frequencies: tuple[float, ...] = Field(default=(), description="Fraction of the training images in each class.")
    std: float = Field(gt=0, description="Standard deviation of the training data.")
    train: int = Field(description="Number of training images.")
    heldout: int = Field(description="Number of held-out images.")


def write_config(run: Path, config: Config, facts: Facts) -> None:
    """Write ``config.json``, which describes a run and what its model must know of the data."""
    value = {
        "format": FORMAT,
        "sfumato": sfumato.__version__,
        "data": facts.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
    }
    write_json(run / "config.json", value)


def read_config(run: Path) -> tuple[Config, Facts]:
    """What :func:`write_config` wrote.

    Raises:
        InputError: if the directory is not a run, or one of another version.
    """
    path = run / "config.json"
    if run.is_file():
        raise InputError(
            f"{run} is a file, not a run directory; weights of other programs become one with: sfumato import {run}"
        )
    if not run.is_dir():
        raise InputError(f"There is no run directory {run}; train one with: sfumato train --run {run}")
    if (run / "model_index.json").is_file() or _of_diffusers(path):
        raise InputError(
            f"{run} holds a model of diffusers; make a run of it with: sfumato import {run} --run runs/{run.name}"
        )
    if not path.is_file():
        pickles = [p.name for p in run.iterdir() if p.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl")]
        held = f" It holds {pickles[0]}, a pickle, which is never loaded." if pickles else ""
        raise InputError(f"{run} is not a run of Sfumato: it has no config.json.{held}")
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}).") from None
    if not isinstance(value, dict) or "format" not in value:
        raise InputError(f"{path} was not written by Sfumato: it states no format.")
    if value["format"] != FORMAT:
        raise InputError(
            f"{run} has format {value['format']}, written by sfumato {value.get('sfumato', '?')}; this is sfumato "
            f"{sfumato.__version__}, which reads format {FORMAT}. Install the version that wrote it."
        )
    origin = str(path)
    return parse(Config, value.get("config", {}), origin=origin), parse(Facts, value.get("data", {}), origin=origin)


def _of_diffusers(path: Path) -> bool:
    """Whether a file is the configuration of a network of diffusers."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and "_class_name" in value
