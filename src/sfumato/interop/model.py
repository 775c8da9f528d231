"""A model of settings alone, ready to take the weights of others."""

from __future__ import annotations

import shutil
from pathlib import Path

from sfumato.conditioning.encoders import Conditioned
from sfumato.config import Config, ModelConfig, ObjectiveConfig, OutputWeight, SamplingConfig, Simple
from sfumato.config.schedule import has_empty_step
from sfumato.errors import InputError
from sfumato.models.model import Model, save
from sfumato.models.storage import Facts, read_config, write_config
from sfumato.networks.unet import UNet


def model_of(
    config: ModelConfig, shape: tuple[int, ...], classes: int, sampling: SamplingConfig, std: float = 0.5
) -> Model:
    """A model whose training is not known here: of its data it knows the shape and the number of classes.

    Raises:
        InputError: if the settings do not go together.
    """
    facts = Facts(
        shape=shape,
        classes=tuple(map(str, range(classes))),
        frequencies=(1.0 / classes,) * classes if classes else (),
        std=std,
        train=0,
        heldout=0,
    )
    # of the training nothing is known; but where no data are left, an error of the noise could not be a loss
    weight = OutputWeight() if has_empty_step(config.schedule) else Simple()
    whole = Config(model=config, sampling=sampling, objective=ObjectiveConfig(weight=weight))
    model = Model(whole, facts)
    model.denoiser.eval()
    return model


def unet_of(model: Model) -> UNet:
    """The U-Net of a model, without the encoders of its conditions."""
    network = model.denoiser.network
    network = network.network if isinstance(network, Conditioned) else network
    assert isinstance(network, UNet)
    return network


def save_run(model: Model, run: str | Path, *, overwrite: bool = False) -> None:
    """Write a model as a run directory, which ``sfumato sample`` and :func:`sfumato.load` take.

    Its configuration is that of the network, not of its training, which is not known.

    Args:
        model: the model.
        run: the run directory.
        overwrite: delete a run that is there.

    Raises:
        InputError: if something is there already.
    """
    run = Path(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        if not overwrite:
            raise InputError(f"{run} is there already; replace it with overwrite, or choose another run directory.")
        read_config(run)
        shutil.rmtree(run)
    write_config(run, model.config, model.facts)
    save(model, run, model.denoiser.state_dict())
