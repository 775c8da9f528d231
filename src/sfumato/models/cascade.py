"""Models that are sampled one after the other: a cascade (Ho et al. 2022, "Cascaded diffusion models"), or unCLIP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import random
from sfumato.conditioning.base import keyed, keys_of
from sfumato.conditioning.contrast import IMAGE
from sfumato.conditioning.embedding import Embedding
from sfumato.conditioning.low_resolution import LowResolution, augmented
from sfumato.config import SamplingConfig
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.level import Level
from sfumato.errors import InputError, shown
from sfumato.models.batch import SamplingBatch, collected
from sfumato.models.guides import few
from sfumato.models.model import Model
from sfumato.sampling.sample import Step


class Cascade(Model):
    """A model with a condition that is made by another, which is sampled first, for the same image of the seed.

    That is a low-resolution image, or the embedding of an image that a prior makes.

    It is sampled, evaluated and looked at as any model, at the resolution of its last stage. Conditions that several
    stages know, such as the class, are drawn once and given to all. What is sampled first gets the noise of the last
    stage's ``input_noise``, so that the details that are added depend less on its errors.

    Options of :meth:`Model.sample` are those of the last stage, and those of an earlier one are given by its name:
    ``model.sample(8, label="7", input_noise=0.1, base={"steps": 20, "guidance": 2.0})``.

    Args:
        stages: the models by name, in the order of sampling; each but the first has a condition
            :class:`~sfumato.conditioning.LowResolution`, whose ``factor`` leads from the shape of the one before to
            its own, or, behind a model of embeddings, an :class:`~sfumato.conditioning.Embedding` of the same model.
        run: the folder of the system.
    """

    def __init__(self, stages: Mapping[str, Model], *, run: Path | None = None) -> None:
        if len(stages) < 2:
            raise InputError(f"A cascade has at least two stages; got {', '.join(stages) or 'none'}.")
        *earlier, self.name = stages
        self.last = last = stages[self.name]
        self.before = stages[earlier[0]] if len(earlier) == 1 else Cascade({name: stages[name] for name in earlier})
        self.link = _link(self.before, last, earlier[-1], self.name)
        free = {name: c for name, c in self.before.conditions.items() if name not in self.before.supplied}
        super().__init__(
            last.denoiser,
            last.info,
            config=last.config,
            conditions={**free, **last.conditions},
            run=run,
            step=sum(stage.step for stage in stages.values()),
        )
        self.configured, self.fitted, self.trust, self.data = last.configured, last.fitted, last.trust, last.data
        self.stages = dict(stages)
        self.supplied = (self.link,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={stage!r}' for name, stage in self.stages.items())})"

    def to(self, device: str | torch.device) -> Model:
        """Move the weights of all stages to a device."""
        for stage in self.stages.values():
            stage.to(device)
        return self

    def batches(self, count: int, *, stepwise: bool = False, **options: Any) -> Iterator[SamplingBatch]:
        """The batches of the last stage; the earlier ones are sampled for each, unless their condition is given."""
        if stepwise:
            one_stage(self, "An edit")
        yield from super().batches(count, **options)

    def completed(
        self, cond: dict[str, Tensor], count: int, seed: int, first: int, options: Mapping[str, Any], period: int
    ) -> dict[str, Tensor]:
        """The conditions of a batch with what the stage before makes for it, without those of that stage alone."""
        if self.link not in cond:
            keys = {name: keys_of(name, condition) for name, condition in self.before.conditions.items()}
            shared = {
                name: {part: cond[key] for key, part in of.items()}
                for name, of in keys.items()
                if of.keys() <= cond.keys()
            }
            # the stages must not share their noise: it would tie what one adds to what the other did
            noise = random.fold(seed, f"before {self.name}")
            own: dict[str, Any] = {**shared, **self._options_before(options)}
            batches = self.before.batches(count, seed=noise, first=first, period=period, **own)
            images = self.before.info.in_units(collected(batches, lambda batch: batch, count, False))
            level = self.settings(options)[0].input_noise
            made: list[dict[str, Tensor]] = []
            condition = augmented({self.link: self.last.conditions[self.link]}, level)[self.link]
            for start in range(0, count, period):
                rows = images[start : start + period]
                parts = keyed(self.link, condition, condition.given(rows, len(rows), seed=seed, first=first))
                made.append({key: tensor.to(self.device) for key, tensor in parts.items()})
            cond = cond | {key: torch.cat([parts[key] for parts in made]) for key in made[0]}
        of_others = {name: c for name, c in self.conditions.items() if name not in self.last.conditions}
        unknown = {key for name, condition in of_others.items() for key in keys_of(name, condition)}
        return {key: rows for key, rows in cond.items() if key not in unknown}

    def settings(self, options: Mapping[str, Any]) -> tuple[SamplingConfig, Step | None, Level | None, dict[str, Any]]:
        """As :meth:`Model.settings`, of the last stage."""
        for name in self.stages.keys() & options.keys():
            if name == self.name or not isinstance(options[name], Mapping):
                first = next(iter(self.stages))
                raise InputError(
                    f"{name} is {shown(options[name])}; the options of the last stage, {self.name}, are given as they "
                    f"are, and those of the others as dictionaries: model.sample(8, steps=20, {first}={{'steps': 10}})."
                )
        return super().settings({name: value for name, value in options.items() if name not in self.stages})

    def described(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """As :meth:`Model.described`, with the settings of the stages before the last one by their names."""
        *_, name = self.before.stages or list(self.stages)[:1]
        before = self.before.described(self._options_before(options))
        return {**super().described(options), name: before}

    def _options_before(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the stage before, and of those before it by their names."""
        *earlier, name = list(self.stages)[:-1]
        return {**options.get(name, {}), **{other: options[other] for other in earlier if other in options}}

    def sampler(
        self, sampling: SamplingConfig | None = None, grid: Level | None = None, solver: Step | None = None
    ) -> tuple[Denoise, Level, Step]:
        """That of the last stage."""
        return self.last.sampler(sampling, grid, solver)


