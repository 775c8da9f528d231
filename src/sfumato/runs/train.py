"""Runs: training into a directory, and evaluating what it holds."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor

from sfumato import random
from sfumato.config import Config
from sfumato.config.conditions import Slots
from sfumato.data import Loader
from sfumato.models.storage import Facts, read_config, write_config
from sfumato.errors import InputError
from sfumato.models.evaluate import evaluate, read_data, training_data
from sfumato.models.model import Model, save
from sfumato.networks.compilation import compile_in_place
from sfumato.io.images import save_grid
from sfumato.runs.reporting import Reporter, Silent
from sfumato.io.files import atomic_write
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.layout import Measured, measured
from sfumato.training.loop import Diverged, Objective, Record, Trainer
from sfumato.training.optimization import learning_rate
from sfumato.training.precision import supports_bf16, tf32
from sfumato.training.signals import stopping_on_signals
from sfumato.models.calibrate import tune


class Interrupted(Exception):
    """The training was asked to stop; it saved a checkpoint at ``step`` and can be resumed."""

    def __init__(self, run: Path, step: int, signal_number: int, complete: bool = False) -> None:
        super().__init__(
            f"Stopped; the training is complete and saved. Evaluate it with: sfumato evaluate {run}"
            if complete
            else f"Stopped at step {step}; resume with: sfumato train --resume {run}"
        )
        self.run, self.step, self.signal_number = run, step, signal_number


def train(
    config: Config | None = None,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Model:
    """Train a model into a run directory; the same job as ``sfumato train``.

    The directory holds ``config.json``, ``model.safetensors`` (averaged weights), ``checkpoints/`` (what resuming
    needs), ``samples/*.png``, ``metrics.jsonl`` and, at the end, ``evaluation.json``.

    Args:
        config: everything that decides the run; by default the recipe of the digits. Leave it out to resume.
        run: the run directory, by default ``runs/NAME`` with the name of the data.
        resume: go on from the newest whole checkpoint, bit for bit as if there had been no stop.
        overwrite: delete a run that is there.
        reporter: what shows progress; by default nothing does.

    Returns:
        The model with averaged weights.

    Raises:
        InputError: if the configuration, the data and the directory do not fit together.
        Diverged: if the loss is not finite or explodes; the last checkpoint is whole.
        Interrupted: after SIGINT or SIGTERM, when the state is saved.
    """
    if resume:
        if run is None:
            raise InputError("Say which run to resume.")
        stored, _ = read_config(Path(run))
        config = config or stored
        if config.training.channels_last is None:
            config = _with_layout(config, stored.training.channels_last)
        _check_same(stored, config)
    elif config is None:
        from sfumato.recipes import digits

        config = digits()
    run = Path(run) if run is not None else Path("runs") / default_name(config.data.source)
    return _Run(config, run, reporter or Silent()).train(resume, overwrite)


def default_name(source: str) -> str:
    """The name of a run of this data."""
    return Path(source.removeprefix("hf:").partition(":")[0]).stem or "run"


def _with_layout(config: Config, channels_last: bool | None) -> Config:
    training = config.training.model_copy(update={"channels_last": channels_last})
    return config.model_copy(update={"training": training})


def _check_same(stored: Config, wanted: Config) -> None:
    training = "steps checkpoint_every keep sample_every sample_count log_every tensorboard threads"
    free = {"data": {"workers", "cache"}, "training": set(training.split())}
    for group in ("data", "model", "objective", "optimizer", "ema", "training"):
        old, new = getattr(stored, group).model_dump(), getattr(wanted, group).model_dump()
        changed = [k for k in old if old[k] != new[k] and k not in free.get(group, ())]
        if changed:
            raise InputError(f"{group}.{changed[0]} differs from that of the run; start another run, or leave it out.")


def describe(loader: Loader, heldout: int) -> Facts:
    """What a model must know of its data."""
    data = loader.dataset
    std = loader.std(min(len(data), 4096))
    if std == 0.0:
        raise InputError(f"All {len(data)} images of {data.name} are one constant; there is nothing to learn.")
    counts = [] if data.labels is None else torch.from_numpy(data.labels).bincount(minlength=len(data.classes)).tolist()
    return Facts(
        shape=loader.shape,
        classes=data.classes,
        frequencies=tuple(count / len(data) for count in counts),
        std=std,
        train=len(data),
        heldout=heldout,
    )


def engine() -> Accelerator:
    """Accelerate's engine, without what its configuration may say of precision and accumulation: ours says it."""
    once = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=once)


def make_trainer(model: Model, loader: Loader, accelerator: Accelerator | None = None, bf16: bool = False) -> Trainer:
    """The trainer of a model, as its configuration says.

    A memory layout that the configuration leaves open is measured, and it is part of the model's configuration then.

    Args:
        model: the model, with fresh weights.
        loader: the stream of its data.
        accelerator: the engine; by default one for this process.
        bf16: whether the network computes in bfloat16.
    """
    accelerator = accelerator or engine()
    denoiser, facts = model.denoiser.to(accelerator.device), model.facts
    share = model.config.training.batch_size // (model.config.training.accumulate * accelerator.num_processes)
    found = Measured(False, None)
    if model.config.training.channels_last is None:
        found = measured(denoiser.network, loader, share, accelerator, bf16=bf16)
        model.config = _with_layout(model.config, found.last)
    config = model.config
    if config.training.channels_last and len(facts.shape) == 3:
        denoiser.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if config.training.compile:
        compile_in_place(denoiser.network, dynamic=False)
    options, optimizer, objective = config.training, config.optimizer, config.objective
    return Trainer(
        denoiser,
        loader,
        Objective(
            objective.times.build(denoiser.schedule),
            objective.weight.build(facts.std),
            objective.label_dropout,
            objective.stratified,
            objective.bins,
        ),
        optimizer.build(denoiser),
        learning_rate(optimizer.learning_rate, options.steps, warmup=optimizer.warmup, decay=optimizer.decay),
        config.ema.build(),
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        clip=optimizer.clip,
        bf16=bf16,
        seed=options.seed,
        accelerator=accelerator,
        sample_seconds=found.seconds,
    )


class _Run:
    """One training into one directory."""

    def __init__(self, config: Config, folder: Path, reporter: Reporter) -> None:
        self.config, self.folder, self.reporter = config, folder, reporter
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        self.accelerator = engine()
        self.main = self.accelerator.is_main_process
        if not self.main:
            self.reporter = Silent()
        self.checkpoints = Checkpoints(folder / "checkpoints", config.training.keep)
        self.metrics = folder / "metrics.jsonl"

    def train(self, resume: bool, overwrite: bool) -> Model:
        config = self.config
        if isinstance(config.model.network, Slots):
            config.model.network.require_told(config.data.labels)
        loader, heldout = training_data(config)
        facts = describe(loader, len(heldout))
        if resume:
            # the number that was measured then is part of the model
            facts = facts.model_copy(update={"std": self._stored_std(facts)})
        # the initial weights are a draw like any other: of the seed alone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.fold(config.training.seed, "weights"))
            model = Model(config, facts, run=self.folder)
        trainer = make_trainer(model, loader, self.accelerator, self._bf16())
        self.config = config = model.config
        # what can fail for a wrong setting fails now, not after the training
        model.sampler(config.sampling.untuned())
        tensorboard = _tensorboard() if config.training.tensorboard and self.main else None
        self._prepare(trainer, facts, resume, overwrite)
        with tf32(self.accelerator.device):
            self.reporter.start(config, facts, model, trainer, self.folder)
            began = time.perf_counter()
            seconds = self._loop(model, trainer, None if tensorboard is None else tensorboard(self.folder))
        model.step = trainer.step
        self._adopt(model, trainer)
        self.accelerator.wait_for_everyone()
        if self.main and config.sampling.needs_gamma:
            self.reporter.say("estimating Gamma for the analytic variance ...")
            tune(model)
        if self.main and config.sampling.needs_plan:
            self.reporter.say(f"fitting a grid of {config.sampling.steps} steps ...")
            tune(model, steps=config.sampling.steps)
        if self.main and config.evaluation.samples > 0 and len(heldout) < 2:
            self.reporter.say("No evaluation: fewer than 2 images are held out (data.holdout).")
        elif self.main and config.evaluation.samples > 0:
            self.reporter.evaluating(config.evaluation.samples)
            try:
                self.reporter.evaluated(evaluate(model))
            except InputError as error:
                self.reporter.say(f"No evaluation: {error}")
            except KeyboardInterrupt:
                raise self._interrupted(trainer, signal.SIGINT) from None
        self.accelerator.wait_for_everyone()
        self.reporter.finish(self.folder, seconds, time.perf_counter() - began)
        return model

    def _stored_std(self, facts: Facts) -> float:
        # a sum of floats may differ in its last digits between machines and numbers of threads
        stored = read_config(self.folder)[1]
        return stored.std if abs(stored.std / facts.std - 1.0) <= 1e-6 else facts.std

    def _bf16(self) -> bool:
        wanted, device = self.config.training.precision, self.accelerator.device
        supported = supports_bf16(device)
        if wanted == "bf16" and not supported:
            self.reporter.say(f"This processor ({device}) has no native bfloat16: training in fp32.")
        return supported and wanted != "fp32"

    def _prepare(self, trainer: Trainer, facts: Facts, resume: bool, overwrite: bool) -> None:
        """Make the directory ready: fresh, or with the state of the newest checkpoint taken up."""
        if resume:
            if read_config(self.folder)[1] != facts:
                raise InputError(
                    f"The data of {self.folder} have changed since it was trained: other images would make another run."
                )
            found = self.checkpoints.latest()
            # a run that was stopped before its first checkpoint begins again: every draw is the same
            if found is not None:
                trainer.restore(*found)
            if trainer.step > self.config.training.steps:
                raise InputError(
                    f"{self.folder} is at step {trainer.step}, beyond the {self.config.training.steps} steps asked for."
                )
            if self.main:
                self._truncate_metrics(trainer.step)
                write_config(self.folder, self.config, facts)
        elif self.main:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                if not overwrite:
                    raise InputError(
                        f"{self.folder} is there already; go on with --resume {self.folder}, replace it with "
                        "--overwrite, or choose another with --run."
                    )
                if not (self.folder / "config.json").is_file():
                    raise InputError(f"{self.folder} is not a run of Sfumato, so --overwrite will not delete it.")
                shutil.rmtree(self.folder)
            write_config(self.folder, self.config, facts)
        self.accelerator.wait_for_everyone()

    def _truncate_metrics(self, step: int) -> None:
        """Forget what was logged after the checkpoint: those steps will be done again."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        kept = [line for line in lines if _logged_step(line) <= step]
        text = "".join(line + "\n" for line in kept)
        atomic_write(self.metrics, lambda temporary: _write(temporary, text))

    def _loop(self, model: Model, trainer: Trainer, tensorboard: Any) -> float:
        """Train; returns the seconds that the optimizer steps took."""
        options, seconds = self.config.training, 0.0
        saved = trainer.step
        with stopping_on_signals(trainer) as stopped, self._explaining():
            for record in trainer.run(options.steps):
                seconds += record.seconds
                last = record.step == options.steps
                if self.main and (record.step % options.log_every == 0 or last):
                    self._log(record, tensorboard)
                self.reporter.step(record)
                if record.step % options.checkpoint_every == 0 or last or trainer.stopping:
                    self._checkpoint(model, trainer)
                    saved = record.step
                if options.sample_count and (record.step % options.sample_every == 0 or last) and self.main:
                    self._preview(model, trainer)
        if trainer.step < options.steps or stopped:
            if saved != trainer.step:
                self._checkpoint(model, trainer)
            raise self._interrupted(trainer, stopped[0] if stopped else signal.SIGINT)
        return seconds

    def _interrupted(self, trainer: Trainer, signal_number: int) -> Interrupted:
        complete = trainer.step >= self.config.training.steps
        return Interrupted(self.folder, trainer.step, signal_number, complete)

    @contextmanager
    def _explaining(self) -> Generator[None]:
        """Tell with a divergence what is left of the run."""
        try:
            yield
        except Diverged as error:
            paths = self.checkpoints.paths()
            kept = f"the checkpoint of step {int(paths[0].stem.removeprefix('step-'))}" if paths else ""
            error.saved = f"{kept} in {self.folder} is whole" if kept else "there was no checkpoint yet"
            raise

    def _log(self, record: Record, tensorboard: Any) -> None:
        values = dataclasses.asdict(record)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if tensorboard is not None:
            for name in ("loss", "grad_norm", "learning_rate", "ema_decay"):
                tensorboard.add_scalar(name, values[name], record.step)

    def _checkpoint(self, model: Model, trainer: Trainer) -> None:
        if self.main:
            model.step = trainer.step
            self.checkpoints.save(trainer.step, *trainer.state())
            save(model, self.folder, trainer.ema.average)
        self.accelerator.wait_for_everyone()

    def _preview(self, model: Model, trainer: Trainer) -> None:
        with trainer.ema.applied():
            images = model.sample(self.config.training.sample_count, sampling=self.config.sampling.untuned())
        save_grid(images, self.folder / "samples" / f"step-{trainer.step:07d}.png")

    def _adopt(self, model: Model, trainer: Trainer) -> None:
        """Give the model the averaged weights for good."""
        average: dict[str, Tensor] = trainer.ema.average
        with torch.no_grad():
            for name, parameter in model.denoiser.named_parameters():
                parameter.copy_(average[name])
        model.denoiser.eval()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _logged_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # a line that a crash cut off
        return 1 << 62


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            'training.tensorboard needs TensorBoard; install it with: pip install "sfumato[tensorboard]"'
        ) from None

    def writer(folder: Path) -> Any:
        return SummaryWriter(str(folder / "tensorboard"))

    return writer


__all__ = ["Diverged", "Interrupted", "default_name", "evaluate", "read_data", "train", "training_data"]
