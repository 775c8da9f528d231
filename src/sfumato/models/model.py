"""A trained model: what a run directory holds, ready to sample."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.conditioning.encoders import check_conditions
from sfumato.conditioning.labels import drawn_labels, given_labels
from sfumato.config import Component, Config, SamplingConfig
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import read_tensors, write_json, write_tensors
from sfumato.models.inference import prepared
from sfumato.models.storage import FORMAT, Facts, read_config
from sfumato.sampling.fitted import Fitted
from sfumato.sampling.sample import Frame, Noise, Step, check_grid, initial, seeded_noise, walk
from sfumato.training.checkpoint import Checkpoints

LAST = 2**40
"""How many images a seed has: counters of the random numbers of each are whole numbers of 64 bits."""


@dataclass(frozen=True, eq=False)
class Draw:
    """A batch of images before it is drawn: all that the loop needs, for editing to change what it likes.

    Attributes:
        denoise: the denoiser as it is sampled from.
        x: the start, pure noise at the first level.
        levels: the levels to walk.
        step: what is done between two levels.
        noise: the source of noise of these images.
        cond: their conditions.
        start: the place of the first of them among all that are drawn, from 0.
    """

    denoise: Denoise
    x: Float[Tensor, "batch channels *space"]
    levels: Level
    step: Step
    noise: Noise
    cond: dict[str, Tensor]
    start: int

    def __len__(self) -> int:
        return len(self.x)

    def frames(self, *, previews: bool = False, reuse: bool = False) -> Iterator[Frame]:
        """Walk the levels."""
        noise, cond = self.noise, self.cond
        yield from walk(
            self.denoise, self.x, self.levels, self.step, noise=noise, previews=previews, reuse=reuse, **cond
        )

    def images(self) -> Float[Tensor, "batch channels *space"]:
        """Walk to the end: float32 images in [-1, 1], on the processor."""
        x = self.x
        for frame in self.frames(reuse=True):
            x = frame.x
        return x.clamp(-1.0, 1.0).float().cpu()


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
        # a network that runs in an engine has no parameters here
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

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
        cond: Mapping[str, Tensor] | None = None,
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
            cond: other conditions of the network by name, such as ``tokens``, their ``mask`` and ``channels``: tensors
                with a row per image.
            sampling: the sampler, its grid and number of steps; by default those of the configuration.
            batch_size: images computed at once.
            progress: called after each batch with the number of images done.

        Returns:
            float32 images in [-1, 1], on the processor.

        Raises:
            InputError: if a number is not positive, a label is unknown or given to a model without labels, or a
                condition has not a row per image.
        """
        done: list[Tensor] = []
        options: dict[str, Any] = {"labels": labels, "cond": cond, "sampling": sampling, "batch_size": batch_size}
        draws = self.draws(count, seed=seed, first=first, **options)
        for draw in draws:
            done.append(draw.images())
            if progress is not None:
                progress(draw.start + len(draw))
        return torch.cat(done)

    def frames(
        self,
        count: int = 1,
        *,
        seed: int = 0,
        first: int = 0,
        labels: Int[Tensor, "count"] | int | str | None = None,
        cond: Mapping[str, Tensor] | None = None,
        sampling: SamplingConfig | None = None,
    ) -> Iterator[Frame]:
        """The way of the images that :meth:`sample` draws: the noise, then a frame per step with its estimate of them.

        All are computed at once. Arguments are those of :meth:`sample`.

        ::

            for frame in model.frames(16, seed=0):
                print(frame.level.sigma, frame.x.shape, frame.x0)

        Raises:
            InputError: as :meth:`sample` does.
        """
        options: dict[str, Any] = {"labels": labels, "cond": cond, "sampling": sampling, "batch_size": count}
        for draw in self.draws(count, seed=seed, first=first, **options):
            yield Frame(draw.x, next(iter(draw.levels)))
            yield from draw.frames(previews=True)

    def draws(
        self,
        count: int,
        *,
        seed: int = 0,
        first: int = 0,
        labels: Int[Tensor, "count"] | int | str | None = None,
        cond: Mapping[str, Tensor] | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Draw]:
        """The batches that :meth:`sample` walks, one after the other; the network is in evaluation mode meanwhile.

        Arguments are those of :meth:`sample`.

        Raises:
            InputError: as :meth:`sample` does.
        """
        sampling = sampling or self.config.sampling
        size = sampling.batch_size if batch_size is None else batch_size
        if first >= LAST - count:
            raise InputError(f"A seed has 2^40 images, so the first of {count} can't be number {first}.")
        if count < 1 or size < 1 or first < 0:
            raise InputError(
                f"Sampling needs at least 1 image, a batch of at least 1 and a first image from 0 on; "
                f"got {count}, {size} and {first}."
            )
        told = dict(cond or {})
        check_conditions(told, self.denoiser.network, count)
        given = self.classes_of(labels, sampling.classes, seed, first, count)
        denoise, levels, step = self.sampler(sampling)
        if sampling.guidance.by_label and given is not None and bool((given == -1).any()):
            raise InputError("A guidance scale needs a condition to guide by, but the label is -1, none; give a class.")
        if given is not None:
            told["label"] = given
        check_grid(levels)
        was_training = self.denoiser.training
        self.denoiser.eval()
        try:
            for start in range(0, count, size):
                number = min(size, count - start)
                x = initial(levels, self.facts.shape, seed, first=first + start, count=number).to(self.device)
                part = {name: rows[start : start + number].to(self.device) for name, rows in told.items()}
                yield Draw(denoise, x, levels, step, seeded_noise(seed, first + start), part, start)
        finally:
            self.denoiser.train(was_training)

    def sampler(self, sampling: SamplingConfig | None = None) -> tuple[Denoise, Level, Step]:
        """The denoiser as it is sampled from, with its guidance, the grid and the step.

        Args:
            sampling: what to build; by default as the configuration says.

        Raises:
            InputError: if they do not fit this model, or the model can't be guided so.
        """
        sampling = sampling or self.config.sampling
        guidance = sampling.guidance
        guidance.require(len(self.facts.classes), self.config.objective.label_dropout)
        weak = None if guidance.weak_run is None else self._weaker(guidance.weak_run, sampling)
        denoiser = prepared(self.denoiser, self.facts.shape, sampling)
        return sampling.tuned(self.fitted).build(denoiser, self.fitted, weak)

    def _weaker(self, run: Path, sampling: SamplingConfig) -> Denoise:
        """The denoiser of a weaker run of the same task, for autoguidance."""
        other = load(run, self.device)
        mine, its = self.facts, other.facts
        if its.shape != mine.shape or its.classes != mine.classes:
            raise InputError(
                f"The weaker run {run} draws {'x'.join(map(str, its.shape))} with {len(its.classes)} classes, and this "
                f"model {'x'.join(map(str, mine.shape))} with {len(mine.classes)}; autoguidance needs one task."
            )
        if other.config.model.schedule != self.config.model.schedule or self.config.model.schedule.kind == "learned":
            raise InputError(f"The weaker run {run} has another noise schedule; autoguidance needs the same.")
        other.denoiser.eval()
        return prepared(other.denoiser, its.shape, sampling)

    def classes_of(
        self, labels: Int[Tensor, "count"] | int | str | None, law: str, seed: int, first: int, count: int
    ) -> Int[Tensor, "count"] | None:
        """The number of the class of each image, given or drawn by the law "uniform" or "frequency"; None without.

        Raises:
            InputError: if a label is unknown or given to a model without labels.
        """
        facts = self.facts
        if labels is None:
            known = len(facts.classes)
            return drawn_labels(law, known, facts.frequencies, seed, first, count) if known else None
        return given_labels(labels, facts.classes, count)


