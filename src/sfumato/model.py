"""A trained model: what a run directory holds, ready to sample."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

import sfumato
from sfumato import random
from sfumato.config import Component, Config, SamplingConfig, parse
from sfumato.errors import InputError, SfumatoWarning
from sfumato.sampling.fitted import Fitted
from sfumato.sampling.sample import initial, sample, seeded_noise
from sfumato.training.checkpoint import Checkpoints, read_tensors, write_json, write_tensors

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


class Model:
    """A denoiser with its configuration.

    Attributes:
        denoiser: the denoiser, with averaged weights when it was loaded from a run.
        config: the configuration of the run.
        facts: what it knows of its data.
        step: the optimizer steps it was trained for.
        run: its run directory, if it has one.
        fitted: what was fitted to its weights after the training (:func:`sfumato.tune`).
    """

    def __init__(self, config: Config, facts: Facts, *, run: Path | None = None, step: int = 0) -> None:
        self.config, self.facts, self.run, self.step = config, facts, run, step
        self.denoiser = config.model.build(facts.shape, len(facts.classes), facts.std)
        self.fitted = Fitted()

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def to(self, device: str | torch.device) -> Model:
        """Move the weights to a device."""
        self.denoiser.to(device)
        return self

    def sample(
        self,
        count: int = 1,
        *,
        seed: int = 0,
        first: int = 0,
        labels: Int[Tensor, "count"] | int | str | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "count channels *space"]:
        """Draw images ``first ... first + count - 1`` of a seed.

        An image is the same, to rounding, whatever the batch size and whatever else is drawn.

        Args:
            count: how many images.
            seed: which images.
            first: the number of the first image.
            labels: for a model with labels, a class (its number or its name) or one number per image; by default the
                classes that ``sampling.classes`` asks for.
            sampling: the sampler, its grid and number of steps; by default those of the configuration.
            batch_size: images computed at once.
            progress: called after each batch with the number of images done.

        Returns:
            float32 images in [-1, 1], on the processor.

        Raises:
            InputError: if a number is not positive, or a label is unknown or given to a model without labels.
        """
        sampling = sampling or self.config.sampling
        size = sampling.batch_size if batch_size is None else batch_size
        if count < 1 or size < 1 or first < 0:
            raise InputError(
                f"Sampling needs at least 1 image, a batch of at least 1 and a first image from 0 on; "
                f"got {count}, {size} and {first}."
            )
        given = self._labels(labels, sampling.classes, seed, first, count)
        denoise, levels, step = sampling.build(self.denoiser, self.fitted)
        was_training = self.denoiser.training
        self.denoiser.eval()
        done: list[Tensor] = []
        for start in range(0, count, size):
            number = min(size, count - start)
            x = initial(levels, self.facts.shape, seed, first=first + start, count=number).to(self.device)
            noise, cond = seeded_noise(seed, first + start), dict[str, Any]()
            if given is not None:
                cond["label"] = given[start : start + number].to(self.device)
            for frame in sample(denoise, x, levels, step, noise=noise, reuse=True, **cond):
                x = frame.x
            done.append(x.clamp(-1.0, 1.0).float().cpu())
            if progress is not None:
                progress(start + number)
        self.denoiser.train(was_training)
        return torch.cat(done)

    def _labels(
        self, labels: Int[Tensor, "count"] | int | str | None, law: str, seed: int, first: int, count: int
    ) -> Int[Tensor, "count"] | None:
        classes = self.facts.classes
        if not classes:
            if labels is not None:
                raise InputError("This model was trained without labels, so it can't be asked for a class.")
            return None
        if labels is None and law == "uniform":
            return torch.arange(first, first + count) % len(classes)
        if labels is None:
            # evenly spread quantiles, shifted by the seed: class frequencies hold in any run of images
            shift = float(random.uniform(seed, "label", 0, 1))
            golden = (math.sqrt(5.0) - 1.0) / 2.0
            quantile = (shift + golden * torch.arange(first, first + count, dtype=torch.float64)) % 1.0
            edges = torch.tensor(self.facts.frequencies, dtype=torch.float64).cumsum(0)
            return torch.searchsorted(edges, quantile, right=True).clamp(max=len(classes) - 1)
        if isinstance(labels, str) and labels in classes:
            labels = classes.index(labels)
        elif isinstance(labels, str):
            raise InputError(f"There is no class {labels!r}; the classes are {', '.join(classes)}.")
        chosen = torch.as_tensor(labels).long()
        chosen = chosen.expand(count) if chosen.ndim == 0 else chosen
        if len(chosen) != count or bool(((chosen < -1) | (chosen >= len(classes))).any()):
            raise InputError(f"Labels must be {count} numbers from 0 to {len(classes) - 1} (or -1 for none).")
        return chosen


def save(model: Model, run: Path, weights: dict[str, Tensor]) -> None:
    """Write ``model.safetensors``: the averaged weights of the model."""
    write_tensors(run / "model.safetensors", weights, {"format": FORMAT, "step": model.step})


def save_fitted(model: Model, run: Path) -> None:
    """Write ``fitted.json``: what was fitted to the weights of the model, with their step."""
    write_json(run / "fitted.json", {"format": FORMAT, "step": model.step, **model.fitted.to_dict()})


def _read_fitted(run: Path, step: int) -> Fitted:
    """What :func:`save_fitted` wrote, if it is of the weights of this step."""
    path = run / "fitted.json"
    if not path.is_file():
        return Fitted()
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        found, of = Fitted.from_dict(values), int(values["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} can't be read ({error}); delete it and fit again: sfumato tune {run}") from None
    return found if of == step else Fitted(stale=of)


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
    if not run.is_dir():
        raise InputError(f"There is no run directory {run}; train one with: sfumato train --run {run}")
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


def load(run: str | Path, device: str | torch.device = "cpu") -> Model:
    """The model of a run directory, with averaged weights, ready to sample.

    ::

        model = sfumato.load("runs/digits")
        images = model.sample(64, seed=0)

    Raises:
        InputError: if the directory is not a run of this version, or holds no whole checkpoint.
    """
    run = Path(run)
    config, facts = read_config(run)
    model = Model(config, facts, run=run)
    try:
        weights, meta = read_tensors(run / "model.safetensors")
    except InputError as error:
        found = Checkpoints(run / "checkpoints").latest()
        if found is None:
            raise InputError(f"{run} holds no trained model yet. {error}") from None
        tensors, meta = found
        weights = {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}
        if (run / "model.safetensors").exists():
            warnings.warn(f"{error} Using the checkpoint of step {meta['step']}.", SfumatoWarning, stacklevel=2)
    model.step = int(meta.get("step", 0))
    model.fitted = _read_fitted(run, model.step)
    _take(model, weights, run)
    return model.to(device)


def _take(model: Model, weights: dict[str, Tensor], run: Path) -> None:
    expected = dict(model.denoiser.named_parameters())
    odd = sorted(expected.keys() ^ weights.keys())
    odd += [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    if odd:
        raise InputError(f"The weights in {run} are of another model: {len(odd)} differ, the first is {odd[0]!r}.")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(weights[name])
