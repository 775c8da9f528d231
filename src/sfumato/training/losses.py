"""Losses: modules from a batch and its random numbers to one loss per sample.

A loss is any module with ``forward(batch, draws) -> (B,)``. What is trained is its attribute ``model``, or itself if it
has none; its buffers and extra state (:meth:`torch.nn.Module.get_extra_state`, a dict of tensors) are kept in the
checkpoints. A loss whose attribute ``adaptive`` is True also has ``importance(draws) -> (B,)``, by which its losses are
multiplied, and ``observe(draws, losses)``, which is called after each step with the losses of the whole batch. A loss
may have ``report(batch, draws) -> dict[str, float]``: what is logged of held-out data in place of its mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from sfumato.conditioning.base import Condition, altered, take, training_tensors
from sfumato.conditioning.network import Conditioned
from sfumato.data import Batch
from sfumato.diffusion import parameterization
from sfumato.diffusion.classifier import NoisyClassifier
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.level import Level
from sfumato.diffusion.objective import training_loss
from sfumato.diffusion.times import Balanced, Times, Uniform
from sfumato.diffusion.weighting import OutputWeight, Weight, simple
from sfumato.errors import InputError
from sfumato.networks.layers import Dropout
from sfumato.random import Draws

LEVELS = 8
"""The noise levels of which a loss reports."""


class AtLevels(nn.Module):
    """What losses at random noise levels share: their times, and what these learn of the losses.

    Args:
        times: the distribution of the noise levels.
        stratified: spread the times of a batch evenly.
    """

    def __init__(self, times: Times, *, stratified: bool = True) -> None:
        super().__init__()
        self.times, self.stratified, self.adaptive = times, stratified, times.adaptive

    def uniforms(self, draws: Draws) -> Float64[Tensor, "batch"]:
        return draws.stratified("time") if self.stratified else draws.uniform("time")

    def forward(self, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        return self.at(self.times.sample(self.uniforms(draws)), batch, draws)

    def at(self, level: Level, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        """The losses at a level."""
        raise NotImplementedError

    @torch.no_grad()
    def report(self, batch: Batch, draws: Draws) -> dict[str, float]:
        """The mean loss at levels evenly spread over the times, each named by its log-SNR, and the mean of these.

        The same with the conditions of other images (:meth:`exchanged`) is ``heldout_loss shuffled``: as long as the
        conditions are not used it is no higher.
        """
        values: dict[str, float] = {}
        for title, images in (("heldout_loss", batch), ("heldout_loss shuffled", self.exchanged(batch))):
            if images is None:
                continue
            values[title] = 0.0
            for level, name in self.spread(len(batch.x0)):
                value = float(self.at(level, images, draws).mean())
                values[title] += value / LEVELS
                values[f"{title} at {name}"] = value
        return values

    def exchanged(self, batch: Batch) -> Batch | None:
        """The same images, each with the conditions of the one before it; None if the data give no conditions."""
        return None

    def spread(self, count: int) -> Iterator[tuple[Level, str]]:
        """Levels for ``count`` samples, evenly spread over the times, each with the name of its log-SNR."""
        for i in range(LEVELS):
            level = self.times.sample(torch.full((count,), (i + 0.5) / LEVELS, dtype=torch.float64))
            yield level, f"log-SNR {float(torch.as_tensor(level.log_snr)[0]):.1f}"

    def importance(self, draws: Draws) -> Float64[Tensor, "batch"]:
        return self.times.weight(self.uniforms(draws))

    def observe(self, draws: Draws, losses: Float[Tensor, "batch"]) -> None:
        self.times.observe(self.uniforms(draws), losses)

    def get_extra_state(self) -> dict[str, Tensor]:
        return self.times.state_dict()

    def set_extra_state(self, state: Any) -> None:
        """Take up the state of the distribution of times."""
        self.times.load_state_dict(cast("Mapping[str, Tensor]", state))


class Denoising(AtLevels):
    """The denoising loss (:func:`~sfumato.diffusion.objective.training_loss`) at random times.

    Args:
        denoiser: the denoiser to train.
        times: the distribution of the noise levels; uniform times by default.
        weight: the weighting of the squared error of the noise; by default every error of the network's output counts
            alike, or every error of the noise where the output is noise or score.
        conditions: the conditions by name; by default those of a :class:`~sfumato.conditioning.network.Conditioned`
            network.
        stratified: spread the times of a batch evenly (Kingma et al. 2021, app. I.1), which lowers the variance.
        bins: number of values that a pixel can take, at least 2; a learned variance or schedule is trained by the
            likelihood of these.
        power: of the errors that are minimized: 2 for squared errors, 1 for absolute ones.
        balance: divide each loss by the mean loss at its noise level, so that all levels count alike and the weight
            hardly matters (:class:`~sfumato.diffusion.times.Balanced`).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: Times | None = None,
        weight: Weight | None = None,
        conditions: Mapping[str, Condition] | None = None,
        *,
        stratified: bool = True,
        bins: int = 256,
        power: Literal[1, 2] = 2,
        balance: bool = False,
    ) -> None:
        times = times or Uniform(denoiser.schedule)
        super().__init__(Balanced(times) if balance else times, stratified=stratified)
        if bins < 2:
            raise InputError(f"objective.bins is {bins}; a pixel can take at least 2 values.")
        self.model = denoiser
        unit = denoiser.parameterization in (parameterization.eps, parameterization.score)
        self.weight = weight or (simple if unit else OutputWeight(denoiser.parameterization))
        if conditions is None:
            conditions = denoiser.network.conditions if isinstance(denoiser.network, Conditioned) else {}
        self.conditions = dict(conditions)
        self.bins, self.power = bins, power
        self._dropout = has_dropout(denoiser)

    def exchanged(self, batch: Batch) -> Batch | None:
        """As of all losses; images that a condition adds as channels, such as low-resolution ones, stay."""
        shape = tuple(batch.x0.shape[1:])
        moved = {
            column
            for condition in self.conditions.values()
            if condition.columns and not condition.slots(shape).channels
            for column in condition.columns
        }
        if not moved or len(batch.x0) < 2:
            return None
        return replace(batch, cond={n: rows.roll(1, 0) if n in moved else rows for n, rows in batch.cond.items()})

    def at(self, level: Level, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        """The losses at a level, in evaluation mode of the images as they are."""
        noise = draws.normal("noise", batch.x0.shape[1:])
        x0 = altered(self.conditions, batch.x0, draws) if self.training else batch.x0
        cond = training_tensors(self.conditions, x0, batch.cond, draws, evaluation=not self.training)
        if self._dropout:
            cond["keys"] = draws.keys()
        return training_loss(self.model, x0, level, noise, self.weight, bins=self.bins, power=self.power, **cond)


class Classification(AtLevels):
    """The cross entropy of a classifier of noisy data at random times (Dhariwal and Nichol 2021, sec. 4 and app. H).

    Args:
        classifier: the classifier to train.
        column: the column of the data that holds the classes.
        times: the distribution of the noise levels; uniform times by default.
    """

    def __init__(self, classifier: NoisyClassifier, column: str = "label", *, times: Times | None = None) -> None:
        super().__init__(times or Uniform(classifier.schedule))
        self.model, self.column = classifier, column
        self._dropout = has_dropout(classifier)

    def at(self, level: Level, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        return functional.cross_entropy(*self._judged(level, batch, draws), reduction="none")

    @torch.no_grad()
    def report(self, batch: Batch, draws: Draws) -> dict[str, float]:
        """The loss as any, and the accuracy at the same levels."""
        values = super().report(batch, draws) | {"heldout_accuracy": 0.0}
        for level, name in self.spread(len(batch.x0)):
            logits, classes = self._judged(level, batch, draws)
            value = float((logits.argmax(1) == classes).float().mean())
            values["heldout_accuracy"] += value / LEVELS
            values[f"heldout_accuracy at {name}"] = value
        return values

    def _judged(self, level: Level, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The logits of the batch with noise, and its classes."""
        x = diffuse(batch.x0, level, draws.normal("noise", batch.x0.shape[1:]))
        keys = {"keys": draws.keys()} if self._dropout else {}
        return self.model(x, level, **keys), take(batch.cond, self.column)


def has_dropout(module: nn.Module) -> bool:
    """Whether a module has dropout layers that need keys."""
    return any(isinstance(layer, Dropout) and layer.rate > 0.0 for layer in module.modules())