def save(model: Model, run: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``model.safetensors``: the averaged weights of the model, and the buffers that are stored with them."""
    tensors = {**model.denoiser.state_dict(), **weights}
    write_tensors(run / "model.safetensors", tensors, {"format": FORMAT, "step": model.step})


def save_fitted(model: Model, run: Path) -> None:
    """Write ``fitted.json``: what was fitted to the weights of the model, with their step and fingerprint."""
    of = {"step": model.step, "weights": _fingerprint(model)}
    write_json(run / "fitted.json", {"format": FORMAT, **of, **model.fitted.to_dict()})


def _told(config: Component) -> dict[str, Any]:
    """The settings that differ from their defaults: a setting that a later version adds changes nothing of it."""
    told: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name == "kind" or value != field.default:
            told[name] = _told(value) if isinstance(value, Component) else value
    return told


def _fingerprint(model: Model) -> str:
    """A number of the weights and of what they mean, to tell them from those of another model."""
    found = hashlib.sha256(json.dumps(_told(model.config.model), default=str).encode())
    for parameter in model.denoiser.parameters():
        found.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _read_fitted(model: Model, run: Path) -> Fitted:
    """What :func:`save_fitted` wrote, if it is of these weights."""
    path = run / "fitted.json"
    if not path.is_file():
        return Fitted()
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        found, of = Fitted.from_dict(values), int(values["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} can't be read ({error}); delete it and fit again: sfumato tune {run}") from None
    same = of == model.step and values.get("weights") in (None, _fingerprint(model))
    return found if same else Fitted(stale=of)


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
    if config.training.channels_last:
        model.denoiser.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
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
    _take(model, weights, run)
    model.fitted = _read_fitted(model, run)
    return model.to(device)


def _take(model: Model, weights: dict[str, Tensor], run: Path) -> None:
    expected: dict[str, Tensor] = model.denoiser.state_dict()
    learned = {name for name, _ in model.denoiser.named_parameters()}
    # a buffer that is missing, as in older runs and in checkpoints, is what the configuration says
    odd = sorted((learned - weights.keys()) | (weights.keys() - expected.keys()))
    odd += [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    if odd:
        raise InputError(f"The weights in {run} are of another model: {len(odd)} differ, the first is {odd[0]!r}.")
    with torch.no_grad():
        for name, value in weights.items():
            expected[name].copy_(value)