def one_stage(model: Model, what: str) -> None:
    """Refuse a system of several models for what is done with one."""
    if model.stages:
        *_, name = model.stages
        where = f"model.stages[{name!r}]" if model.run is None else f"{model.run}/stages/{name}"
        raise InputError(f"{what} works on one stage, and this is a system of {', '.join(model.stages)}: take {where}.")


def _link(before: Model, last: Model, name_before: str, name: str) -> str:
    """The condition that the stage before makes, if the two fit together."""
    link = _link_of_vectors if len(before.info.shape) == 1 else _link_of_images
    found = link(before, last, name_before, name)
    for shared in before.conditions.keys() & last.conditions.keys():
        theirs, ours = (model.conditions[shared].meaning for model in (before, last))
        if theirs != ours:
            raise InputError(
                f"The stages {name_before!r} and {name!r} were trained with other {shared}s, {few(theirs)} and "
                f"{few(ours)}: train them on the same data."
            )
    return found


def _link_of_vectors(before: Model, last: Model, name_before: str, name: str) -> str:
    embeddings = {n: c for n, c in last.conditions.items() if isinstance(c, Embedding) and c.column == IMAGE}
    if len(embeddings) != 1:
        raise InputError(
            f"The stage {name!r} has {len(embeddings)} conditions of the column {IMAGE!r} and needs one, for what "
            f"{name_before!r} makes: train it with data.embedder."
        )
    ((link, condition),) = embeddings.items()
    made, taken = before.info, condition
    if len(taken.mean) != made.shape[0] or taken.identity != made.identity:
        raise InputError(
            f"The stage {name_before!r} makes embeddings of {made.shape[0]} numbers by the model "
            f"{made.identity[:12] or 'of no name'}, and {name!r} was trained with {few(taken.meaning)}; train one of "
            "them again, with the data.embedder of the other."
        )
    return link


def _link_of_images(before: Model, last: Model, name_before: str, name: str) -> str:
    lows = {n: c for n, c in last.conditions.items() if isinstance(c, LowResolution)}
    if len(lows) != 1:
        raise InputError(
            f"The stage {name!r} has {len(lows)} low-resolution conditions and needs one, to scale up what "
            f"{name_before!r} makes: train it with --condition low_resolution."
        )
    ((link, condition),) = lows.items()
    wanted = (last.info.shape[0], *(side // condition.factor for side in last.info.shape[1:]))
    if condition.column is None and before.info.shape != wanted:
        here, there, needed = ("x".join(map(str, shape)) for shape in (before.info.shape, last.info.shape, wanted))
        raise InputError(
            f"The stage {name_before!r} makes images of {here}, and {name!r} scales {needed} up to {there} (factor "
            f"{condition.factor}); train one of them again with --data.size or the factor that fits."
        )
    return link
