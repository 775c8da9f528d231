"""What the options of sampling mean, as a person gives them in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.config import Component, SamplingConfig
from sfumato.diffusion.level import Level
from sfumato.errors import InputError, shown
from sfumato.sampling.sample import Step


def sampling_options(
    usual: SamplingConfig, options: Mapping[str, Any]
) -> tuple[SamplingConfig, Step | None, Level | None, dict[str, Any]]:
    """The sampling that options ask for, a solver and a grid that are objects, and the options that are none of these.

    Args:
        usual: the settings in place of those that are not given.
        options: those of :meth:`sfumato.Model.sample`.
    """
    options = dict(options)
    base = options.pop("sampling", None) or usual
    changes: dict[str, Any] = {}
    solver, grid, scale = (options.pop(name, None) for name in ("solver", "grid", "guidance"))
    for name in SamplingConfig.model_fields:
        value = options.pop(name, None)
        if value is not None:
            changes[name] = value
    if not (solver is None or callable(solver) or isinstance(solver, str | Mapping | Component)):
        raise InputError(f"solver is {shown(solver)}; expected a name, its settings, or a function that is a step.")
    step: Any = solver if callable(solver) and not isinstance(solver, Component) else None
    levels = grid if isinstance(grid, Level) else None
    if solver is not None and step is None:
        changes["sampler"] = solver
    if grid is not None and levels is None:
        changes["grid"] = grid
    if scale is not None:
        changes["guidance"] = scale if isinstance(scale, Mapping | Component) else {"scale": _number(scale)}
    if isinstance(changes.get("sampler"), str):
        changes["sampler"] = {"kind": changes["sampler"]}
    if isinstance(changes.get("grid"), str):
        changes["grid"] = {"kind": changes["grid"]}
    return base.override(changes) if changes else base, step, levels, options


def _number(scale: Any) -> float:
    try:
        return float(scale)
    except (TypeError, ValueError):
        raise InputError(f"guidance is a scale, or settings of guidance; got {scale!r}.") from None
