"""Training into a directory: checkpoints, samples, metrics, evaluation; stopped and resumed bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import nn

from sfumato import random
from sfumato.conditioning import Text
from sfumato.config import Config
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError, check_arguments
from sfumato.io.files import write_json
from sfumato.io.images import save_grid
from sfumato.metrics.report import Report
from sfumato.models.calibrate import tune
from sfumato.models.data import examples, given_sets, training_data
from sfumato.models.evaluate import judge_of, judged, own_report, recorded
from sfumato.models.model import Model
from sfumato.models.prior import with_embedder
from sfumato.models.storage import Info, read_config, write_config
from sfumato.models.weights import freeze, start_from, write_weights
from sfumato.runs.budget import seconds_of, sized
from sfumato.runs.directory import Interrupted, RunDirectory
from sfumato.runs.reporting import Reporter
from sfumato.runs.resolving import check_same, default_name, resolved
from sfumato.runs.setup import (
    accelerator_without_settings,
    as_measured,
    describe,
    heldout_losses,
    make_trainer,
    prepare,
    require_same_data,
)
from sfumato.training.loop import Record, Trainer
from sfumato.training.precision import supports_bf16, tf32


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
    budget: str | float | None = None,
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
        network: a module that is called as ``network(x, time, **slots)``; or a class, a ``functools.partial`` or
            ``"package.module:Class"`` that makes it, whose arguments ``inputs``, ``outputs``, ``shape`` ... the data
            fill; by default ``config.model.network``.
        run: the run directory, by default ``runs/NAME`` with the name of the data.
        resume: continue from the newest whole checkpoint, bit for bit as if there had been no stop.
        overwrite: delete a run that is there.
        trust: whether Python code of other packages that the settings name may be imported.
        budget: a time such as ``"30m"`` or ``"2h"``, or seconds: as many steps as fit it are trained, by a short
            measurement on this machine. The run stores the steps, and resumes like any other.
        reporter: what shows progress; by default nothing does.
        changes: settings in place of those of the configuration, by group: ``training={"steps": 500}``. A component can
            be an object, or a function or class that makes one, if it can be imported again:
            ``objective=MyLoss``, ``model={"schedule": MySchedule(3)}``, ``conditions={"label": Label(drop=0.2)}``.

    Returns:
        The model with averaged weights.

    Raises:
        Diverged: if the loss is not finite or explodes; the last checkpoint is whole.
        Interrupted: after SIGINT or SIGTERM, when the state is saved.
    """
    check_arguments(train, locals())
    given = None if data is None else Dataset.of(data)
    stored: Config | None = None
    if resume:
        if run is None:
            raise InputError("Say which run to resume.")
        stored, _ = read_config(run, trust=trust, network=network is not None)
        if config is None or isinstance(config, Mapping):
            config = stored.override(config) if config else stored
        elif isinstance(config, Config) and config.training.channels_last is None:
            config = config.override({"training.channels_last": stored.training.channels_last})
    own_network = network is not None
    config, network = resolved(config, given, network, changes, trust)
    if stored is not None:
        check_same(stored, config, {"network"} if own_network else set())
    if config.data.embedder is not None:
        config = config.override({"data.embedder": str(config.data.embedder.absolute())})
    run = Path(run) if run is not None else Path("runs") / default_name(config)
    sets = given_sets(config, given, heldout)
    seconds = None if budget is None else seconds_of(budget)
    if seconds is not None and resume:
        raise InputError("A run that is resumed has its steps; leave the budget out, or say more training.steps.")
    return _Run(config, run, reporter or Reporter(), network, sets).train(resume, overwrite, seconds)


