"""What a training is made of, from its configuration: the facts of the data, the processes, the trainer."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin

from sfumato.conditioning import Label
from sfumato.conditioning.base import Condition, keyed
from sfumato.conditioning.contrast import IMAGE
from sfumato.conditioning.low_resolution import Base, base_of
from sfumato.config import Config, parse
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError, require_memory
from sfumato.models.guides import few
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.networks.execution import compile_in_place, count
from sfumato.random import Draws
from sfumato.training.loop import Trainer
from sfumato.training.optimization import learning_rate_schedule
from sfumato.training.precision import prefers_channels_last


def describe(loader: Loader, heldout: int, config: Config) -> Info:
    """What a model must know of its data."""
    data = loader.dataset
    known = {name: condition.build().describe(data) for name, condition in config.conditions.items()}
    std = _residual_std(loader, base_of(known), known) if config.model.residual else loader.std(min(len(data), 4096))
    if std == 0.0:
        raise InputError(f"All {len(data)} images of {data.name} are one constant; there is nothing to learn.")
    conditions = {
        name: {"kind": condition.kind, **dataclasses.asdict(known[name])}
        for name, condition in config.conditions.items()
    }
    values = {"shape": loader.shape, "std": std, "train": len(data), "heldout": heldout, "conditions": conditions}
    if config.classifies:
        names = Label(column=config.objective.column).describe(data).names
        if len(names) < 2:
            raise InputError(f"{data.name} has a single class, {', '.join(names)}; a classifier needs at least 2.")
        values |= {"classes": names}
    if config.data.embeddings:
        values |= {"identity": data.columns[IMAGE].identity}
    if data.units is not None:
        values |= {"shift": data.units.shift, "scale": data.units.scale}
    return parse(Info, values, trust=True)


def prepare(info: Info, sets: Iterable[Dataset]) -> None:
    """What the conditions do once for the images of a training."""
    for condition in info.conditions.values():
        built = condition.build()
        for data in sets:
            built.prepare(data)


def as_measured(stored: Info, info: Info) -> Info:
    """What is known of the data, with what a run measured of them at its start, where only rounding differs.

    They are a part of the model, and a sum of floats may differ in its last digits between machines and numbers of
    threads; embeddings that are computed again, in a few more.
    """
    by_embedder = bool(info.identity) and info.identity == stored.identity
    numbers = {"std": 1e-4 if by_embedder else 1e-6} | ({"shift": 1e-4, "scale": 1e-4} if by_embedder else {})
    pairs = {name: (getattr(stored, name), getattr(info, name), most) for name, most in numbers.items()}
    kept = {name: old for name, (old, new, most) in pairs.items() if _near(old, new, most)}
    conditions = dict(info.conditions)
    for name in stored.conditions.keys() & conditions.keys():
        old, new = (one.conditions[name] for one in (stored, info))
        known = (
            "mean" in type(new).model_fields and getattr(new, "identity", "") == getattr(old, "identity", None) != ""
        )
        if known and all(_near(getattr(old, key), getattr(new, key), 1e-4) for key in ("mean", "std")):
            conditions[name] = new.model_copy(update={key: getattr(old, key) for key in ("mean", "std")})
    return info.model_copy(update={**kept, "conditions": conditions})


def _near(old: Any, new: Any, most: float) -> bool:
    """Whether numbers differ by at most this part of the largest of them."""
    a, b = (np.asarray(one, dtype=np.float64) for one in (old, new))
    return a.shape == b.shape and bool((np.abs(a - b) <= most * np.abs(b).max(initial=0.0)).all())


def require_same_data(folder: Path, stored: Info, info: Info) -> None:
    """Refuse to resume a training with other data, or with conditions that mean something else."""
    if stored == info:
        return
    for name in stored.conditions.keys() & info.conditions.keys():
        theirs, ours = (one.conditions[name].build().meaning for one in (stored, info))
        if theirs != ours:
            raise InputError(
                f"The condition {name!r} of {folder} was trained with {few(theirs)}, and now has {few(ours)}; give the "
                "same to resume."
            )
    raise InputError(f"The data of {folder} have changed since it was trained: other images would make another run.")


def _residual_std(loader: Loader, base: Base, conditions: Mapping[str, Condition]) -> float:
    """The standard deviation of what the up-scaled images lack, of the first 256 samples."""
    batch = loader.batch(0, min(len(loader.dataset), 256))
    condition = conditions[base.name]
    low = keyed(base.name, condition, condition.example(batch.x0, batch.cond))
    return float((batch.x0 - base(batch.x0, low)).double().std(correction=0))


def accelerator_without_settings(tracker: str | None = None, folder: Path | None = None) -> Accelerator:
    """Accelerate for this process, without what its own configuration may say of precision and accumulation.

    Processes that a launcher started and that do not find each other are an error: each would train by itself.

    Args:
        tracker: a program that is sent what is logged, such as ``"tensorboard"``.
        folder: where it writes.
    """
    # Accelerate passes over what is not installed; a folder wandb, as wandb leaves it, is no package
    if tracker is not None and tracker not in (str(known) for known in get_available_trackers()):
        raise InputError(
            f'training.tracker {tracker} needs a package; install it with: pip install "sfumato[{tracker}]"'
        )
    once = GradientAccumulationPlugin(num_steps=1)
    # under torchrun without a GPU, Accelerate joins processes only if it is told that they compute on the CPU
    cpu = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    wanted = _wanted_processes()
    try:
        accelerator = Accelerator(
            mixed_precision="no", gradient_accumulation_plugin=once, cpu=cpu, log_with=tracker, project_dir=folder
        )
    except (ValueError, RuntimeError):
        if wanted == 1:
            raise
        accelerator = None
    if accelerator is None or wanted > 1 == accelerator.num_processes:
        raise InputError(
            f"{wanted} processes were asked for, but this one is alone and would train by itself; start them with: "
            f"torchrun --nproc-per-node {wanted} -m -- sfumato train ..."
        )
    return accelerator


def _wanted_processes() -> int:
    """How many processes a launcher was asked for."""
    sizes = [os.environ.get(name, "") for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    # accelerate launch --cpu starts a single process, whatever number it is given
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process().parent()
        words = [] if parent is None else parent.cmdline()
        if any("accelerate" in word for word in words[:4]):
            line = " ".join(words).replace("=", " ").replace("_", "-")
            sizes += re.findall(r"--num-processes (\d+)", line)
    return max((int(size) for size in sizes if size.isdigit()), default=1)


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
    size = count(denoiser.network, model.info.shape)
    share = config.training.batch_size // (accelerator.num_processes * config.training.accumulate)
    # what is surely needed: weights, gradients, two moments and an average; images, noise, activations
    values = 5 * size.parameters + share * (3 * math.prod(model.info.shape) + size.activations)
    what = f"A network of {size.parameters:,} parameters and batches of {share}"
    require_memory(values, what, "training.batch_size, or raise training.accumulate", device=accelerator.device)
    options, optimizer, objective = config.training, config.optimizer, config.objective
    loss = objective.build(
        **{"classifier" if config.classifies else "contrast" if config.contrasts else "denoiser": denoiser},
        conditions=model.conditions,
        schedule=getattr(denoiser, "schedule", None),
        parameterization=getattr(denoiser, "parameterization", None),
        data_std=model.info.std,
    )
    return Trainer(
        loss,
        loader,
        optimizer=optimizer.method.build(module=denoiser, params=[p for p in denoiser.parameters() if p.requires_grad]),
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


_VALIDATED = 64  # images that are held out, of which losses are measured


@torch.no_grad()
def heldout_losses(trainer: Trainer, heldout: Dataset) -> dict[str, float]:
    """The losses of images that are not trained on, under the averaged weights, on the same noise each time.

    They are what the loss reports of itself (:mod:`sfumato.training.losses`), or their mean.
    """
    count, device = min(_VALIDATED, len(heldout)), trainer.accelerator.device
    if not count:
        return {}
    draws = Draws(trainer.seed, 0, count, count, device).within("heldout")
    batch = Loader(heldout, trainer.seed, crop=trainer.loader.crop).batch(0, count).to(device)
    with trainer.ema.applied():
        # a loss may count what it sees
        loss = copy.deepcopy(trainer.loss).eval()
    if hasattr(loss, "report"):
        return loss.report(batch, draws)  # pyright: ignore[reportCallIssue]
    return {"heldout_loss": float(loss(batch, draws).mean())}
