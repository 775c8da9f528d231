"""What guides a model by another run: a weaker model of the same task, or a classifier of noisy data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sfumato.conditioning import Label
from sfumato.conditioning.base import Condition
from sfumato.config import Config, SamplingConfig
from sfumato.diffusion.classifier import NoisyClassifier
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.models.inference import prepared
from sfumato.models.storage import Info, read_config
from sfumato.models.weights import read_module
from sfumato.sampling.guidance import ClassifierGuided


def weaker(
    run: Path,
    config: Config,
    info: Info,
    conditions: Mapping[str, Condition],
    sampling: SamplingConfig,
    device: torch.device,
    trust: bool,
) -> Denoise:
    """The denoiser of a weaker run of the task that ``config``, ``info`` and ``conditions`` are of."""
    its_config, its_info, module, _ = read_module(run, device, trust=trust)
    if isinstance(module, NoisyClassifier):
        raise InputError(f"{run} is a classifier, and no weaker model; guide by it with guidance.classifier {run}.")
    theirs = {name: condition.build() for name, condition in its_info.conditions.items()}
    (mine, names), (its, other_names) = _task(info, conditions), _task(its_info, theirs)
    if its != mine or other_names != names:
        raise InputError(f"The weaker run {run} samples {its}, and this model {mine}; autoguidance needs one task.")
    _require_schedule(f"The weaker run {run}", config, its_config)
    return prepared(module.eval(), info.shape, sampling)


def guiding_label(run: Path, conditions: Mapping[str, Condition], trust: bool) -> tuple[str, Label]:
    """The condition that holds the class which the classifier of a run guides to, and its name.

    It is the label of a model of the same classes; of a model without labels it is new, and the classifier alone is
    told.
    """
    config, info = read_config(run, trust=trust)
    if not config.classifies:
        raise InputError(f"{run} is no classifier of noisy data; train one with: sfumato train DATA --task classify")
    labels = {name: condition for name, condition in conditions.items() if isinstance(condition, Label)}
    for name, label in labels.items():
        if label.names == info.classes:
            return name, label
    for name, label in labels.items():
        raise InputError(
            f"The classifier {run} knows the classes {few(info.classes)}, and the {name} of this model are "
            f"{few(label.names)}; guidance needs the same, in the same order."
        )
    if "label" in conditions:
        raise InputError(f"The condition 'label' of this model holds no classes, to which the classifier {run} guides.")
    return "label", Label(names=info.classes, draw="uniform")


def by_classifier(
    run: Path,
    config: Config,
    info: Info,
    conditions: Mapping[str, Condition],
    sampling: SamplingConfig,
    device: torch.device,
    trust: bool,
) -> Callable[..., Denoise]:
    """What makes a denoiser one that the classifier of a run guides, of the task that the others are of."""
    name, _ = guiding_label(run, conditions, trust)
    its_config, its_info, module, _ = read_module(run, device, trust=trust)
    if its_info.shape != info.shape:
        mine, its = ("x".join(map(str, shape)) for shape in (info.shape, its_info.shape))
        raise InputError(f"The classifier {run} is of data of {its}, and this model samples {mine}; train it on those.")
    _require_schedule(f"The classifier {run}", config, its_config)
    classifier: NoisyClassifier = prepared(module.eval(), info.shape, sampling)

    def log_prob(x: Tensor, level: Level, **cond: Tensor) -> Tensor:
        return classifier.log_prob(x, level, cond[name])

    return partial(ClassifierGuided, log_prob=log_prob, only=() if name in conditions else (name,))


def _require_schedule(who: str, config: Config, its: Config) -> None:
    mine = config.model.schedule
    if its.model.schedule != mine:
        raise InputError(f"{who} has another noise schedule ({_settings(its)}) than this model ({_settings(config)}).")
    if mine.kind == "learned":
        raise InputError(f"{who} has a noise schedule that it learned, and so has another than this model.")


def _settings(config: Config) -> str:
    kind, *rest = config.model.schedule.model_dump().items()
    return " ".join([str(kind[1]), *(f"{name} {value}" for name, value in rest)])


def _task(info: Info, conditions: Mapping[str, Condition]) -> tuple[str, list[tuple[str, ...]]]:
    """What is sampled, in words, and the names of the classes of the conditions."""
    words = [f" {name} ({condition.summary})" for name, condition in conditions.items()]
    names: list[tuple[str, ...]] = [getattr(condition, "names", ()) for condition in conditions.values()]
    return f"{'x'.join(map(str, info.shape))} by{','.join(words) or ' no condition'}", names


def few(names: tuple[str, ...]) -> str:
    """The first of many names, and their number."""
    return ", ".join(names[:5]) + (f" ... ({len(names)})" if len(names) > 5 else "")
