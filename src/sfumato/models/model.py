"""A denoiser with what sampling from it needs: what a run directory holds, or what a person wraps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.conditioning.base import Condition, given_tensors, keyed, null_parts, without_null
from sfumato.conditioning.contrast import Contrast
from sfumato.conditioning.low_resolution import augmented
from sfumato.conditioning.network import Conditioned
from sfumato.config import Config, GuidanceConfig, SamplingConfig
from sfumato.diffusion.classifier import NoisyClassifier
from sfumato.diffusion.denoiser import Denoise, Denoiser
from sfumato.diffusion.level import Level
from sfumato.errors import InputError, check_arguments, nearest, require_device, require_memory
from sfumato.io.progress import Progress
from sfumato.models.batch import SamplingBatch, collected, cut, repeated, repeating
from sfumato.models.generate import TextToImage
from sfumato.models.guides import Guided
from sfumato.models.inference import prepared
from sfumato.models.options import sampling_options
from sfumato.models.storage import Info
from sfumato.models.weights import build_module, fingerprint, read_fitted, read_module
from sfumato.networks.slots import slots_of
from sfumato.random import Draws
from sfumato.sampling.fitted_solver import Fitted
from sfumato.sampling.sample import Frame, Step, check_grid, initial, seeded_noise

MOST_IMAGES = 2**40
"""Images of a seed: the counters of the random numbers of each are whole numbers of 64 bits."""


class Model(TextToImage):
    """A denoiser, with the shape of its data, its conditions and how it is sampled from.

    Args:
        denoiser: a :class:`~sfumato.Denoiser`, an oracle, or anything that is called like one and has a ``schedule``.
        info: what it must know of its data, or only the shape ``(C, *space)`` of an image.
        config: settings, of which those of sampling are its defaults; by default those of a fresh configuration.
        conditions: its conditions by name; by default those of ``info``.
        run: its run directory, if it has one.
        step: the optimizer steps it was trained for.

    Attributes:
        fitted: what was fitted to its weights after the training (:func:`sfumato.tune`).
        trust: whether runs that it refers to, such as a weaker one, may import code of other packages.
        data: the training and the held-out data, if they were given in Python.
        stages: the models that it consists of, by name, if it is a :class:`~sfumato.models.cascade.Cascade`.
        supplied: the conditions that one of them makes for another, so that nobody needs to give them.
        chooses: whether it can tell which of several samples is the best (``sampling.candidates``).
    """

    stages: Mapping[str, Model] = {}
    supplied: Collection[str] = ()
    chooses = False

    def __init__(
        self,
        denoiser: Denoise,
        info: Info | Sequence[int],
        *,
        config: Config | None = None,
        conditions: Mapping[str, Condition] | None = None,
        run: Path | None = None,
        step: int = 0,
    ) -> None:
        if not callable(denoiser) or not (hasattr(denoiser, "schedule") or isinstance(denoiser, Contrast)):
            raise InputError(
                f"A model needs a denoiser, and a {type(denoiser).__name__} is none; make one of a network: "
                "sfumato.Denoiser(network, schedule, parameterization)."
            )
        if not isinstance(info, Info):
            info = Info(shape=tuple(info), std=getattr(denoiser, "data_std", 1.0))
        self.denoiser: Any = denoiser
        self.info, self.config = info, config or Config()
        self.configured = config is not None
        if conditions is None:
            conditions = {name: condition.build() for name, condition in info.conditions.items()}
        self.conditions: dict[str, Condition] = dict(conditions)
        self.run, self.step = run, step
        self.fitted = Fitted()
        self.trust = False
        self.data: tuple[Any, Any] | None = None

    @classmethod
    def build(cls, config: Config, info: Info, *, network: nn.Module | None = None, run: Path | None = None) -> Model:
        """A model with fresh weights, as the configuration says, or around a ``network`` of the caller's."""
        return cls(build_module(config, info, network), info, config=config, run=run)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.info.shape))
        network = getattr(self.denoiser, "network", self.denoiser)
        network = network.network if isinstance(network, Conditioned) else network
        count = sum(p.numel() for p in self.module.parameters())
        conditions = f", conditions {', '.join(self.conditions)}" if self.conditions else ""
        where = f", {self.run} at step {self.step}" if self.run is not None else ""
        return f"Model({type(network).__name__} of {count:,} parameters for {shape}{conditions}{where})"

    @property
    def module(self) -> nn.Module:
        """The denoiser as a module; an empty one where it is none."""
        return self.denoiser if isinstance(self.denoiser, nn.Module) else nn.Module()

    @property
    def classifier(self) -> NoisyClassifier | None:
        """The classifier of noisy data that a run of ``train --task classify`` holds; None of a model that samples."""
        return self.denoiser if isinstance(self.denoiser, NoisyClassifier) else None

    @property
    def contrast(self) -> Contrast | None:
        """The embeddings of images and captions that a run of ``train --task contrast`` holds; None of other models."""
        return self.denoiser if isinstance(self.denoiser, Contrast) else None

    @property
    def samples(self) -> bool:
        """Whether it is sampled from, as a denoiser is."""
        return self.classifier is None and self.contrast is None

    def require_denoiser(self) -> None:
        """Refuse what a classifier of noisy data, or a model of embeddings, can't do."""
        if not self.samples:
            run = self.run or "RUN"
            what, use = "is a classifier of noisy data, which", f"sample MODEL --guidance.classifier {run}"
            if self.contrast is not None:
                what, use = "compares images with what describes them, and", f"evaluate {run}"
            raise InputError(f"{run} {what} samples nothing and has no likelihood; use it with: sfumato {use}")

    @property
    def fingerprint(self) -> str:
        """A hash of its weights and of what they mean."""
        return fingerprint(self.config.model, self.module)

    @property
    def device(self) -> torch.device:
        # an oracle, or a network that runs in an inference engine, has no parameters here
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Model:
        """Move the weights to a device."""
        self.module.to(device)
        return self

    def sample(
        self,
        count: int = 1,
        *,
        seed: int = 0,
        first: int = 0,
        steps: int | None = None,
        solver: str | Mapping[str, Any] | Step | None = None,
        grid: str | Mapping[str, Any] | Level | None = None,
        guidance: float | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        progress: Progress = None,
        **cond: Any,
    ) -> Float[Tensor, "count channels *space"]:
        """Sample images ``first ... first + count - 1`` of a seed.

        An image is the same, to rounding, for any batch size. What is not named comes from the run.

        ::

            images = model.sample(16, seed=0, steps=10, solver="dpm++2m", guidance=2.0, label="7")

        Args:
            count: number of images.
            seed: the seed of their noise.
            first: the index of the first image of the seed.
            steps: sampling steps.
            solver: a kind of sampler such as ``"unipc"``, a usual name such as ``"dpm++2m"``, its settings with their
                ``kind``, or a function that is one :class:`~sfumato.sampling.sample.Step`.
            grid: a kind of grid, its settings with their ``kind``, or the levels themselves.
            guidance: the guidance scale, or settings of guidance.
            sampling: all settings of sampling, in place of those of the run.
            batch_size: images computed at once.
            progress: False for no progress bar, or a function that is called with the number of images done; by
                default a bar is shown in terminals and notebooks.
            cond: conditions by name: ``label="7"``, or a tensor with a row per image. One that is not given is as the
                condition says: for labels, all classes as often as in the data.

        Returns:
            float32 images in [-1, 1], on the CPU.
        """
        check_arguments(Model.sample, locals())
        changes = {"steps": steps, "solver": solver, "grid": grid, "guidance": guidance, "sampling": sampling}
        batches = self.batches(count, seed=seed, first=first, batch_size=batch_size, **changes, **cond)
        return collected(batches, lambda batch: batch, count, progress)

    def frames(self, count: int = 1, **options: Any) -> Iterator[Frame]:
        """The trajectory of the images that :meth:`sample` gives: the noise, then a frame per step with its estimate.

        All are computed at once; the options are those of :meth:`sample`.

        ::

            for frame in model.frames(16, seed=0):
                print(frame.level.sigma, frame.x.shape, frame.x0)
        """
        check_arguments(Model.frames, locals())
        options.setdefault("batch_size", count)
        for batch in self.batches(count, **options):
            yield Frame(batch.x, batch.levels[0])
            yield from batch.frames(previews=True)

    def batches(
        self,
        count: int,
        *,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        period: int | None = None,
        stepwise: bool = False,
        **options: Any,
    ) -> Iterator[SamplingBatch]:
        """The batches that :meth:`sample` walks, one after the other; the network is in evaluation mode meanwhile.

        Args:
            count, seed, first, batch_size: as for :meth:`sample`.
            period: image ``k`` has the index ``first + k % period``, whose noise it shares with others; by default
                ``first + k``. It divides the count.
            stepwise: for edits, which do not walk a grid once from end to end.
            options: the others of :meth:`sample`.
        """
        self.require_denoiser()
        sampling, solver, grid, cond = self.settings(options)
        sampling = sampling.stepwise(self.fitted) if stepwise else sampling
        size = sampling.batch_size if batch_size is None else batch_size
        if sampling.candidates > 1 and not self.chooses:
            raise InputError("sampling.candidates is of a prior that has its contrastive model; leave it out.")
        if count < 1 or size < 1 or first < 0 or first >= MOST_IMAGES - count:
            raise InputError(
                f"Sampling needs at least 1 image, a batch of at least 1 and a first image from 0 to 2^40; "
                f"got {count}, {size} and {first}."
            )
        require_memory(count * math.prod(self.info.shape), f"{count} images", "the number of images")
        tensors = self.given(cond, seed, first, count, input_noise=sampling.input_noise, guidance=sampling.guidance)
        if isinstance(grid, Level):
            check_grid(grid)
        denoise, levels, step = self.sampler(sampling, grid, solver)
        check_grid(levels)
        if sampling.guidance.by_condition and all(bool(without_null(rows)[1].all()) for rows in tensors.values()):
            raise InputError("A guidance scale needs a condition to guide by, but none was given.")
        training = self.module.training
        self.module.eval()
        try:
            for start, number in cut(count, size, period or count):
                at, n = first + start % (period or count), min(number, period or count)
                part = {name: rows[start : start + number].to(self.device) for name, rows in tensors.items()}
                part = self.completed(part, number, seed, at, options, n)
                temperature = sampling.temperature
                x = initial(levels, self.info.shape, seed, first=at, count=n, temperature=temperature)
                x = repeated(x, number // n).to(self.device)
                x = self.denoiser.start(x, levels[0], **part) if isinstance(self.denoiser, Denoiser) else x
                noise = repeating(seeded_noise(seed, at, temperature), number // n)
                yield SamplingBatch(denoise, x, levels, step, noise, part, start)
        finally:
            self.module.train(training)

    def completed(
        self, cond: dict[str, Tensor], count: int, seed: int, first: int, options: Mapping[str, Any], period: int
    ) -> dict[str, Tensor]:
        """The conditions of a batch with those that are :attr:`supplied`."""
        return cond

    def settings(self, options: Mapping[str, Any]) -> tuple[SamplingConfig, Step | None, Level | None, dict[str, Any]]:
        """The sampling that options ask for, a solver and a grid that are objects, and the conditions among them."""
        return sampling_options(self.config.sampling, options)

    def asked(self, guidance: GuidanceConfig) -> dict[str, Condition]:
        """Its conditions, and the label of a classifier that guides it where it knows none."""
        if guidance.classifier is None:
            return self.conditions
        name, label = self._guided.label(guidance.classifier)
        return {**self.conditions, name: label}

    @property
    def _guided(self) -> Guided:
        return Guided(self.config, self.info, self.conditions, self.device, self.trust)

    def described(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The sampling that options ask for, ready for JSON."""
        return self.settings(options)[0].model_dump(mode="json")

    def given(
        self,
        cond: Mapping[str, Any],
        seed: int,
        first: int,
        count: int,
        *,
        defaults: bool = True,
        input_noise: float | None = None,
        guidance: GuidanceConfig | None = None,
    ) -> dict[str, Tensor]:
        """The tensors of conditions, a row per image: of those that are given, and the ``defaults`` of the others.

        They are the conditions of the model, and what its ``guidance`` asks for.
        """
        known = self.conditions if guidance is None else self.asked(guidance)
        network = getattr(self.denoiser, "network", None)
        if isinstance(network, Conditioned):
            raw: tuple[str, ...] = network.slots.names
        else:
            # anything that the caller's own denoiser takes after x and time
            own = () if network is None else tuple(inspect.signature(network.forward).parameters)[2:]
            raw = tuple(cond) if network is None else slots_of(network).names or own
        unknown = [name for name in cond if name not in (*known, *raw)]
        if unknown:
            names = [*known, *raw, *_OPTIONS]
            raise InputError(f"This model knows no condition or option {unknown[0]!r}{nearest(unknown[0], names)}")
        known = augmented(known, input_noise)
        chosen = {n: c for n, c in known.items() if n in cond or (defaults and n not in self.supplied)}
        return given_tensors(chosen, cond, count, seed=seed, first=first, raw=raw)

    def of_data(
        self, x0: Tensor, columns: Mapping[str, Tensor], draws: Draws, *, given: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """The tensors of the conditions of data that are not ``given``, none dropped; null where a column lacks."""
        tensors: dict[str, Tensor] = {}
        for name, condition in self.conditions.items():
            if name in given:
                continue
            here = all(column in columns for column in condition.columns)
            parts = (
                condition.evaluation(x0, columns, draws.within(name)) if here else null_parts(name, condition, len(x0))
            )
            tensors |= keyed(name, condition, parts)
        return {key: rows.to(self.device) for key, rows in tensors.items()}

    def sampler(
        self, sampling: SamplingConfig | None = None, grid: Level | None = None, solver: Step | None = None
    ) -> tuple[Denoise, Level, Step]:
        """The denoiser as it is sampled from, with its guidance, the grid and the solver, which may be given."""
        self.require_denoiser()
        sampling = sampling or self.config.sampling
        sampling.guidance.require(self.conditions)
        more: dict[str, Any] = {**self._guided.guides(sampling), "conditions": self.conditions}
        denoiser = prepared(self.denoiser, self.info.shape, sampling)
        if grid is None and solver is None:
            sampling = sampling.tuned(self.fitted)
        return sampling.build(denoiser, self.fitted, levels=grid, step=solver, **more)


_OPTIONS = (
    *("seed", "first", "steps", "solver", "grid", "guidance", "clip", "precision", "input_noise", "temperature"),
    *("batch_size", "progress"),
)


def as_model(model: Model | Denoise, shape: Sequence[int]) -> Model:
    """A model, made of a denoiser for data of ``shape`` where it is none."""
    return model if isinstance(model, Model) else Model(model, shape)


def generate(denoiser: Model | Denoise, shape: Sequence[int], **options: Any) -> Float[Tensor, "count channels *space"]:
    """Sample from any denoiser: ``generate(denoiser, (16, 1, 8, 8), steps=10, solver="heun", seed=0)``.

    Args:
        denoiser: a model, a denoiser or an oracle with a schedule.
        shape: ``(count, C, *space)``.
        options: those of :meth:`Model.sample`.
    """
    check_arguments(generate, locals())
    return as_model(denoiser, shape[1:]).sample(shape[0], **options)


def load(run: str | Path, device: str | torch.device = "cpu", *, trust: bool = False, network: Any = None) -> Model:
    """The model of a run directory, with averaged weights, ready to sample.

    ::

        model = sfumato.load("runs/digits")
        images = model.sample(64, seed=0)

    Args:
        run: the run directory.
        device: where the weights go.
        trust: whether Python code of other packages that the run names, such as an own network, may be imported.
        network: an own network for the weights, or what makes it, where the run could not name how it is made.
    """
    check_arguments(load, locals())
    require_device(device)
    run = Path(run)
    if network is not None and not isinstance(network, nn.Module):
        network = network()
    config, info, module, step = read_module(run, device, trust=trust, network=network)
    model = Model(module, info, config=config, run=run, step=step)
    model.trust = trust
    model.fitted = read_fitted(run, model.fingerprint, model.step)
    return model
