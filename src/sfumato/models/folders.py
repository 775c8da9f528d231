"""Models in folders: a run directory each, or a system of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sfumato.errors import InputError, check_arguments
from sfumato.models import model as runs
from sfumato.models.cascade import Cascade
from sfumato.models.embeddings import contrast_of, load_embedder
from sfumato.models.model import Model
from sfumato.models.prior import with_embedder
from sfumato.models.storage import System, is_system, read_system, stage_of, trained_stage, write_config, write_system
from sfumato.models.unclip import Unclip
from sfumato.models.weights import write_fitted, write_weights

CLIP = "clip"
"""The name of the contrastive model among the stages of a system."""
LEAST_TRAINED = 0.1
"""The part of its steps after which a model is worth sampling from."""


def hardly_trained(model: Model) -> str:
    """What to say of a model, or of a stage of a system, that is not worth sampling from yet; nothing of others."""
    if model.stages:
        return next(filter(None, map(hardly_trained, model.stages.values())), "")
    steps = model.config.training.steps
    # weights of other programs are of no known step
    if model.run is None or not 0 < model.step < LEAST_TRAINED * steps:
        return ""
    what, train = str(model.run), f"sfumato train --resume {model.run}"
    if model.run.parent.name == "stages" and is_system(folder := model.run.parent.parent):
        what = f"The stage {model.run.name!r} of {folder}"
        train = f"sfumato train --resume {folder} --stage {model.run.name}, or take a stage alone, such as {model.run}"
    return f"{what} was hardly trained, {model.step:,} of {steps:,} steps; go on with: {train}."


def load(
    run: str | Path,
    device: str | torch.device = "cpu",
    *,
    trust: bool = False,
    network: Any = None,
    untrained: bool = False,
) -> Model:
    """The model of a run directory, or the system of several in a folder, with averaged weights, ready to sample.

    ::

        model = sfumato.load("runs/digits")
        images = model.sample(64, seed=0)

    Args:
        run: the run directory, or the folder of a system.
        device: where the weights go.
        trust: whether Python code of other packages that the run names, such as an own network, may be imported.
        network: an own network for the weights, or what makes it, where the run could not name how it is made.
        untrained: whether a system is taken though one of its stages was hardly trained.
    """
    check_arguments(load, locals())
    if not is_system(run):
        return with_embedder(runs.load(run, device, trust=trust, network=network))
    if network is not None:
        raise InputError(
            f"{run} is a system, and a network is that of one stage: load each, and make a Cascade of them."
        )
    folder, stages = Path(run), dict[str, Model]()
    system = read_system(folder)
    for name in system.stages:
        path = trained_stage(folder, name)
        stage = runs.load(path, device, trust=trust)
        if not untrained and (sentence := hardly_trained(stage)):
            raise InputError(sentence)
        stages[name] = stage
    if system.system != "unclip":
        return Cascade(stages, run=folder)
    place = next(iter(stages.values())).config.data.embedder
    if CLIP in system.before or place is None:
        place = trained_stage(folder, CLIP)
    if not (place / "config.json").is_file():
        raise InputError(f"{place} is not there, with whose embeddings {folder} was trained.")
    return Unclip(stages, load_embedder(place, device, trust=trust), run=folder)


def save(model: Model, run: str | Path, *, overwrite: bool = False) -> None:
    """Write a model into a folder, for :func:`load`: ``config.json``, ``model.safetensors`` and ``fitted.json``.

    A system is written as a folder of its stages.

    Args:
        model: the model.
        run: the folder.
        overwrite: replace the model that is there.
    """
    check_arguments(save, locals())
    run = Path(run)
    if ((run / "config.json").exists() or is_system(run)) and not overwrite:
        raise InputError(f"{run} holds a model already; replace it with overwrite=True, or choose another folder.")
    if is_system(run) if not model.stages else (run / "config.json").exists():
        raise InputError(f"{run} holds a model of another kind; choose another folder.")
    if model.stages:
        # one that transformers saved stays where it is
        embedder = model.embedder if isinstance(model, Unclip) else None
        own = {CLIP: embedder} if embedder is not None and not contrast_of(embedder).resizes else {}
        for name, stage in {**own, **model.stages}.items():
            save(stage, stage_of(run, name), overwrite=overwrite)
        usual = "unclip" if isinstance(model, Unclip) else "cascade"
        kind = read_system(model.run).system if model.run is not None and is_system(model.run) else usual
        write_system(run, System(system=kind, before=tuple(own), stages=tuple(model.stages)))
        return
    if not model.configured:
        raise InputError(
            "This model was made around a denoiser, and does not know how it is made again; train or build it from a "
            "configuration (Model.build(config, info, network=...)) to save it."
        )
    write_config(run, model.config, model.info)
    write_weights(run, model.module, model.step)
    save_fitted(model, run)


def save_fitted(model: Model, run: Path) -> None:
    """Write what was fitted to the weights of a model, if anything was."""
    if model.fitted.gamma is not None or model.fitted.solvers:
        write_fitted(run, model.fitted, model.fingerprint, model.step)
