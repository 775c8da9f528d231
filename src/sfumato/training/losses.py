"""Losses: modules from a batch and its random numbers to one loss per sample.

A loss is any module with ``forward(batch, draws) -> (B,)``. What is trained is its attribute ``model``, or itself if it
has none; its buffers and extra state (:meth:`torch.nn.Module.get_extra_state`, a dict of tensors) are kept in the
checkpoints. A loss whose attribute ``adaptive`` is True also has ``importance(draws) -> (B,)``, by which its losses are
multiplied, and ``observe(draws, losses)``, which is called after each step with the losses of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from sfumato.conditioning.base import Condition, altered, take, training_tensors
from sfumato.conditioning.network import Conditioned
from sfumato.data import Batch
from sfumato.diffusion import parameterization
from sfumato.diffusion.denoiser import Denoiser, Embed, embed_thousand
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.level import Level, broadcast
from sfumato.diffusion.objective import training_loss
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.times import Times, Uniform
from sfumato.diffusion.weighting import OutputWeight, Weight, simple
from sfumato.errors import InputError
from sfumato.networks.layers import Dropout
from sfumato.random import Draws


class Denoising(nn.Module):
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
        power: whether errors count by their square (2) or by their size (1).
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
    ) -> None:
        super().__init__()
        if bins < 2:
            raise InputError(f"objective.bins is {bins}; a pixel can take at least 2 values.")
        self.model = denoiser
        self.times = times or Uniform(denoiser.schedule)
        unit = denoiser.parameterization in (parameterization.eps, parameterization.score)
        self.weight = weight or (simple if unit else OutputWeight(denoiser.parameterization))
        if conditions is None:
            conditions = denoiser.network.conditions if isinstance(denoiser.network, Conditioned) else {}
        self.conditions = dict(conditions)
        self.stratified, self.bins, self.power = stratified, bins, power
        self.adaptive = self.times.adaptive
        self._dropout = has_dropout(denoiser)

    def uniforms(self, draws: Draws) -> Float64[Tensor, "batch"]:
        return draws.stratified("time") if self.stratified else draws.uniform("time")

    def forward(self, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        return self.at(self.times.sample(self.uniforms(draws)), batch, draws)

    def at(self, level: Level, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        """The losses at a level, in evaluation mode of the images as they are."""
        noise = draws.normal("noise", batch.x0.shape[1:])
        x0 = altered(self.conditions, batch.x0, draws) if self.training else batch.x0
        cond = training_tensors(self.conditions, x0, batch.cond, draws, evaluation=not self.training)
        if self._dropout:
            cond["keys"] = draws.keys()
        return training_loss(self.model, x0, level, noise, self.weight, bins=self.bins, power=self.power, **cond)

    def importance(self, draws: Draws) -> Float64[Tensor, "batch"]:
        return self.times.weight(self.uniforms(draws))

    def observe(self, draws: Draws, losses: Float[Tensor, "batch"]) -> None:
        self.times.observe(self.uniforms(draws), losses)

    def get_extra_state(self) -> dict[str, Tensor]:
        return self.times.state_dict()

    def set_extra_state(self, state: Any) -> None:
        self.times.load_state_dict(cast("Mapping[str, Tensor]", state))


class NoisyClassifier(nn.Module):
    """The cross entropy of a classifier of noisy images at uniform times (Dhariwal and Nichol 2021, sec. 4).

    Args:
        classifier: called as ``classifier(x, time)``, gives a logit per class; with ``keys`` too if it has dropout.
        schedule: the noise schedule.
        column: the column of the data that holds the classes.
        times: the distribution of the noise levels; uniform times by default.
        embed: the number that stands for the level in ``time``.
    """

    def __init__(
        self,
        classifier: nn.Module,
        schedule: Schedule,
        column: str = "label",
        *,
        times: Times | None = None,
        embed: Embed = embed_thousand,
    ) -> None:
        super().__init__()
        self.model, self.schedule = classifier, schedule
        self.column, self.times, self.embed = column, times or Uniform(schedule), embed
        self._dropout = has_dropout(classifier)

    def forward(self, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        level = self.times.sample(draws.stratified("time"))
        x = diffuse(batch.x0, level, draws.normal("noise", batch.x0.shape[1:]))
        keys = {"keys": draws.keys()} if self._dropout else {}
        return functional.cross_entropy(self.logits(x, level, **keys), take(batch.cond, self.column), reduction="none")

    def logits(self, x: Float[Tensor, "batch *shape"], level: Level, **keys: Tensor) -> Float[Tensor, "batch classes"]:
        """The logits at a level, whose images are scaled to the variance of a schedule that preserves it."""
        alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (level.alpha, level.sigma))
        scale = (alpha.square() + sigma.square()).rsqrt()
        time = torch.as_tensor(self.embed(level), dtype=x.dtype, device=x.device).expand(len(x))
        return self.model(x * broadcast(scale, x), time, **keys)

    def log_prob(self, x: Tensor, level: Level, **cond: Tensor) -> Float[Tensor, "batch"]:
        """The log-probability of the class of each sample: what classifier guidance follows."""
        label = take(cond, self.column, "The sample")
        return self.logits(x, level).log_softmax(1).gather(1, label[:, None])[:, 0]


class Contrastive(nn.Module):
    r"""CLIP's symmetric contrastive loss between images and what describes them (Radford et al. 2021, fig. 3).

    Embeddings of unit length are compared with all others of the batch at a learned inverse temperature; a sample's
    loss is the mean of its two cross entropies. The others are those of the same part of the batch: of this process,
    and of one of ``accumulate`` parts. A batch cut otherwise is another loss.

    Args:
        first: embeds the images ``(B, C, *space)`` as ``(B, features)``.
        second: embeds the columns, given in order, as ``(B, features)``.
        column: the column that describes an image, or several, such as tokens and their mask.
        temperature: the temperature at the start, positive.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        column: str | tuple[str, ...],
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if not temperature > 0.0:
            raise InputError(f"The temperature of a contrastive loss must be positive; got {temperature}.")
        self.first, self.second = first, second
        self.column = (column,) if isinstance(column, str) else column
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, batch: Batch, draws: Draws) -> Float[Tensor, "batch"]:
        columns = [take(batch.cond, name) for name in self.column]
        first = functional.normalize(self.first(batch.x0).float(), dim=1)
        second = functional.normalize(self.second(*columns).float(), dim=1)
        # the paper's bound on the scale, against instability
        logits = self.log_scale.clamp(max=math.log(100.0)).exp() * first @ second.T
        same = torch.arange(len(logits), device=logits.device)
        rows, columns = (functional.cross_entropy(table, same, reduction="none") for table in (logits, logits.T))
        return 0.5 * (rows + columns)


def has_dropout(module: nn.Module) -> bool:
    """Whether a module has dropout layers that need keys."""
    return any(isinstance(layer, Dropout) and layer.rate > 0.0 for layer in module.modules())
