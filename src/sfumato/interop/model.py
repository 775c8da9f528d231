"""Models of other programs as models of ours: all that the rest of this package needs of configurations and runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

import sfumato
from sfumato.conditioning import Conditioned
from sfumato.conditioning.base import Condition, keyed
from sfumato.conditioning.labels import LabelEncoder
from sfumato.conditioning.network import filled
from sfumato.config import Config, ModelConfig, parse
from sfumato.errors import InputError
from sfumato.interop.weights import require_fit
from sfumato.models.folders import save
from sfumato.models.model import Model
from sfumato.models.storage import Info, read_config
from sfumato.networks.unet import UNet
from sfumato.recipes.settings import Published

_WIDEST = 2**16


def build_model(published: Published, state: Mapping[str, Tensor]) -> Model:
    """A model whose training is not known: of its data it knows the shape and what its conditions need.

    Args:
        published: what it is.
        state: the weights that it will get, which say how large it may be.
    """
    channels, *sides = published.shape
    if max(sides) > _WIDEST:
        raise InputError(f"The images are {max(sides):.3g} pixels wide or high; at most {_WIDEST} are possible.")
    require_fit(
        {"channels of the images": channels, "classes": published.classes, **published.model["network"]},
        state,
        lambda: parse(ModelConfig, published.model).build_network(published.shape),
    )
    conditions = published.described
    settings = {
        "conditions": conditions,
        "model": published.model,
        "sampling": published.sampling,
        "objective": {"weight": {"kind": "output"}},
    }
    info = Info(shape=published.shape, std=0.5, conditions=conditions)
    model = Model.build(parse(Config, settings, origin="the settings of the model"), info)
    model.denoiser.eval()
    return model


def drops_labels(model: Model) -> bool:
    """Whether a model was also trained without labels, so that it knows what none is."""
    return "label" in model.conditions and model.conditions["label"].drop > 0.0


def unet_of(network: nn.Module) -> UNet:
    """The U-Net of a network, without the encoders of its conditions."""
    network = network.network if isinstance(network, Conditioned) else network
    assert isinstance(network, UNet)
    return network


def label_table(network: nn.Module) -> Tensor | None:
    """The vectors of the labels of a network, that of no label first; None for a network without labels."""
    encoder = dict(network.encoders.items()).get("label") if isinstance(network, Conditioned) else None
    return encoder.table.weight if isinstance(encoder, LabelEncoder) else None


def conditions_of(network: nn.Module) -> dict[str, Condition]:
    """The conditions of a network by name."""
    return network.conditions if isinstance(network, Conditioned) else {}


def null_conditions(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of the conditions of a network by name, each with its null value for one sample."""
    conditions = conditions_of(network).items()
    return {key: null for name, c in conditions for key, null in keyed(name, c, c.missing(1)).items()}


def raw_slots(model: Model) -> tuple[str, ...]:
    """The slots of a network that no condition fills, and for which there is no null value."""
    network = model.denoiser.network
    if not isinstance(network, Conditioned):
        return ()
    here = filled(network.conditions, model.info.shape)
    free = {"tokens": here.tokens is None, "mask": here.tokens is None, "channels": here.channels == 0}
    return tuple(name for name in network.slots.names if free.get(name, False))


_TIMES = {
    "index": "the index of the step, from 0",
    "thousand": "1000 t, where t is from 0 to 1",
    "log_snr": "log(alpha^2 / sigma^2) / 4",
    "log_sigma": "log(sigma / alpha) / 4",
}


def description(model: Model) -> str:
    """What a file of the network says of it, as JSON: how and on what it was trained, and how to call it."""
    return json.dumps(
        {
            "sfumato": sfumato.__version__,
            "step": model.step,
            "data": model.info.model_dump(mode="json"),
            "config": model.config.model_dump(mode="json"),
            "inputs": {
                "x": "c_in x_t, with the c_in of the parameterization",
                "time": f"one number per sample, {_TIMES[model.config.model.embedding]}",
                **dict.fromkeys(null_conditions(model.denoiser.network), "a condition"),
            },
        }
    )


def save_run(model: Model, run: str | Path, *, overwrite: bool = False) -> None:
    """Write a model as a run directory, which ``sfumato sample`` and :func:`sfumato.load` take.

    Its configuration is that of the network, not of its training, which is not known.

    Args:
        model: the model.
        run: the run directory.
        overwrite: delete a run that is there.
    """
    run = Path(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        if not overwrite:
            raise InputError(f"{run} already exists; replace it with overwrite, or choose another run directory.")
        read_config(run)
        shutil.rmtree(run)
    save(model, run)
