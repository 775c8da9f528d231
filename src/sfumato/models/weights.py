"""The weights of a stored model, what was fitted to them, and how an own network is made again."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.config import Component
from sfumato.config.signature import CONTEXT
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import read_tensors, write_json, write_tensors
from sfumato.models.storage import FORMAT
from sfumato.sampling.fitted_solver import Fitted
from sfumato.training.checkpoint import Checkpoints


def write_weights(run: Path, module: nn.Module, step: int, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write ``model.safetensors``: the state of a module with ``weights`` in the place of its own."""
    write_tensors(
        run / "model.safetensors", {**module.state_dict(), **(weights or {})}, {"format": FORMAT, "step": step}
    )


def read_weights(run: Path, module: nn.Module) -> int:
    """Load the averaged weights of a run into a module; returns the step that they are of."""
    try:
        weights, meta = read_tensors(run / "model.safetensors")
    except InputError as error:
        state = Checkpoints(run / "checkpoints").latest()
        if state is None:
            raise InputError(f"{run} holds no trained model yet. {error}") from None
        tensors, meta = state
        weights = {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}
        if (run / "model.safetensors").exists():
            warnings.warn(f"{error} Using the checkpoint of step {meta['step']}.", SfumatoWarning, stacklevel=3)
    expected: dict[str, Tensor] = module.state_dict()
    learned = {name for name, _ in module.named_parameters()}
    # a buffer that is missing, as in checkpoints, is what the configuration says
    odd = sorted((learned - weights.keys()) | (weights.keys() - expected.keys()))
    odd += [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    if odd:
        raise InputError(f"The weights in {run} are of another model: {len(odd)} differ, the first is {odd[0]!r}.")
    with torch.no_grad():
        for name, value in weights.items():
            expected[name].copy_(value)
    return int(meta.get("step", 0))


def write_fitted(run: Path, fitted: Fitted, fingerprint: str, step: int) -> None:
    """Write ``fitted.json``: what was fitted to weights, with their step and fingerprint."""
    write_json(run / "fitted.json", {"format": FORMAT, "step": step, "weights": fingerprint, **fitted.to_dict()})


def read_fitted(run: Path, fingerprint: str, step: int) -> Fitted:
    """What :func:`write_fitted` wrote, if it is of these weights."""
    path = run / "fitted.json"
    if not path.is_file():
        return Fitted()
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        fitted, of = Fitted.from_dict(values), int(values["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} can't be read ({error}); delete it and fit again: sfumato tune {run}") from None
    same = of == step and values.get("weights") in (None, fingerprint)
    return fitted if same else Fitted(stale=of)


def fingerprint(config: Component, module: nn.Module) -> str:
    """A hash of weights and of what they mean, to tell them from those of another model."""
    digest = hashlib.sha256(json.dumps(_changed(config), default=str).encode())
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _changed(config: Component) -> dict[str, Any]:
    """The settings that differ from their defaults: a setting that a later version adds changes nothing of it."""
    changed: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name == "kind" or value != field.get_default(call_default_factory=True):
            changed[name] = _changed(value) if isinstance(value, Component) else value
    return changed


def settings_of(network: Any) -> dict[str, Any]:
    """How a network is made again: its kind ``"package.module:Class"`` and its arguments.

    They are read from a ``functools.partial`` that makes the network, or from the attributes that have the names of the
    arguments. Where one of them is not known or no plain value, the kind is ``"given"``: then :func:`load` needs
    ``network=``.
    """
    given: dict[str, Any] = {"kind": "given"}
    maker = getattr(network, "func", type(network))
    signature = inspect.signature(maker)
    bound = None
    if hasattr(network, "func"):
        bound = signature.bind_partial(*network.args, **network.keywords).arguments
    if maker.__module__ == "__main__" or "<locals>" in maker.__qualname__:
        return given
    settings: dict[str, Any] = {"kind": f"{maker.__module__}:{maker.__qualname__}"}
    unknown = object()
    for name, parameter in signature.parameters.items():
        value = getattr(network, name, unknown) if bound is None else bound.get(name, parameter.default)
        if name in CONTEXT and (bound is None or name not in bound):
            # such as the number of channels, which the data decide
            continue
        if name in CONTEXT or not (isinstance(value, bool | int | float | str | tuple | list) or value is None):
            return given
        settings[name] = value
    return settings
