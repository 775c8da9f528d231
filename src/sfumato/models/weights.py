"""The weights of a stored model, what was fitted to them, and how an own network is made again."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioning.contrast import Contrast
from sfumato.config import Component, Config
from sfumato.diffusion.classifier import NoisyClassifier
from sfumato.diffusion.denoiser import Denoiser
from sfumato.errors import InputError, SfumatoWarning, nearest
from sfumato.io.files import read_json, write_json
from sfumato.io.tensors import read_tensors, write_tensors
from sfumato.models.storage import FORMAT, Info, read_config
from sfumato.sampling.fitted_solver import Fitted
from sfumato.training.checkpoint import Checkpoints

Trained = Denoiser | NoisyClassifier | Contrast
"""What a run can hold."""


def build_module(config: Config, info: Info, network: nn.Module | None = None) -> Trained:
    """What a configuration trains, with fresh weights or around a ``network`` of the caller's."""
    if config.classifies:
        return config.model.build_classifier(info.shape, len(info.classes), info.std, network=network)
    conditions = {name: condition.build() for name, condition in info.conditions.items()}
    build = config.model.build_contrast if config.contrasts else config.model.build
    return build(info.shape, conditions, info.std, network=network)


def read_module(
    run: Path, device: str | torch.device, *, trust: bool = False, network: nn.Module | None = None
) -> tuple[Config, Info, Trained, int]:
    """What a run directory holds: its configuration, what it knows of its data, the module with averaged weights, and
    the step that they are of."""
    config, info = read_config(run, trust=trust, network=network is not None)
    module = build_module(config, info, network)
    if config.training.channels_last:
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    step = read_weights(run, module)
    return config, info, module.to(device), step


def write_weights(run: Path, module: nn.Module, step: int, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write ``model.safetensors``: the state of a module with ``weights`` in the place of its own.

    A weight that has several names, as in networks that tie weights, is written under the first.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    first = dict(module.named_parameters())
    state = {name: value for name, value in module.state_dict().items() if name not in parameters or name in first}
    write_tensors(run / "model.safetensors", {**state, **(weights or {})}, {"format": FORMAT, "step": step})


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
    if wild := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise InputError(
            f"The weights in {run} are not finite ({len(wild)} tensors, first {wild[0]!r}): nothing can be sampled "
            "with them. Train again with a lower optimizer.learning-rate, or resume from an older checkpoint."
        )
    with torch.no_grad():
        for name, value in weights.items():
            expected[name].copy_(value)
    return int(meta.get("step", 0))


def start_from(run: Path, module: nn.Module, frozen: Collection[str] = ()) -> list[str]:
    """Take the averaged weights of a run for the start of another training; returns the names of what stays fresh.

    That is what has no weight of its name and shape in the run, such as the table of other classes; most must have one.
    Parts that are ``frozen`` must be there, and are all that is taken from a run of another network.
    """

    def plain(name: str) -> str:
        # a network with conditions is inside another module
        return name.replace("network.network.", "network.", 1)

    weights = {plain(name): value for name, value in read_tensors(run / "model.safetensors")[0].items()}
    if isinstance(module, Contrast):
        # the encoder of its one condition
        weights |= {re.sub(r"^network\.encoders\.\w+\.", "encoder.", name): one for name, one in weights.items()}
    parameters = {plain(name): parameter for name, parameter in module.named_parameters()}
    known = [name for name, value in parameters.items() if name in weights and weights[name].shape == value.shape]
    kept = {plain(name) for name in frozen}
    if lacking := kept - set(known):
        raise InputError(f"{run} has no weights for what is to be frozen, such as {min(lacking)}.")
    is_other = 2 * len(known) < len(parameters)
    known = [name for name in known if name in kept] if kept and is_other else known
    if not frozen and is_other:
        raise InputError(
            f"{run} has weights of another network: only {len(known)} of {len(parameters)} tensors have its names and "
            "shapes; train with the same model settings."
        )
    with torch.no_grad():
        for name in known:
            parameters[name].copy_(weights[name])
    return sorted(parameters.keys() - set(known))


def freeze(module: nn.Module, parts: Sequence[str]) -> list[str]:
    """Keep parts of a model, such as ``text.layout``, out of its training; returns the names of their weights."""

    def within(name: str, part: str) -> bool:
        return f".{part}." in f".{name}."

    names = [name for name, _ in module.named_parameters()]
    for part in parts:
        if not any(within(name, part) for name in names):
            raise InputError(f"training.freeze: the model has no weights in {part!r}{nearest(part, names)}")
    frozen = [name for name in names if any(within(name, part) for part in parts)]
    if len(frozen) == len(names):
        raise InputError("training.freeze: nothing is left to train.")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return frozen


def write_fitted(run: Path, fitted: Fitted, fingerprint: str, step: int) -> None:
    """Write ``fitted.json``: what was fitted to weights, with their step and fingerprint."""
    write_json(run / "fitted.json", {"format": FORMAT, "step": step, "weights": fingerprint, **fitted.to_dict()})


def read_fitted(run: Path, fingerprint: str, step: int) -> Fitted:
    """What :func:`write_fitted` wrote, if it is of these weights."""
    path = run / "fitted.json"
    if not path.is_file():
        return Fitted()
    try:
        values = read_json(path)
        fitted, of = Fitted.from_dict(values), int(values["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        sentence = f"{path} is damaged and skipped ({error}); fit again with: sfumato tune {run}"
        warnings.warn(sentence, SfumatoWarning, stacklevel=3)
        return Fitted()
    same = of == step and values.get("weights") in (None, fingerprint)
    return fitted if same else Fitted(stale=of)


def fingerprint(config: Component, module: nn.Module) -> str:
    """A hash of weights and of what they mean, to tell them from those of another model.

    How a network of another package is made is left out: its weights say which it is.
    """
    meaning = _changed(config)
    if ":" in config.network.kind or config.network.kind == "given":
        del meaning["network"]
    digest = hashlib.sha256(json.dumps(meaning, default=str).encode())
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
