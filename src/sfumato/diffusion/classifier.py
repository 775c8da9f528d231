"""A classifier of noisy data, which guides a denoiser towards a class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.diffusion.denoiser import Embed, embed_thousand
from sfumato.diffusion.level import Data, Level, broadcast, float64
from sfumato.diffusion.schedule import Schedule


class NoisyClassifier(nn.Module):
    r"""A network as :math:`p(y | x_t)`, the probabilities of classes at every noise level (Dhariwal and Nichol 2021).

    Args:
        network: called as ``network(x, time)``, with ``keys`` too if it has dropout; returns a logit per class.
        schedule: the noise schedule.
        embed: maps the level to the number passed as ``time``.
        data_std: the standard deviation of the data, used to scale the network's input to unit variance. With 1 and a
            variance-preserving schedule the network sees ``x`` itself, as published.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, embed: Embed = embed_thousand, *, data_std: float = 1.0
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.embed, self.data_std = network, schedule, embed, data_std

    def with_network(self, network: nn.Module) -> NoisyClassifier:
        """The same classifier around another network, such as a copy in another precision."""
        return NoisyClassifier(network, self.schedule, self.embed, data_std=self.data_std)

    def forward(self, x: Data, level: Level, **keys: Tensor) -> Float[Tensor, "batch classes"]:
        """The class logits at a level with ``sigma > 0``, either one level for the batch or one per sample."""
        alpha, sigma = float64(level.alpha), float64(level.sigma)
        scale = (alpha.square() * self.data_std**2 + sigma.square()).rsqrt()
        time = torch.as_tensor(self.embed(level), dtype=x.dtype).to(x.device, non_blocking=True).expand(len(x))
        return self.network(x * broadcast(scale, x), time, **keys).to(x.dtype)

    def log_prob(self, x: Data, level: Level, label: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """The log-probability of each sample's class, whose gradient guides sampling.

        It is 0 where the label is -1, so that a sample without a class is not guided.
        """
        chosen = self(x, level).log_softmax(1).gather(1, label.clamp(min=0)[:, None])[:, 0]
        return torch.where(label >= 0, chosen, 0.0)
