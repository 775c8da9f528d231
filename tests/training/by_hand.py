"""A training of the digits made of its parts, without a configuration."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from sfumato.data import Dataset, Loader, load
from sfumato.diffusion import parameterization
from sfumato.diffusion.denoiser import Denoiser, embed_thousand
from sfumato.diffusion.parameterization import Parameterization
from sfumato.diffusion.schedule import ContinuousCosine, Schedule
from sfumato.diffusion.times import Times
from sfumato.diffusion.weighting import Weight
from sfumato.networks.unet import UNet
from sfumato.training.ema import power_law
from sfumato.training.loop import Trainer
from sfumato.training.losses import Denoising
from sfumato.training.optimization import adamw, learning_rate_schedule


def digits(labels: bool = False) -> Dataset:
    whole = load("digits")
    return whole if labels else Dataset(whole.images, name="digits")


def denoiser(
    schedule: Schedule | None = None, read: Parameterization = parameterization.v, *, learned: bool = False, **unet: Any
) -> Denoiser:
    """A small U-Net, with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options: dict[str, Any] = {"channels": (8, 8), "blocks": 1, "groups": 4, "embedding": 16, **unet}
        network = UNet(1, 2 if learned else 1, **options)
    schedule = schedule or ContinuousCosine()
    return Denoiser(network, schedule, read, embed_thousand, learned_variance=learned, data_std=0.75)


def trainer(
    model: Denoiser | None = None,
    times: Times | None = None,
    weight: Weight | None = None,
    *,
    rate: float = 1e-3,
    stratified: bool = True,
    data: Any = None,
    **options: Any,
) -> Trainer:
    model = model or denoiser()
    return Trainer(
        Denoising(model, times, weight, stratified=stratified),
        Loader(digits(), 0) if data is None else data,
        optimizer=adamw(model),
        learning_rate=learning_rate_schedule(rate, 100, warmup=5),
        ema=power_law(6.0),
        accelerator=Accelerator(cpu=True),
        **{"batch_size": 32, **options},
    )
