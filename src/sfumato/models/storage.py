"""What describes a stored model: ``config.json``, with the configuration and what the model must know of its data.

A system of several models has a ``system.json`` in its place, and each of them, a stage, is a run in ``stages``.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

import sfumato
from sfumato.config import Component, Config, merge, parse
from sfumato.config.component import Conditions
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
"""The version of the layout of a run directory."""


class Info(Component):
    """What a model must know of the data it was trained on."""

    shape: tuple[int, ...] = Field(description="(C, *space) of one image.")
    std: float = Field(default=1.0, gt=0, description="Standard deviation of what is modelled.")
    train: int = Field(default=0, description="Number of training images.")
    heldout: int = Field(default=0, description="Number of held-out images.")
    conditions: Conditions = Field(default={}, description="The conditions, with what they know of the data.")
    classes: tuple[str, ...] = Field(default=(), description="The names of the classes that a classifier tells apart.")
    shift: tuple[float, ...] = Field(default=(), description="What was subtracted from the numbers of a vector.")
    scale: tuple[float, ...] = Field(default=(), description="What they were divided by then.")
    identity: str = Field(default="", description="What tells the model whose embeddings are modelled from others.")

    def standardized(self, vectors: Tensor) -> Tensor:
        """Vectors in the units of the data as the model has them; other data are as they are."""
        if not self.scale:
            return vectors
        return (vectors - vectors.new_tensor(self.shift)) / vectors.new_tensor(self.scale)

    def in_units(self, vectors: Tensor) -> Tensor:
        """Vectors of the model in the units of the data; other data are as they are."""
        return vectors * vectors.new_tensor(self.scale) + vectors.new_tensor(self.shift) if self.scale else vectors


def write_config(run: Path, config: Config, info: Info) -> None:
    """Write ``config.json``."""
    value = {
        "format": FORMAT,
        "sfumato": sfumato.__version__,
        "data": info.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
    }
    write_json(run / "config.json", value)


class System(Component):
    """What ``system.json`` says."""

    format: Literal[1] = Field(default=1, description="The version of the layout of a system.")
    system: Literal["cascade", "imagen", "unclip"] = Field(
        default="cascade", description="What its stages are together."
    )
    stages: tuple[str, ...] = Field(description="The names of its stages, in the order of sampling.")
    before: tuple[str, ...] = Field(
        default=(), description="The names of what is trained first, which the stages need for their training."
    )
    settings: dict[str, Any] = Field(default={}, description="How each stage is trained that is no run yet.")

    @property
    def trained(self) -> tuple[str, ...]:
        """All that is trained, in this order."""
        return (*self.before, *self.stages)

    @field_validator("stages")
    @classmethod
    def _named(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(stages)) < max(2, len(stages)) or not all(re.fullmatch(r"[a-z]\w*", name) for name in stages):
            raise ValueError(f"stages are at least two different names, such as base and up; got {', '.join(stages)}")
        return stages


def is_system(folder: str | Path) -> bool:
    """Whether a folder is a system of stages."""
    return (Path(folder) / "system.json").is_file()


def stage_of(folder: str | Path, name: str) -> Path:
    """The run directory of a stage of a system."""
    return Path(folder) / "stages" / name


def read_system(folder: str | Path) -> System:
    """What :func:`write_system` wrote."""
    path = Path(folder) / "system.json"
    return parse(System, read_json(path), origin=str(path), trust=True)


def trained_stage(folder: str | Path, name: str) -> Path:
    """The run directory of a stage of a system, if it is there."""
    path = stage_of(folder, name)
    if not (path / "config.json").is_file():
        raise InputError(
            f"The stage {name!r} of {folder} is not trained yet; train it with: sfumato train --resume {folder} "
            f"--stage {name}"
        )
    return path


def write_system(folder: Path, system: System) -> None:
    """Write ``system.json``."""
    write_json(folder / "system.json", system.model_dump(mode="json"))


def read_config(run: str | Path, *, trust: bool = False, network: bool = False) -> tuple[Config, Info]:
    """What :func:`write_config` wrote.

    Args:
        run: a run directory.
        trust: whether the configuration may name code of other packages, such as an own network.
        network: whether the caller has the network, so that what the configuration says of it is not read.
    """
    run = Path(run)
    path = run / "config.json"
    if run.is_file():
        raise InputError(
            f"{run} is a file, not a run directory; weights of other programs become one with: sfumato import {run}"
        )
    if not run.is_dir():
        raise InputError(f"There is no run directory {run}; train one with: sfumato train --run {run}")
    value = _read(path)
    if (run / "model_index.json").is_file() or (isinstance(value, dict) and "_class_name" in value):
        raise InputError(
            f"{run} holds a model of diffusers; make a run of it with: sfumato import {run} --run runs/{run.name}"
        )
    if is_system(run):
        stages = read_system(run).stages
        raise InputError(
            f"{run} is a system of the stages {' and '.join(stages)}, and this takes one of them: "
            f"{stage_of(run, stages[-1])}."
        )
    if not path.is_file():
        pickles = [p.name for p in run.iterdir() if p.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl")]
        held = f" It holds {pickles[0]}, a pickle, which is never loaded." if pickles else ""
        raise InputError(f"{run} is not a run of Sfumato: it has no config.json.{held}")
    if not isinstance(value, dict) or "format" not in value:
        raise InputError(f"{path} can't be read as a configuration of Sfumato ({value}).")
    if value["format"] != FORMAT:
        raise InputError(
            f"{run} has format {value['format']}, written by sfumato {value.get('sfumato', '?')}; this is sfumato "
            f"{sfumato.__version__}, which reads format {FORMAT}. Install the version that wrote it."
        )
    settings: Any = value.get("config", {})
    if network:
        settings = merge(settings, {"model": {"network": {"kind": "given"}}})
    config = parse(Config, settings, origin=str(path), trust=trust)
    embedder = config.data.embedder
    if embedder is not None and run.absolute().parent.name == "stages" and (run.parent / embedder.name).is_dir():
        # that of the same system, which may be a copy, or have been moved
        config = config.override({"data.embedder": str((run.parent / embedder.name).absolute())})
    return config, parse(Info, value.get("data", {}), origin=str(path), trust=trust)


def write_record(path: Path, value: dict[str, Any], counted: str, *, overwrite: bool = False) -> None:
    """Write a measurement into its run; one of the same weights that rests on more images is kept.

    Args:
        path: the file of the run.
        value: what was measured, with its ``step``.
        counted: the key of the number of images.
        overwrite: replace any.
    """
    old = _read(path) if path.is_file() and not overwrite else None
    count = value[counted]
    known: dict[str, Any] = old if isinstance(old, dict) and old.get("step") == value["step"] else {}
    if isinstance(many := known.get(counted), int) and many > count:
        sentence = f"{path} rests on {many} {counted} and is kept; these are {count}. Replace it with --overwrite."
        warnings.warn(sentence, SfumatoWarning, stacklevel=3)
        return
    write_json(path, value)


def _read(path: Path) -> Any:
    """The value of a JSON file, or what is wrong with it in words."""
    try:
        return read_json(path)
    except InputError as error:
        return str(error)
