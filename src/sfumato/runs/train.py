"""Training into a directory: checkpoints, samples, metrics, evaluation; stopped and resumed bit for bit."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from sfumato import random
from sfumato.config import Config, merge, parse
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError
from sfumato.io.images import save_grid
from sfumato.models.calibrate import tune
from sfumato.models.evaluate import GIVEN, SPLIT_SEED, evaluate, training_data
from sfumato.models.model import Model
from sfumato.models.storage import Info, read_config, write_config
from sfumato.models.weights import settings_of, write_weights
from sfumato.networks.execution import compile_in_place
from sfumato.recipes import named
from sfumato.runs.directory import Interrupted, RunDirectory
from sfumato.runs.reporting import Reporter
from sfumato.training.loop import Record, Trainer
from sfumato.training.losses import Denoising
from sfumato.training.optimization import learning_rate_schedule
from sfumato.training.precision import prefers_channels_last, supports_bf16, tf32


def train(
    config: Config | Mapping[str, Any] | str | None = None,
    *,
    data: Any = None,
    heldout: Any = None,
    network: Any = None,
    run: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Model:
    """Train a model into a run directory; the same job as ``sfumato train``.

    The directory holds ``config.json``, ``model.safetensors`` (averaged weights), ``checkpoints/`` (what resuming
    needs), ``samples/*.png``, ``metrics.jsonl`` and, at the end, ``evaluation.json``.

    ::

        sfumato.train(data=images, network=MyNetwork(), run="runs/mine", training={"steps": 10_000})

    Args:
        config: a configuration, nested settings, or the name of a recipe; by default the recipe that suits the data.
            Leave it out to resume.
        data: anything that :meth:`sfumato.data.Dataset.of` takes: an array, a tensor, a torch data set; by default
            ``config.data`` says where they are.
        heldout: data that are not trained on, for the evaluation; by default a part of ``data``.
        network: a module that is called as ``network(x, time, **slots)``, or a ``functools.partial`` that makes it; by
            default ``config.model.network``.
        run: the run directory, by default ``runs/NAME`` with the name of the data.
        resume: continue from the newest whole checkpoint, bit for bit as if there had been no stop.
        overwrite: delete a run that is there.
        trust: whether Python code of other packages that the settings name may be imported.
        reporter: what shows progress; by default nothing does.
        changes: settings in place of those of the configuration, by group: ``training={"steps": 500}``.

    Returns:
        The model with averaged weights.

    Raises:
        Diverged: if the loss is not finite or explodes; the last checkpoint is whole.
        Interrupted: after SIGINT or SIGTERM, when the state is saved.
    """
    given = None if data is None else Dataset.of(data)
    stored: Config | None = None
    if resume:
        if run is None:
            raise InputError("Say which run to resume.")
        stored, _ = read_config(run, trust=trust or network is not None)
        config = stored if config is None else config
        if isinstance(config, Config) and config.training.channels_last is None:
            config = config.override({"training.channels_last": stored.training.channels_last})
    config = _resolved(config, given, network, changes, trust)
    if stored is not None:
        _check_same(stored, config)
    run = Path(run) if run is not None else Path("runs") / default_name(config.data.source)
    sets = None
    if given is not None:
        sets = (given, Dataset.of(heldout)) if heldout is not None else given.split(config.data.holdout, SPLIT_SEED)
    return _Run(config, run, reporter or Reporter(), network, sets).train(resume, overwrite)


def _resolved(
    config: Config | Mapping[str, Any] | str | None,
    data: Dataset | None,
    network: Any,
    changes: Mapping[str, Any],
    trust: bool,
) -> Config:
    """The configuration, with what the data and the network in Python say of themselves."""
    if not isinstance(config, Config):
        if config is None or isinstance(config, str):
            layout = "NC" if data is not None and len(data.shape) == 1 else None
            config = named(config, None if data is None else data.name, layout)
        config = parse(Config, config, trust=trust)
    over: dict[str, Any] = dict(changes)
    if data is not None:
        over = merge({"data": {"source": f"{GIVEN}{data.name}"}}, over)
    if network is not None:
        try:
            return config.override(merge(over, {"model": {"network": settings_of(network)}}))
        except InputError:
            over = merge(over, {"model": {"network": {"kind": "given"}}})
    return config.override(over) if over else config


def default_name(source: str) -> str:
    """The name of a run of this data."""
    return Path(source.removeprefix(GIVEN).removeprefix("hf:").partition(":")[0]).stem or "run"


def _check_same(stored: Config, wanted: Config) -> None:
    training = "steps checkpoint_every keep sample_every sample_count log_every tensorboard threads"
    free = {"data": {"workers", "cache"}, "training": set(training.split())}
    for group in ("data", "conditions", "model", "objective", "optimizer", "ema", "training"):
        old, new = stored.model_dump()[group], wanted.model_dump()[group]
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k) and k not in free.get(group, ())]
        if changed:
            raise InputError(f"{group}.{changed[0]} differs from that of the run; start another run, or leave it out.")


def describe(loader: Loader, heldout: int, config: Config) -> Info:
    """What a model must know of its data."""
    data = loader.dataset
    std = loader.std(min(len(data), 4096))
    if std == 0.0:
        raise InputError(f"All {len(data)} images of {data.name} are one constant; there is nothing to learn.")
    conditions = {
        name: {"kind": condition.kind, **dataclasses.asdict(condition.build().describe(data))}
        for name, condition in config.conditions.items()
    }
    values = {"shape": loader.shape, "std": std, "train": len(data), "heldout": heldout, "conditions": conditions}
    if data.units is not None:
        values |= {"shift": data.units.shift, "scale": data.units.scale}
    return parse(Info, values, trust=True)


def accelerator_without_settings() -> Accelerator:
    """Accelerate for this process, without what its own configuration may say of precision and accumulation."""
    once = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=once)


def make_trainer(model: Model, loader: Loader, accelerator: Accelerator | None = None, bf16: bool = False) -> Trainer:
    """The trainer of a model, as its configuration says.

    A memory layout that the configuration leaves open is decided here, and is part of the configuration then.

    Args:
        model: the model, with fresh weights.
        loader: the stream of its data.
        accelerator: device and processes; by default this process.
        bf16: whether the network computes in bfloat16.
    """
    accelerator = accelerator or accelerator_without_settings()
    denoiser = model.denoiser.to(accelerator.device)
    if model.config.training.channels_last is None:
        last = prefers_channels_last(denoiser.network, accelerator.device)
        model.config = model.config.override({"training.channels_last": last})
    config = model.config
    if config.training.channels_last and len(model.info.shape) == 3:
        denoiser.to(memory_format=torch.channels_last)
    if config.training.compile:
        compile_in_place(denoiser.network, dynamic=False)
    options, optimizer, objective = config.training, config.optimizer, config.objective
    context = {
        "schedule": denoiser.schedule,
        "parameterization": denoiser.parameterization,
        "data_std": model.info.std,
    }
    loss = Denoising(
        denoiser,
        objective.times.build(**context),
        objective.weight.build(**context),
        model.conditions,
        stratified=objective.stratified,
        bins=objective.bins,
    )
    return Trainer(
        loss,
        loader,
        optimizer=optimizer.method.build(module=denoiser),
        learning_rate=learning_rate_schedule(
            optimizer.learning_rate, options.steps, warmup=optimizer.warmup, decay=optimizer.decay
        ),
        ema=config.ema.build(),
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        clip=optimizer.clip,
        bf16=bf16,
        seed=options.seed,
        accelerator=accelerator,
    )


class _Run:
    """The training of one denoiser into one directory."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        reporter: Reporter,
        network: nn.Module | Callable[[], nn.Module] | None = None,
        data: tuple[Dataset, Dataset] | None = None,
    ) -> None:
        self.config, self.folder, self.reporter = config, folder, reporter
        self.network, self.data = network, data
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        self.accelerator = accelerator_without_settings()
        options = config.training
        self.directory = RunDirectory(folder, self.accelerator, keep=options.keep, tensorboard=options.tensorboard)
        self.main = self.directory.main
        if not self.main:
            self.reporter = Reporter()

    def train(self, resume: bool, overwrite: bool) -> Model:
        config = self.config
        loader, heldout = training_data(config, self.data)
        info = describe(loader, len(heldout), config)
        if resume:
            stored = read_config(self.folder, trust=True)[1]
            # the number that was measured at the start is part of the model, and a sum of floats may differ in its
            # last digits between machines and numbers of threads
            if abs(stored.std / info.std - 1.0) <= 1e-6:
                info = info.override({"std": stored.std})
            if stored != info:
                raise InputError(
                    f"The data of {self.folder} have changed since it was trained: other images would make another run."
                )
        model = self._model(info)
        trainer = make_trainer(model, loader, self.accelerator, self._bf16())
        self.config = config = model.config
        # what can fail for a wrong setting fails now, not after the training
        model.sampler(config.sampling.untuned())
        options = config.training
        if resume:
            self.directory.restore(trainer, options.steps)
        else:
            self.directory.create(overwrite)
        if self.main:
            write_config(self.folder, config, info)
        self.accelerator.wait_for_everyone()

        def after(record: Record) -> None:
            self.reporter.step(record)
            due = record.step % options.sample_every == 0 or record.step == options.steps
            if options.sample_count and due and self.main:
                with trainer.ema.applied():
                    sampling = config.sampling.untuned()
                    images = model.sample(options.sample_count, sampling=sampling, progress=False)
                save_grid(images, self.folder / "samples" / f"step-{trainer.step:07d}.png")

        def save() -> None:
            model.step = trainer.step
            write_weights(self.folder, model.module, trainer.step, trainer.ema.average)

        with tf32(self.accelerator.device):
            self.reporter.start(model, trainer)
            began = time.perf_counter()
            every = {"checkpoint_every": options.checkpoint_every, "log_every": options.log_every}
            seconds = self.directory.train(trainer, options.steps, **every, after=after, save=save)
        model.step = trainer.step
        with torch.no_grad():
            for name, parameter in model.denoiser.named_parameters():
                parameter.copy_(trainer.ema.average[name])
        model.denoiser.eval()
        self.accelerator.wait_for_everyone()
        if self.main:
            self._finish(model, len(heldout))
        self.accelerator.wait_for_everyone()
        self.reporter.finish(model, seconds, time.perf_counter() - began)
        return model

    def _model(self, info: Info) -> Model:
        """The model with fresh weights, which are random numbers like any other: a function of the seed alone."""
        network = self.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.fold(self.config.training.seed, "weights"))
            module = network if network is None or isinstance(network, nn.Module) else network()
            model = Model.build(self.config, info, network=module, run=self.folder)
        model.data = self.data
        return model

    def _finish(self, model: Model, heldout: int) -> None:
        """Fit what the sampling needs, and evaluate."""
        sampling, samples = self.config.sampling, self.config.evaluation.samples
        if sampling.needs_gamma:
            self.reporter.say("estimating Gamma for the analytic variance ...")
            tune(model, progress=False)
        if sampling.needs_plan:
            self.reporter.say(f"fitting a grid of {sampling.steps} steps ...")
            tune(model, steps=sampling.steps, progress=False)
        if samples and heldout < 2:
            self.reporter.say("No evaluation: fewer than 2 images are held out (data.holdout).")
        elif samples:
            self.reporter.evaluating(samples)
            try:
                self.reporter.evaluated(evaluate(model, progress=False))
            except InputError as error:
                self.reporter.say(f"No evaluation: {error}")
            except KeyboardInterrupt:
                raise Interrupted(self.folder, model.step, signal.SIGINT, complete=True) from None

    def _bf16(self) -> bool:
        wanted, device = self.config.training.precision, self.accelerator.device
        supported = supports_bf16(device)
        if wanted == "bf16" and not supported:
            self.reporter.say(f"This {device.type.upper()} has no native bfloat16: training in fp32.")
        return supported and wanted != "fp32"
