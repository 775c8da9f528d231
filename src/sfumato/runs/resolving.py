"""The configuration of a training, from what is given of it, and what of it a run that is resumed may change."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.config import Config, merge, parse
from sfumato.config.component import settings_of
from sfumato.data import Dataset
from sfumato.errors import InputError, SfumatoWarning
from sfumato.models.data import GIVEN
from sfumato.recipes import named
from sfumato.runs.budget import has_gpu


def resolved(
    config: Config | Mapping[str, Any] | str | None,
    data: Dataset | None,
    network: Any,
    changes: Mapping[str, Any],
    trust: bool,
) -> tuple[Config, nn.Module | None]:
    """The configuration, with what the data and the network in Python say of themselves; and a module that is given."""
    if not isinstance(config, Config):
        if config is None or isinstance(config, str):
            layout = "NC" if data is not None and len(data.shape) == 1 else None
            config = named(config, None if data is None else data.name, layout, gpu=has_gpu())
        config = parse(Config, config, trust=trust)
    over: dict[str, Any] = dict(changes)
    if data is not None:
        over = merge({"data": {"source": f"{GIVEN}{data.name}"}}, over)
    if network is not None:
        if not isinstance(network, str | Mapping):
            network, settings = _described(network)
        else:
            settings, network = {"kind": network} if isinstance(network, str) else network, None
        over = merge(over, {"model": {"network": settings}})
    return (config.override(over) if over else config), network


def _described(network: Any) -> tuple[nn.Module | None, Mapping[str, Any]]:
    """A network as a module, if it has to be one, and the settings that make it again."""
    if not callable(network):
        raise InputError(f"A {type(network).__name__} is no network; give a torch module, or what makes one.")
    try:
        settings = settings_of(network, "network")
        return network if isinstance(network, nn.Module) else None, settings
    except InputError as error:
        why = error
    try:
        module: Any = network if isinstance(network, nn.Module) else network()
    except TypeError:
        raise why from None
    sentence = f"The run can't make its network again: to load or resume it, pass it again. {why}"
    warnings.warn(sentence, SfumatoWarning, stacklevel=4)
    return module, {"kind": "given"}


def default_name(config: Config) -> str:
    """The name of a run: that of its data, with what is trained on them where they are not generated."""
    name = Path(config.data.source.removeprefix(GIVEN).removeprefix("hf:").partition(":")[0]).stem or "run"
    if config.classifies:
        return f"{name}-classifier"
    low = [one for one in config.conditions.values() if one.kind == "low_resolution" and one.column is None]
    return f"{name}-x{low[0].factor}" if low else name


def check_same(stored: Config, wanted: Config, model: set[str]) -> None:
    """An error if settings that decide the weights differ, but for these of the model."""
    training = "steps checkpoint_every keep sample_every sample_count log_every tracker threads"
    free = {"data": {"workers", "cache"}, "model": model, "training": set(training.split())}
    for group in ("data", "conditions", "model", "objective", "optimizer", "ema", "training"):
        old, new = stored.model_dump()[group], wanted.model_dump()[group]
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k) and k not in free.get(group, ())]
        if changed:
            raise InputError(
                f"{group}.{changed[0]} differs from that of the run; leave it out, or start another run (from the "
                "weights of this one: --init-from, or training.init_from)."
            )
