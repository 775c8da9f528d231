"""Fitting to a trained model what samples and bounds gain from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sfumato import random
from sfumato.data import Dataset, Loader
from sfumato.diffusion.denoiser import Denoise, Denoiser
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.diffusion.variance import Batch, Estimator, estimate
from sfumato.errors import InputError, check_arguments
from sfumato.io.progress import Progress, progress_bar
from sfumato.models.cascade import one_stage
from sfumato.models.data import data_of, examples, given_data, training_data
from sfumato.models.folders import save_fitted
from sfumato.models.model import Model, load
from sfumato.random import Draws
from sfumato.sampling import fitting
from sfumato.sampling.fitted_solver import Fitted

_MOST_LOG_SNR = 14.0
"""How near to the data Gamma is known: a noise of a thousandth of their unit, less than any grid's last level."""

_LEAST_LOG_SNR = -20.0
"""Where a schedule that ends at ``alpha = 0`` is left: data of unit scale have 5e-5 of theirs there."""


def tune(
    model: Model | Denoise | str | Path,
    data: Any = None,
    *,
    images: int = 500,
    levels: int = 100,
    estimator: Estimator = "error",
    seed: int = 0,
    steps: int | None = None,
    coefficients: bool = True,
    noises: int = 256,
    trust: bool = False,
    progress: Progress = None,
) -> Fitted:
    """Fit to a model what samples and bounds gain from, as ``sfumato tune`` does.

    It becomes part of the model, and ``fitted.json`` of its run if it has one, beside what is there. By default it is
    Gamma (Bao et al. 2022), estimated in one pass over training images: the optimal reverse variance follows from it
    on every grid. With ``steps`` it is the grid of so many steps, and the weights of a solver on it, that lead from
    noise to nearly the same images as very many steps do (:func:`sfumato.sampling.fitting.fit`); with the
    configuration's guidance and clipping.

    ::

        sfumato.tune(model, steps=10)
        images = model.sample(64, steps=10, solver="best", grid="best")  # which uses what was fitted

    Args:
        model: a model, its run directory, or any denoiser with a schedule; what is fitted to a denoiser is returned.
        data: for Gamma, the training images, as :meth:`sfumato.data.Dataset.of` takes them; by default those of the
            run. For a grid of a denoiser, images of their shape.
        images: for Gamma, how many training images, at most all of them.
        levels: for Gamma, at how many levels, evenly spread in log-SNR over the schedule.
        estimator: for Gamma, from the squared error of the estimates of the data, clipped where samples are (error), or
            from the norm of the predicted noise as published (norm), which says nothing where almost all is noise.
        seed: which noise. Images of a seed have other noise, also of the same.
        steps: how many steps a grid is fitted for.
        coefficients: whether the weights are fitted with the grid, or those of a usual solver are kept.
        noises: from how many noises a grid is fitted.
        trust: for a run directory, as for :func:`sfumato.load`.
        progress: called with the number of images, or of iterations, that are done.
    """
    check_arguments(tune, locals())
    given = None if data is None else given_data(data)
    if isinstance(model, str | Path):
        model = load(model, trust=trust)
    elif not isinstance(model, Model):
        if given is None:
            raise InputError("A denoiser does not know its data; pass them: tune(denoiser, data).")
        model = Model(model, given[0].shape)
    one_stage(model, "Tuning")
    model.require_denoiser()
    if steps is not None:
        return _tune_grid(model, steps, coefficients, noises, seed, progress, given)
    if images < 1 or levels < 2:
        raise InputError(f"Gamma needs at least 1 image and 2 levels; got {images} and {levels}.")
    loader, _ = training_data(model.config, given or data_of(model))
    count = min(images, len(loader.dataset))
    was_training = model.module.training
    model.module.eval()
    batches = _batches(model, loader, count)
    with progress_bar("estimating Gamma", count, progress) as advance:
        at = _spread(model.denoiser.schedule, levels)
        denoise = model.config.sampling.wrap(model.denoiser) if estimator == "error" else model.denoiser
        gamma = estimate(denoise, batches, at, estimator=estimator, seed=seed, progress=advance)
    model.module.train(was_training)
    return _keep(model, dataclasses.replace(model.fitted, gamma=gamma, stale=None))


def _tune_grid(
    model: Model,
    steps: int,
    coefficients: bool,
    noises: int,
    seed: int,
    progress: Progress,
    data: tuple[Dataset, Dataset] | None,
) -> Fitted:
    fitting.check(steps, noises)
    sampling = model.config.sampling
    if sampling.guidance.classifier is not None:
        raise InputError("A grid is fitted to a model without a classifier; leave sampling.guidance.classifier out.")
    denoise, _, _ = model.sampler(sampling.untuned())
    noise = random.normal(seed, "fitting", 0, noises, model.info.shape).to(model.device)
    given: dict[str, Any] = {}
    if any(condition.default(seed, 0, 1) is None for condition in model.conditions.values()):
        given, _ = examples(model, (data or data_of(model))[0], noises, seed=seed)
    cond = {name: rows.to(model.device) for name, rows in model.given(given, seed, 0, noises).items()}
    if isinstance(model.denoiser, Denoiser):
        # in units of the noise, around what is known of the images
        first = fitting.first_level(model.denoiser.schedule)
        sigma = float(first.sigma)
        noise = model.denoiser.start(noise * sigma, first, **cond) / sigma
    was_training = model.module.training
    model.module.eval()
    known = fitting.examples(denoise, model.denoiser.schedule, noise, cond=cond)
    with progress_bar("fitting", fitting.most_iterations(coefficients), progress) as advance:
        solver = fitting.fit(known, steps, coefficients=coefficients, progress=advance)
    solver = dataclasses.replace(solver, guidance=sampling.guidance.scale)
    model.module.train(was_training)
    solvers = {**model.fitted.solvers, steps: solver}
    return _keep(model, dataclasses.replace(model.fitted, solvers=dict(sorted(solvers.items())), stale=None))


def _keep(model: Model, fitted: Fitted) -> Fitted:
    model.fitted = fitted
    if model.run is not None:
        save_fitted(model, model.run)
    return fitted


def _spread(schedule: Schedule, count: int) -> Level:
    """Levels evenly spread in log-SNR over all that samplers reach; those of a table are the nearest of its steps.

    Below its first step a table is read as samplers read it whose grid ends nearer to the data.
    """
    low = max(float(schedule(1.0).log_snr), _LEAST_LOG_SNR)
    wanted = torch.linspace(low, _MOST_LOG_SNR, count, dtype=torch.float64)
    if not isinstance(schedule, Discrete):
        return schedule.at(wanted)
    steps = torch.as_tensor(schedule.at(wanted).t) * schedule.steps
    times = torch.where(steps < 1.0, steps, steps.round()).unique() / schedule.steps
    kept = schedule(torch.cat([times, torch.tensor([1.0 / schedule.steps], dtype=torch.float64)]).unique())
    return kept[torch.as_tensor(kept.alpha) > 0.0]


def _batches(model: Model, loader: Loader, count: int) -> Iterator[Batch]:
    """Training images with the conditions that they have."""
    size, device = model.config.sampling.batch_size, model.device
    for start in range(0, count, size):
        batch = loader.batch(start, min(size, count - start))
        draws = Draws(model.config.training.seed, start, len(batch.x0), size)
        yield batch.x0.to(device), model.of_data(batch.x0, batch.cond, draws)
