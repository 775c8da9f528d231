"""Recipes: whole configurations as nested dictionaries, which :func:`sfumato.config.parse` takes.

Each is a file here, of the settings that differ from the defaults; or a published model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.errors import InputError, nearest
from sfumato.recipes.published import TRAINED, preset

Recipe = dict[str, Any]


def _read(name: str) -> Recipe:
    return tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))


_FILES = ("digits", "small", "cifar", "classify", "contrast", "prior", "upscale", "text", "images", "ddpm", "vectors")
digits, small, cifar, classify, contrast, prior, upscale, text, images, ddpm, vectors = (
    partial(_read, name) for name in _FILES
)

RECIPES: dict[str, Callable[[], Recipe]] = {
    **{name: partial(_read, name) for name in _FILES},
    **{name: partial(preset, name) for name in TRAINED},
}
"""Whole configurations by name, including those of published models."""


TASKS = ("generate", "classify", "upscale", "text", "contrast")
"""What a training can be for; each but generate has a recipe of its name."""

_OBJECTIVES = {"classification": "classify", "contrastive": "contrast"}


def named(
    recipe: str | None,
    source: str | None,
    layout: str | None = None,
    *,
    gpu: bool = True,
    task: str = "generate",
) -> Recipe:
    """The recipe of that name, or the one that suits the task, the data and the machine, for that source of data.

    Args:
        recipe: its name.
        source: a name or path of data.
        layout: the layout of their array; NC are vectors.
        gpu: whether there is a GPU; without one, images have the recipe ``small``.
        task: what the training is for, one of :data:`TASKS`.
    """
    if task not in TASKS:
        raise InputError(f"There is no task {task!r}{nearest(task, TASKS)}")
    suits = "vectors" if layout == "NC" else "digits" if source in (None, "digits") else "images" if gpu else "small"
    name = recipe or (suits if task == "generate" else task)
    if name not in RECIPES:
        raise InputError(f"There is no recipe {name!r}{nearest(name, RECIPES)}")
    values = RECIPES[name]()
    if task not in ("generate", _task(values)):
        raise InputError(f"The recipe {name} is not of the task {task}; leave the recipe or the task out.")
    if source is not None and ".np" in Path(source.partition(":")[0]).suffix:
        # the images of an array have one size, and are not cut
        values.get("data", {}).pop("tile", None)
    if name == "classify" and suits == "digits":
        # the images that the recipe digits holds out
        values["data"] = digits()["data"]
    if name == "contrast" and source is not None and source.partition(":")[0] != "shapes":
        # the words that change places are those of shapes
        del values["objective"]["swaps"]
    return values if source is None else values | {"data": values.get("data", {}) | {"source": source}}


def _task(values: Recipe) -> str:
    """What a training by a recipe is for."""
    objective = values.get("objective", {}).get("kind")
    if objective in _OBJECTIVES:
        return _OBJECTIVES[objective]
    kinds = [condition["kind"] for condition in values.get("conditions", {}).values()]
    return "upscale" if "low_resolution" in kinds else "text" if "text" in kinds else "generate"
