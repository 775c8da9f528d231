"""Importance sampling of the training times by the size of the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sfumato.diffusion.continuous import Learned
from sfumato.diffusion.level import Level
from sfumato.diffusion.objective import TimeLaw, uniform_times
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError

CONTINUOUS_STRATA = 100
"""The parts into which times without steps are divided, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class LossSecondMoment:
    r"""The law of the levels with :math:`p_k \propto \sqrt{\mathbb E[L_k^2]}` (Nichol and Dhariwal 2021, sec. 3.3).

    The uniform numbers of a law of reference are divided into ``S`` equal strata: the steps of a table of betas, or
    parts of the time. The expectation is the mean over the last losses of a stratum; until every stratum has its
    history the law is that of reference. A share :math:`\eta` of it stays,

    .. math::
        p_k = (1 - \eta) \frac{\sqrt{\overline{L_k^2}}}{\sum_j \sqrt{\overline{L_j^2}}} + \frac{\eta}{S},

    and a loss times its :meth:`importance` :math:`1 / (S p_k)`, which is at most :math:`1 / \eta`, has the same
    expectation as under the law of reference. With :math:`\eta = 0` and the exact moments, no law of the strata gives
    that estimate a smaller variance.

    It is a value: :meth:`update` returns another law. The history lives on the processor, in float64.

    Attributes:
        base: the law of reference.
        losses: the last losses of each stratum, in a ring.
        seen: how many losses each stratum has had in all.
        uniform_share: :math:`\eta`, in (0, 1].
    """

    base: TimeLaw
    losses: Float64[Tensor, "strata history"]
    seen: Int64[Tensor, "strata"]
    uniform_share: float = 1e-3

    @cached_property
    def adapted(self) -> bool:
        """Whether every stratum has its history."""
        return bool((self.seen >= self.losses.shape[1]).all())

    @cached_property
    def probabilities(self) -> Float64[Tensor, "strata"]:
        """The probability of each stratum."""
        size = self.losses.square().mean(1).sqrt()
        total = size.sum()
        even = torch.full_like(size, 1.0 / len(size))
        if not self.adapted or total == 0.0:
            return even
        return (1.0 - self.uniform_share) * size / total + self.uniform_share * even

    def _place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The stratum of each uniform number, and where in it that lies, from 0 to 1."""
        if not self.adapted:
            at = u * len(self.seen)
            stratum = at.floor().clamp(max=len(self.seen) - 1)
            return stratum.long(), at - stratum
        ends = self.probabilities.cumsum(0)
        stratum = torch.searchsorted(ends, u, right=True).clamp(max=len(ends) - 1)
        here = self.probabilities[stratum]
        return stratum, (u - ends[stratum]) / here + 1.0

    def __call__(self, u: Float64[Tensor, "batch"]) -> Level:
        """The levels of uniform numbers in [0, 1), by the inverse of the distribution function."""
        if not self.adapted:
            return self.base(u)
        stratum, inside = self._place(u)
        # rounding must not carry a number over the edge into the next step of a table
        return self.base((stratum + inside.clamp(1e-9, 1.0 - 1e-9)) / len(self.seen))

    def importance(self, u: Float64[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
        r""":math:`1 / (S p_k)`, by which the losses at the levels of the same numbers are multiplied."""
        return 1.0 / (len(self.seen) * self.probabilities[self._place(u)[0]])

    def update(self, u: Float64[Tensor, "batch"], losses: Float[Tensor, "batch"]) -> LossSecondMoment:
        """The law after the losses of a batch, themselves and not times their importance, in the order of the samples.

        Args:
            u: the uniform numbers whose levels this law gave.
            losses: the losses there.
        """
        stratum, _ = self._place(u)
        length, drawn = self.losses.shape[1], stratum.bincount(minlength=len(self.seen))
        order = stratum.argsort(stable=True)
        stratum = stratum[order]
        rank = torch.arange(len(order)) - (drawn.cumsum(0) - drawn)[stratum]
        # of more losses than a history holds, the last stay
        kept = rank >= drawn[stratum] - length
        slot = (self.seen[stratum] + rank) % length
        history = self.losses.clone()
        history[stratum[kept], slot[kept]] = losses.detach().cpu().double()[order[kept]]
        return replace(self, losses=history, seen=self.seen + drawn)

    def restored(self, losses: Tensor | None, seen: Tensor | None) -> LossSecondMoment:
        """The law with a stored history.

        Raises:
            InputError: if there is none, or it has other strata or another length.
        """
        if losses is None or seen is None:
            raise InputError("The checkpoint holds no history of losses: it was trained with other objective.times.")
        if losses.shape != self.losses.shape or seen.shape != self.seen.shape:
            raise InputError(
                f"The checkpoint holds a history of {tuple(losses.shape)} losses (strata, history) where this law of "
                f"the times needs {tuple(self.losses.shape)}."
            )
        return replace(self, losses=losses.to(self.losses), seen=seen.to(self.seen))


def loss_second_moment(
    schedule: Schedule, *, history: int = 10, uniform_share: float = 1e-3, strata: int | None = None
) -> LossSecondMoment:
    """A :class:`LossSecondMoment` that has seen no loss, with reference to uniform times.

    Args:
        schedule: the schedule of the denoiser.
        history: losses that are remembered of each stratum.
        uniform_share: the share of uniform times that stays.
        strata: parts of the time; by default the steps of a table of betas, or 100.

    Raises:
        InputError: for a learned schedule, and for numbers out of range.
    """
    if isinstance(schedule, Learned):
        raise InputError("A learned schedule lowers the variance of uniform times by itself; take uniform times.")
    if strata is None:
        strata = schedule.steps if isinstance(schedule, Discrete) else CONTINUOUS_STRATA
    if history < 1 or strata < 1 or not 0.0 < uniform_share <= 1.0:
        raise InputError(
            "Importance sampling of the times needs history and strata of at least 1, and a uniform_share above 0 and "
            f"at most 1; got {history}, {strata} and {uniform_share}."
        )
    losses = torch.zeros(strata, history, dtype=torch.float64)
    return LossSecondMoment(uniform_times(schedule), losses, torch.zeros(strata, dtype=torch.int64), uniform_share)
