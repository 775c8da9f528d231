"""What guides a model by another run: a weaker model of the same task, or a classifier of noisy data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioning import Label
from sfumato.conditioning.base import Condition
from sfumato.conditioning.contrast import Contrast
from sfumato.config import Component, Config, SamplingConfig
from sfumato.diffusion.classifier import NoisyClassifier
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.models.inference import prepared
from sfumato.models.storage import Info, read_config
from sfumato.models.weights import read_module
from sfumato.sampling.guidance import ClassifierGuided


@dataclass(frozen=True)
class Guided:
    """The model that is guided: its settings, data and conditions, and on which device and with what trust to load."""

    config: Config
    info: Info
    conditions: Mapping[str, Condition]
    device: torch.device
    trust: bool

    def guides(self, sampling: SamplingConfig) -> dict[str, Any]:
        """The arguments ``weak`` and ``classifier`` of :meth:`SamplingConfig.build`, of the runs that it names."""
        weak, classifier = sampling.guidance.weak_run, sampling.guidance.classifier
        return {
            "weak": None if weak is None else self._weaker(weak, sampling),
            "classifier": None if classifier is None else self._by_classifier(classifier, sampling),
        }

    def label(self, run: Path) -> tuple[str, Label]:
        """The name of the condition that holds the class which the classifier of a run guides to, and the condition.

        It is the label of a model of the same classes. A model without labels gets a new one, which only the classifier
        is conditioned on.
        """
        config, info = read_config(run, trust=self.trust)
        if not config.classifies:
            raise InputError(f"{run} is no classifier of noisy data; train one: sfumato train DATA --task classify")
        labels = {name: condition for name, condition in self.conditions.items() if isinstance(condition, Label)}
        for name, label in labels.items():
            if label.names == info.classes:
                return name, label
        for name, label in labels.items():
            raise InputError(
                f"The classifier {run} knows the classes {few(info.classes)}, and the {name} of this model are "
                f"{few(label.names)}; guidance needs the same, in the same order."
            )
        if "label" in self.conditions:
            raise InputError(f"The condition 'label' of this model holds no classes, to which {run} guides.")
        return "label", Label(names=info.classes, draw="uniform")

    def _weaker(self, run: Path, sampling: SamplingConfig) -> Denoise:
        info, module = self._read(run, "weaker run")
        if isinstance(module, NoisyClassifier):
            raise InputError(f"{run} is a classifier, and no weaker model; guide by it with guidance.classifier {run}.")
        if isinstance(module, Contrast):
            raise InputError(f"{run} embeds images and captions, and is no weaker model.")
        theirs = {name: condition.build() for name, condition in info.conditions.items()}
        (mine, names), (its, other_names) = _task(self.info, self.conditions), _task(info, theirs)
        if its != mine or other_names != names:
            raise InputError(f"The weaker run {run} samples {its}, and this model {mine}; autoguidance needs one task.")
        return prepared(module, info.shape, sampling)

    def _by_classifier(self, run: Path, sampling: SamplingConfig) -> Callable[..., Denoise]:
        name, _ = self.label(run)
        info, module = self._read(run, "classifier")
        if info.shape != self.info.shape:
            mine, its = ("x".join(map(str, shape)) for shape in (self.info.shape, info.shape))
            raise InputError(f"The classifier {run} is of data of {its}, and this model samples {mine}; train another.")
        classifier: NoisyClassifier = prepared(module, info.shape, sampling)

        def log_prob(x: Tensor, level: Level, **cond: Tensor) -> Tensor:
            return classifier.log_prob(x, level, cond[name])

        return partial(ClassifierGuided, log_prob=log_prob, only=() if name in self.conditions else (name,))

    def _read(self, run: Path, what: str) -> tuple[Info, Any]:
        """The facts and the module of a run, which has to have the same noise schedule."""
        config, info, module, _ = read_module(run, self.device, trust=self.trust)
        mine, its = self.config.model.schedule, config.model.schedule
        if its != mine:
            known = f"({_settings(its)}) than this model ({_settings(mine)})"
            raise InputError(f"The {what} {run} has another noise schedule {known}.")
        if mine.kind == "learned":
            raise InputError(f"The {what} {run} learned its noise schedule, and so has another than this model.")
        return info, module.eval()


def _settings(component: Component) -> str:
    kind, *rest = component.model_dump().items()
    return " ".join([str(kind[1]), *(f"{name} {value}" for name, value in rest)])


def _task(info: Info, conditions: Mapping[str, Condition]) -> tuple[str, list[tuple[str, ...]]]:
    """What is sampled, in words, and the names of the classes of the conditions."""
    words = [f" {name} ({condition.summary})" for name, condition in conditions.items()]
    names = [condition.meaning for condition in conditions.values()]
    return f"{'x'.join(map(str, info.shape))} by{','.join(words) or ' no condition'}", names


def few(names: tuple[str, ...]) -> str:
    """The first of many names, and their number."""
    return ", ".join(names[:5]) + (f" ... ({len(names)})" if len(names) > 5 else "")
