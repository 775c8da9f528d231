"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sfumato.errors import InputError

EmaDecay = Callable[[int], float]
"""The decay after optimizer step ``k = 1, 2, ...``."""


def power_law(gamma: float = 16.0, limit: float = 0.9999) -> EmaDecay:
    r"""An average whose memory grows with training: :math:`\beta_k = \min((1 - 1/k)^{\gamma + 1},\ \text{limit})`.

    Without the limit, step ``j`` has a weight proportional to :math:`j^{\gamma + 1} - (j - 1)^{\gamma + 1}`, which is
    almost :math:`j^\gamma` (Karras et al. 2024, eq. 1); the first step replaces the average, so that nothing of the
    initial weights stays.

    Args:
        gamma: the average remembers about 1/gamma of the training so far, at least 0.
        limit: the largest decay, from 0 to 1.
    """
    if gamma < 0.0 or not 0.0 <= limit <= 1.0:
        raise InputError(f"An EMA needs gamma >= 0 and a limit in [0, 1]; got {gamma} and {limit}.")
    return lambda step: min((1.0 - 1.0 / step) ** (gamma + 1.0), limit)


class Ema:
    """A running average of the parameters of a module, in float32."""

    def __init__(self, module: nn.Module, decay: EmaDecay) -> None:
        self._live = dict(module.named_parameters())
        self.decay = decay
        self.average = {name: p.detach().float().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> float:
        """Take in the weights after optimizer step ``step``; returns the decay that was used."""
        decay = self.decay(step)
        live = [p.detach().float() for p in self._live.values()]
        torch._foreach_lerp_(list(self.average.values()), live, 1.0 - decay)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return decay

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextmanager
    def applied(self) -> Generator[None]:
        """Within the context, the module has the averaged weights."""
        with torch.no_grad():
            kept = {name: p.detach().clone() for name, p in self._live.items()}
            try:
                for name, p in self._live.items():
                    p.copy_(self.average[name])
                yield
            finally:
                for name, p in self._live.items():
                    p.copy_(kept[name])
