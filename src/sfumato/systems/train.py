"""The training of a system of several models, one stage after the other, into one folder."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sfumato.conditioning import Text
from sfumato.config import Config, parse
from sfumato.data import Dataset
from sfumato.errors import InputError, check_arguments, nearest
from sfumato.io.files import read_json
from sfumato.io.images import save_grid
from sfumato.io.tensors import read_meta
from sfumato.models.data import GIVEN, data_of, examples, given_sets
from sfumato.models.evaluate import judge_of, judged
from sfumato.models.folders import load
from sfumato.models.model import Model
from sfumato.models.storage import (
    System,
    is_system,
    read_config,
    read_system,
    stage_of,
    trained_stage,
    write_system,
)
from sfumato.runs import train as runs
from sfumato.runs.budget import has_gpu, seconds_of
from sfumato.runs.directory import Interrupted, RunDirectory
from sfumato.runs.reporting import Reporter
from sfumato.runs.resolving import default_name
from sfumato.runs.setup import accelerator_without_settings
from sfumato.systems.stages import Settings, planned, starts, stored
from sfumato.training.checkpoint import Checkpoints

_FIRST = 0.15  # the part of a time that a stage has, at least, from which others start


def train(
    settings: Settings | None = None,
    *,
    system: str = "cascade",
    recipe: str | None = None,
    data: Any = None,
    heldout: Any = None,
    run: str | Path | None = None,
    resume: bool = False,
    stage: str | None = None,
    overwrite: bool = False,
    trust: bool = False,
    budget: str | float | None = None,
    reporter: Reporter | None = None,
) -> Model | None:
    """Train the stages of a system, one after the other, into a folder; as ``sfumato train --system cascade``.

    The folder holds ``system.json``, a run directory for each stage in ``stages``, and, when all are trained,
    ``evaluation.json`` and ``samples`` of the whole. No stage writes into that of another: each can be stopped,
    resumed, trained longer or replaced by itself.

    Args:
        settings: settings of each stage by its name, such as ``base`` and ``up``, and ``data`` of all, in place of
            those of the recipe: ``{"data": {"source": "digits"}, "base": {"training": {"steps": 500}}}``.
        system: which system, of a base model and one that scales its images up: ``"cascade"`` by class (Ho et al.
            2022), or ``"imagen"`` by caption (Saharia et al. 2022); or ``"unclip"``, with a prior and a decoder of
            embeddings (Ramesh et al. 2022); one that is resumed is the one that it is.
        recipe: the recipe that each stage starts from; by default the one that suits system and data.
        data: anything that :meth:`sfumato.data.Dataset.of` takes, at the full resolution and with labels or captions;
            by default the settings say where they are.
        heldout: data that are not trained on, for the evaluation; by default a part of ``data``.
        run: the folder, by default ``runs/NAME-SYSTEM`` with the name of the data.
        resume: go on with the first stage that is not complete, bit for bit as if there had been no stop.
        stage: train this one only.
        overwrite: delete what is there: the system, or the ``stage``.
        trust: whether Python code of other packages that the settings name may be imported.
        budget: a time such as ``"2h"``, or seconds, that is divided among the stages that are not begun, by what the
            steps of their recipes cost; each is trained for as many steps as fit its part. The
            evaluation of the whole comes on top.
        reporter: what shows progress; by default nothing does.

    Returns:
        The system, ready to sample; None if a stage is not trained yet.

    Raises:
        Interrupted: after SIGINT or SIGTERM, when the state is saved.
    """
    check_arguments(train, locals())
    given = None if data is None else Dataset.of(data)
    reporter = reporter or Reporter()
    if resume:
        if run is None:
            raise InputError("Say which system to resume.")
        folder = Path(run)
        stages, system = stored(folder, settings, trust=trust), read_system(folder).system
    else:
        if given is not None:
            settings = {**(settings or {}), "data": {"source": given.name, **(settings or {}).get("data", {})}}
        stages = planned(settings, system=system, recipe=recipe, gpu=has_gpu(), trust=trust)
        if given is not None:
            stages = {n: config.override({"data.source": f"{GIVEN}{given.name}"}) for n, config in stages.items()}
        usual = default_name(next(iter(stages.values())))
        folder = Path(run) if run is not None else Path("runs") / f"{usual}-{system}"
    if stage is not None and stage not in stages:
        raise InputError(f"The system has no stage {stage!r}{nearest(stage, stages)}")
    if overwrite and resume and stage is None:
        raise InputError("A system that is resumed keeps what is trained; name the stage that is to be replaced.")
    before = set(read_system(folder).before if resume else starts(stages))
    began = {n for n in stages if resume and _is_run(folder, n)}

    def is_due(name: str, config: Config) -> bool:
        if stage is not None or not resume:
            return stage in (None, name)
        users = {n for n, c in stages.items() if _start(c) == name}
        if users and users <= began:
            return False  # those that start from it have its weights
        return not _is_complete(stage_of(folder, name), config)

    due = [n for n, c in stages.items() if is_due(n, c)]
    for name in due:
        users = [n for n, c in stages.items() if n in began and _embedder(c) == name]
        if users and name in began:
            raise InputError(
                f"{' and '.join(users)} of {folder} have the embeddings of {name} as it is; trained again, it would be "
                "of no use to them. Train another system."
            )
    fresh = [n for n in due if overwrite or n not in began]
    seconds = None if budget is None else seconds_of(budget)
    if seconds is not None and not fresh:
        raise InputError(
            "The stages have begun, and have their steps; leave the budget out, or say more training.steps."
        )
    costs = {name: _cost(stages[name]) for name in fresh}
    for name in before & costs.keys():
        # it is small, and what it has not learned is not learned later
        costs[name] = max(costs[name], _FIRST * sum(costs.values()))
    accelerator = accelerator_without_settings()
    if accelerator.is_main_process:
        if not resume and (stage is None or not is_system(folder)):
            _make_room(folder, overwrite, accelerator)
        later = {name: config.model_dump(mode="json") for name, config in stages.items() if not _is_run(folder, name)}
        names = {
            "before": tuple(n for n in stages if n in before),
            "stages": tuple(name for name in stages if name not in before),
        }
        write_system(folder, parse(System, {"system": system, **names, "settings": later}))
    accelerator.wait_for_everyone()
    start_time = time.perf_counter()
    for number, (name, config) in enumerate(stages.items(), 1):
        path = stage_of(folder, name)
        if name not in due:
            continue
        reporter.say(f"stage     {name}, {number} of {len(stages)}")
        if accelerator.is_main_process:
            # that of other weights
            (folder / "evaluation.json").unlink(missing_ok=True)
        more: dict[str, Any] = {"data": given, "heldout": heldout, "trust": trust, "reporter": reporter}
        try:
            if name in fresh:
                for key, first in (("training.init_from", _start(config)), ("data.embedder", _embedder(config))):
                    if first in before:
                        config = config.override({key: str(_trained_to_its_end(folder, first, name, trust))})
                part = None if seconds is None else seconds * costs[name] / sum(costs.values())
                runs.train(config, run=path, overwrite=overwrite, budget=part, **more)
            else:
                runs.train(config, run=path, resume=True, **more)
        except Interrupted as stop:
            # also without a checkpoint there is something to go on with: the settings, and the stages before
            raise Interrupted(folder, stop.step or 0, stop.signal_number) from None
    # their steps may be what fitted a time
    stages = stored(folder, trust=trust)
    missing = [n for n, c in stages.items() if n not in before and _steps_of(stage_of(folder, n)) < c.training.steps]
    if missing:
        reporter.say(f"system    {folder} lacks {' and '.join(missing)}; go on with: sfumato train --resume {folder}")
        return None
    model = load(folder, accelerator.device, trust=trust)
    model.data = given_sets(model.config, given, heldout)
    _show(model, folder, reporter, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    reporter.say(f"{time.perf_counter() - start_time:.1f} s in all.")
    captioned = any(isinstance(condition, Text) for condition in model.conditions.values())
    use = f'generate "..." --model {folder}' if captioned else f"sample {folder}"
    reporter.say(f"use it    sfumato {use}")
    return model


def _cost(config: Config) -> float:
    """About what the training of a stage costs, in units that all stages share: products of its convolutions."""
    network: Any = config.model.network
    side = config.data.scale_down * (getattr(network, "patch", None) or 1)
    widths = getattr(network, "channels", None) or (getattr(network, "width", 1),)
    work = sum((width / 2**level) ** 2 for level, width in enumerate(widths))
    return config.training.steps * config.training.batch_size * work / side**2


def _start(config: Config) -> str:
    """The name of the stage that one starts from, which may have been moved since."""
    return Path(config.training.init_from or "").name


def _embedder(config: Config) -> str:
    """The name of the stage whose embeddings one is given."""
    return config.data.embedder.name if config.data.embedder is not None else ""


def _trained_to_its_end(folder: Path, first: str, name: str, trust: bool) -> Path:
    """The run of a stage that another one needs."""
    source = trained_stage(folder, first)
    if _steps_of(source) < read_config(source, trust=trust)[0].training.steps:
        raise InputError(
            f"The stage {name!r} needs {first!r}, which is not trained to its end; go on with: sfumato train --resume "
            f"{folder} --stage {first}"
        )
    return source.absolute()


def _is_run(folder: Path, name: str) -> bool:
    return (stage_of(folder, name) / "config.json").is_file()


def _steps_of(run: Path) -> int:
    """The steps that a stage was trained for."""
    files = [run / "model.safetensors", *Checkpoints(run / "checkpoints").paths()[:1]]
    return max(int(read_meta(path).get("step", 0)) for path in files)


def _is_complete(run: Path, config: Config) -> bool:
    """Whether a stage is trained to its last step, and evaluated if it is to be."""
    if _steps_of(run) < config.training.steps:
        return False
    try:
        return not config.evaluation.samples or read_json(run / "evaluation.json")["step"] == config.training.steps
    except (InputError, KeyError, TypeError):
        return False


def _make_room(folder: Path, overwrite: bool, accelerator: Accelerator) -> None:
    """Make sure that a folder is free for a new system, or make it so."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another folder with --run.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise InputError(
            f"{folder} already exists; go on with --resume {folder}, replace it with --overwrite, or choose another "
            "with --run."
        )
    if not is_system(folder):
        raise InputError(f"{folder} is not a system of Sfumato, so --overwrite will not delete it.")
    for name in read_system(folder).trained:
        # one that another process trains is refused
        directory = RunDirectory(stage_of(folder, name), accelerator)
        if directory.folder.is_dir():
            directory.prepare(True, False)
            directory.close()
    aside = folder.with_name(f".{folder.name}.overwritten-{os.getpid()}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _show(model: Model, folder: Path, reporter: Reporter, main: bool) -> None:
    """Sample from the whole system, and evaluate it."""
    count = model.config.training.sample_count
    if not count and not model.config.evaluation.samples:
        return
    sets = train, heldout = data_of(model)
    if main and count:
        # by the captions of images, where nobody gives any
        cond, _ = examples(model, heldout if len(heldout) else train, count)
        save_grid(model.sample(count, progress=False, **cond), folder / "samples" / f"step-{model.step:07d}.png")
    if not model.config.evaluation.samples:
        return
    try:
        judge = judge_of(model, sets, progress=reporter.progress)
        reporter.evaluating(model)
        report = judged(judge, model, keep=True, overwrite=True, progress=reporter.progress)
        reporter.evaluated(report, model.step)
    except InputError as error:
        reporter.say(f"No evaluation: {error}")