class _Run:
    """The training of one denoiser into one directory."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        reporter: Reporter,
        network: nn.Module | None = None,
        data: tuple[Dataset, Dataset] | None = None,
    ) -> None:
        self.config, self.folder, self.reporter = config, folder, reporter
        self.network, self.data = network, data
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        options = config.training
        self.accelerator = accelerator_without_settings(options.tracker, folder)
        self.directory = RunDirectory(folder, self.accelerator, keep=options.keep)
        self.main = self.directory.main
        if not self.main:
            self.reporter = Reporter()

    def train(self, resume: bool, overwrite: bool, budget: float | None = None) -> Model:
        try:
            return self._train(resume, overwrite, budget)
        except KeyboardInterrupt as stop:
            step, number = self.directory.saved_step, getattr(stop, "signal_number", signal.SIGINT)
            complete = step == self.config.training.steps
            raise Interrupted(self.folder, step, number, complete) from None
        finally:
            self.directory.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _train(self, resume: bool, overwrite: bool, budget: float | None) -> Model:
        config = self.config
        # a directory that is taken is refused before data are read
        self.directory.prepare(resume, overwrite)
        loader, heldout = training_data(config, self.data)
        info = describe(loader, len(heldout), config)
        self.reporter.data(config, info)
        if budget is not None:
            self.config = config = self._sized(budget, loader, info)
        if resume:
            stored = read_config(self.folder, trust=True)[1]
            info = as_measured(stored, info)
            require_same_data(self.folder, stored, info)
        prepare(info, (loader.dataset, heldout))
        # what is resumed has its weights, wherever those are that it once started from
        begins = not (resume and self.directory.checkpoints.paths())
        model = self._model(info, start=begins)
        trainer = make_trainer(model, loader, self.accelerator, self._bf16())
        self.config = config = model.config
        if model.samples:
            # what can fail for a wrong setting fails now, not after the training
            model.sampler(config.sampling.untuned())
        options = config.training
        if resume:
            self.directory.restore(trainer, options.steps)
            if not begins and not trainer.step:
                raise InputError(f"No checkpoint of {self.folder} is whole; train it again, with --overwrite.")
        else:
            self.directory.create(overwrite)
        if self.main:
            write_config(self.folder, config, info)
            self.reporter.log(self.folder / "train.log")
        self._start_tracker()
        self.accelerator.wait_for_everyone()

        judged_every = self.config.evaluation.every
        judge = self._judge(model, loader.dataset, heldout) if judged_every is not None else None

        def after(record: Record) -> None:
            self.reporter.step(record)
            if judge is not None and judged_every and record.step % judged_every == 0 and record.step < options.steps:
                with trainer.ema.applied():
                    self._evaluate(model, judge, trainer)
            due = record.step % options.sample_every == 0 or record.step == options.steps
            if not due or not self.main:
                return
            if losses := heldout_losses(trainer, heldout):
                self.directory.log(record.step, losses)
            if options.sample_count and model.samples:
                with trainer.ema.applied():
                    more: dict[str, Any] = {"sampling": config.sampling.untuned(), "progress": False}
                    cond, _ = examples(model, heldout if len(heldout) else loader.dataset, options.sample_count)
                    images = model.sample(options.sample_count, **more, **cond)
                path = self.folder / "samples" / f"step-{trainer.step:07d}.png"
                save_grid(images, path)
                self._track_image(path, record.step)

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
        self._finish(model, trainer, lambda: judge or self._judge(model, loader.dataset, heldout))
        self.accelerator.wait_for_everyone()
        self.reporter.finish(model, seconds, time.perf_counter() - began)
        return model

    def _start_tracker(self) -> None:
        try:
            # wandb would otherwise leave its files where the command is typed
            more = {"name": self.folder.name, "dir": str(self.folder)}
            self.accelerator.init_trackers("sfumato", init_kwargs={"wandb": more})
        except Exception as error:  # of a program of others, such as for a key that is missing
            tracker = self.config.training.tracker
            self.accelerator.trackers.clear()  # what has not begun can't be finished
            raise InputError(
                f"training.tracker {tracker} does not start ({type(error).__name__}: {error}). Mend that, or leave it "
                "out; wandb without a network: WANDB_MODE=offline."
            ) from error

    def _track_image(self, path: Path, step: int) -> None:
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": pixels[None]}, step=step, **more)  # pyright: ignore[reportAttributeAccessIssue]

    def _sized(self, budget: float, loader: Loader, info: Info) -> Config:
        """The configuration with the steps that fit the time, the same in all processes."""

        def measured(config: Config) -> float:
            self.config = config
            trainer = make_trainer(self._model(info), loader, self.accelerator, self._bf16())
            seconds: list[float] = []
            for record in trainer.run(6):
                seconds.append(record.seconds)
                if sum(seconds) > 5.0:
                    break
            # the first one warms up
            return min(seconds[1:] or seconds)

        said = [sized(self.config, budget, measured)]
        broadcast_object_list(said)
        config, sentence = said[0]
        self.reporter.say(f"budget    {sentence}")
        return config

    def _model(self, info: Info, *, start: bool = True) -> Model:
        """The model with fresh weights, which are random numbers like any other: a function of the seed alone.

        With ``start`` those that another run has are taken from it.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.fold(self.config.training.seed, "weights"))
            model = Model.build(self.config, info, network=self.network, run=self.folder)
        frozen = freeze(model.module, self.config.training.freeze)
        if start and (run := self.config.training.init_from) is not None:
            self._check_words(Path(run), model, frozen)
            if fresh := start_from(Path(run), model.module, frozen):
                self.reporter.say(
                    f"start     from {run}; {len(fresh)} tensors of its own are fresh, such as {fresh[0]}"
                )
        model.data = self.data
        return with_embedder(model)

    def _check_words(self, start: Path, model: Model, frozen: Sequence[str]) -> None:
        """Refuse to start from weights whose words have the numbers of other words."""
        theirs = read_config(start, trust=True, network=True)[1].conditions
        for name, condition in model.conditions.items():
            if isinstance(condition, Text) and name in theirs:
                known, own = theirs[name].build().meaning, condition.meaning
                is_kept = any(f"encoders.{name}." in weight for weight in frozen)
                if known != own and (is_kept or len(known) == len(own)):
                    raise InputError(
                        f"{start} was trained on other words, {', '.join(known[:5])} ..., and its text encoder says "
                        "nothing of these captions; start without it, or from a run of the same captions."
                    )

    def _judge(self, model: Model, train: Dataset, heldout: Dataset) -> Callable[[Model], Report] | None:
        """The evaluation, if there is to be one."""
        if not self.config.evaluation.samples:
            return None
        if len(heldout) < 2:
            self.reporter.say("No evaluation: fewer than 2 images are held out (data.holdout).")
            return None
        more: dict[str, Any] = {"keep": True, "overwrite": True, "progress": self.reporter.progress}
        if not model.samples:
            return partial(own_report, heldout=heldout, **more | {"keep": self.main})
        judge = judge_of(model, (train, heldout), progress=self.reporter.progress)
        return lambda model: judged(judge, model, **more)

    def _evaluate(self, model: Model, judge: Callable[[Model], Report], trainer: Trainer) -> None:
        """Judge samples of the model as it is, log the numbers, and keep the best weights."""
        model.step, best = trainer.step, self.config.evaluation.best
        try:
            report = judge(model)
        except InputError as error:
            # such as NaN in samples of an early step: the training goes on
            self.reporter.say(f"No evaluation at step {trainer.step}: {error}")
            return
        self.reporter.evaluated(report, model.step)
        if not self.main:
            return
        self.directory.log_once(model.step, report.numbers())
        if best is None:
            return
        folder = self.folder / "best"
        if report[best].is_better_than(recorded(folder / "evaluation.json", best)):
            folder.mkdir(exist_ok=True)
            write_config(folder, self.config, model.info)
            write_weights(folder, model.module, trainer.step, trainer.ema.average)
            write_json(folder / "evaluation.json", report.to_dict())

    def _finish(
        self, model: Model, trainer: Trainer, judge_of_run: Callable[[], Callable[[Model], Report] | None]
    ) -> None:
        """Fit what the sampling needs, and evaluate."""
        sampling, fits = self.config.sampling, self.main and model.samples
        if sampling.needs_gamma and fits:
            self.reporter.say("estimating Gamma for the analytic variance ...")
            tune(model, progress=False)
        if sampling.needs_plan and fits:
            self.reporter.say(f"fitting a grid of {sampling.steps} steps ...")
            tune(model, steps=sampling.steps, progress=False)
        fitted = [model.fitted]
        broadcast_object_list(fitted)
        model.fitted = fitted[0]
        try:
            judge = judge_of_run()
            if judge is not None:
                self.reporter.evaluating(model)
                self._evaluate(model, judge, trainer)
        except InputError as error:
            self.reporter.say(f"No evaluation: {error}")

    def _bf16(self) -> bool:
        wanted, device = self.config.training.precision, self.accelerator.device
        supported = supports_bf16(device)
        if wanted == "bf16" and not supported:
            self.reporter.say(f"This {device.type.upper()} has no native bfloat16: training in fp32.")
        return supported and wanted != "fp32"
