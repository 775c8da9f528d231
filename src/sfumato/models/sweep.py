"""A setting of sampling swept over values: what is sampled and measured with each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sfumato.config import GuidanceConfig, SamplingConfig, merge, nested, parse, walk
from sfumato.errors import InputError, nearest
from sfumato.io.progress import Progress
from sfumato.metrics.report import Report
from sfumato.models.data import data_of
from sfumato.models.evaluate import judge_of, judged
from sfumato.models.model import Model

SCALE = "guidance.scale"
"""The setting of a sweep of guidance, which compares both kinds of it where there are two."""


def swept(sampling: SamplingConfig, key: str, values: Sequence[str | int | float]) -> list[SamplingConfig]:
    """The sampling with each value of one of its settings.

    Args:
        sampling: the others of its settings.
        key: the setting, such as ``"guidance.scale"``, ``"steps"`` or ``"sampler"``.
        values: its values, as numbers or as they are typed; what has several numbers has commas between them.
    """
    key = key.replace("-", "_")
    settings = sampling.model_dump()
    known = ["sampler", "grid", *(name for name, _ in walk(SamplingConfig, settings))]
    if key not in known:
        raise InputError(f"A sweep is over a setting of sampling, and there is no {key!r}{nearest(key, known)}")
    if not values:
        raise InputError(f"A sweep needs the values of {key}: --sweep {key} VALUE VALUE ...")
    found: list[SamplingConfig] = []
    for value in values:
        typed: Any = value.split(",") if isinstance(value, str) and "," in value else value
        base = settings
        if key == SCALE and sampling.guidance.classifier is None and _is_one(value):
            # no guidance, of which the other settings say nothing
            base = merge(settings, {"guidance": {"rescale": 0.0, "interval": None, "weak_run": None}})
        origin = f"the sweep, {key} {value}"
        found.append(parse(SamplingConfig, merge(base, nested(key, typed)), origin=origin, trust=True))
    return found


def _is_one(value: str | int | float) -> bool:
    try:
        return float(value) == 1.0
    except ValueError:
        return False


@dataclass(frozen=True)
class Curve:
    """What was measured at each value of a setting.

    Attributes:
        name: what is swept, such as ``"classifier guidance"``.
        values: the values, as they were typed.
        reports: what was measured at each.
    """

    name: str
    values: tuple[str, ...]
    reports: tuple[Report, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {"name": self.name, "values": list(self.values), "reports": [one.to_dict() for one in self.reports]}


def evaluate_sweep(
    model: Model,
    key: str,
    values: Sequence[str | int | float],
    *,
    sampling: SamplingConfig | None = None,
    samples: int | None = None,
    captions: int | None = None,
    seed: int | None = None,
    progress: Progress = None,
    judging: Mapping[str, Any] | None = None,
    **cond: Any,
) -> list[Curve]:
    """Judge samples of a model at each value of a setting, by the same real pictures and from the same noise.

    A sweep of the guidance scale with a classifier is one of both kinds of guidance, where the model knows them: away
    from the null condition, and by the classifier.

    Args:
        model: a model with its data.
        key, values: as for :func:`swept`.
        sampling: the others of its settings; by default those of the run.
        samples, captions, seed, progress: as for :func:`sfumato.evaluate`.
        judging: options of :func:`sfumato.models.evaluate.judge_of`.
        cond: conditions by name.
    """
    model.require_denoiser()
    sampling = sampling or model.config.sampling
    kinds = {key: sampling}
    if key.replace("-", "_") == SCALE:
        by = sampling.guidance
        kinds = {_kind(by): sampling}
        if by.classifier is not None and any(condition.drop > 0.0 for condition in model.conditions.values()):
            free = sampling.model_copy(update={"guidance": by.model_copy(update={"classifier": None})})
            kinds = {_kind(free.guidance): free, **kinds}
    plans = {name: swept(one, key, values) for name, one in kinds.items()}
    for plan in plans.values():
        for one in plan:
            # what can't be guided so is refused before anything is sampled
            model.sampler(one)
    judge = judge_of(model, data_of(model), progress=progress, **judging or {})
    curves: list[Curve] = []
    more: dict[str, Any] = {"samples": samples, "captions": captions, "seed": seed, "progress": progress, **cond}
    for name, plan in plans.items():
        reports: list[Report] = []
        for value, one in zip(values, plan, strict=True):
            report = judged(judge, model, sampling=one, **more)
            reports.append(replace(report, name=f"{key} {value}"))
        curves.append(Curve(name, tuple(map(str, values)), tuple(reports)))
    return curves


def _kind(guidance: GuidanceConfig) -> str:
    if guidance.classifier is not None:
        return "classifier guidance"
    return "autoguidance" if guidance.weak_run is not None else "classifier-free guidance"
