"""Distributions of the training noise levels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.diffusion.learned_schedule import LearnedSchedule
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError


class Times:
    """A distribution of noise levels, as a map from uniform numbers in [0, 1) (so that these can be stratified)."""

    adaptive: bool = False
    """Whether the distribution adapts to the losses it observes."""

    def sample(self, u: Float64[Tensor, "batch"]) -> Level:
        """The levels for uniform numbers, by the inverse of the cumulative distribution function."""
        raise NotImplementedError

    def weight(self, u: Float64[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
        """The importance weights of the losses at the levels for these numbers."""
        return torch.ones_like(u)

    def observe(self, u: Float64[Tensor, "batch"], losses: Float[Tensor, "batch"]) -> None:
        """Record the losses at the levels for these numbers, without importance weights."""

    def state_dict(self) -> dict[str, Tensor]:
        """What has been recorded of the losses, for ``load_state_dict``."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise InputError("The checkpoint holds a history of losses: it was trained with other objective.times.")


class Uniform(Times):
    r"""Uniform times: over (0, 1], or the steps :math:`1 / T, \dots, 1` of a discrete schedule (Ho et al. 2020).

    An end with :math:`\alpha = 0` is left out, because noise prediction and the bound's weights are not finite there.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def sample(self, u: Float64[Tensor, "batch"]) -> Level:
        schedule = self.schedule
        if isinstance(schedule, LearnedSchedule):
            return schedule(schedule.start + (1.0 - schedule.start) * (1.0 - u))
        if isinstance(schedule, Discrete):
            return schedule((u * schedule.steps).floor().add(1.0).clamp(max=schedule.steps) / schedule.steps)
        return schedule((1.0 - u).clamp(1e-5, 1.0 if schedule(1.0).alpha != 0.0 else 1.0 - 1e-5))


class BetweenSteps(Times):
    r"""Uniform steps of a table, and within each step a uniform :math:`\gamma = \bar\alpha` between its ends.

    :math:`\gamma \sim \sum_t \tfrac1T U(\gamma_{t-1}, \gamma_t)` (Saharia et al. 2021, sec. 2.4): the network
    learns all levels, and can be sampled in any number of steps. The level :math:`\gamma_0 = 1` itself is left out.
    """

    def __init__(self, schedule: Schedule) -> None:
        if not isinstance(schedule, Discrete):
            raise InputError("objective.times between_steps needs the steps of a table, such as model.schedule linear.")
        self.schedule = schedule
        self._gammas = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bars.cpu()])

    def sample(self, u: Float64[Tensor, "batch"]) -> Level:
        at = u * self.schedule.steps
        left = at.floor().clamp(max=self.schedule.steps - 1).long()
        # a step begins at its noisier end, so that no level is that of the data
        gamma = torch.lerp(self._gammas[left + 1], self._gammas[left], (at - left).clamp(max=1.0 - 1e-6))
        return self.schedule.at(gamma.logit())


class LogNormal(Times):
    r"""Log-normal noise, :math:`\ln(\sigma / \alpha) \sim \mathcal N(m, s^2)`, truncated where the schedule ends.

    (Karras et al. 2022, table 1.)

    Args:
        mean: the mean of the logarithm of the noise.
        std: the standard deviation of the logarithm of the noise, positive.
    """

    def __init__(self, schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> None:
        if std <= 0.0:
            raise InputError(f"The standard deviation of log sigma must be positive; got {std}.")
        self.schedule, self.mean, self.std = schedule, mean, std
        self._lowest = float(schedule(1.0).log_snr)

    def sample(self, u: Float64[Tensor, "batch"]) -> Level:
        normal = torch.special.ndtri(u.clamp(1e-6, 1.0 - 1e-6))
        return self.schedule.at((-2.0 * (self.mean + self.std * normal)).clamp(min=self._lowest))


class LossSecondMoment(Times):
    r"""Times drawn in proportion to the magnitude of the loss, :math:`p_k \propto \sqrt{\mathbb E[L_k^2]}`.

    (Nichol and Dhariwal 2021, sec. 3.3.) The uniform times are divided into ``S`` equal strata. The expectation is the
    mean over the most recent losses of a stratum; until every stratum has a full history, the times are uniform. With
    a share :math:`\eta` of uniform times,

    .. math::
        p_k = (1 - \eta) \frac{\sqrt{\overline{L_k^2}}}{\sum_j \sqrt{\overline{L_j^2}}} + \frac{\eta}{S},

    and a loss times its :meth:`weight` has the same expectation as under uniform times.

    Args:
        history: how many losses are kept for each stratum, at least 1.
        uniform_share: the share of times that stays uniform, above 0 and at most 1.
        strata: the number of strata that time is divided into; by default the steps of a beta table, or 100.
    """

    adaptive = True

    def __init__(
        self, schedule: Schedule, history: int = 10, uniform_share: float = 0.001, strata: int | None = None
    ) -> None:
        if isinstance(schedule, LearnedSchedule):
            raise InputError("A learned schedule lowers the variance of uniform times by itself; use uniform times.")
        if strata is None:
            strata = schedule.steps if isinstance(schedule, Discrete) else 100
        if history < 1 or strata < 1 or not 0.0 < uniform_share <= 1.0:
            raise InputError("Importance sampling needs history and strata of at least 1, and 0 < uniform_share <= 1.")
        self.base, self.uniform_share = Uniform(schedule), uniform_share
        zeros = torch.zeros(strata, dtype=torch.int64)
        self.load_state_dict({"losses": torch.zeros(strata, history, dtype=torch.float64), "seen": zeros})

    def _set(self, losses: Tensor, seen: Tensor) -> None:
        self.losses, self.seen = losses, seen
        # whether every stratum has a full history
        self.adapted = bool((seen >= losses.shape[1]).all())
        size = losses.square().mean(1).sqrt()
        total, even = size.sum(), torch.full_like(size, 1.0 / len(size))
        mixed = (1.0 - self.uniform_share) * size / total + self.uniform_share * even
        self.probabilities = mixed if self.adapted and total != 0.0 else even

    def _place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The stratum of each uniform number, and its place within it, from 0 to 1."""
        if not self.adapted:
            at = u * len(self.seen)
            stratum = at.floor().clamp(max=len(self.seen) - 1)
            return stratum.long(), at - stratum
        ends = self.probabilities.cumsum(0)
        stratum = torch.searchsorted(ends, u, right=True).clamp(max=len(ends) - 1)
        return stratum, (u - ends[stratum]) / self.probabilities[stratum] + 1.0

    def sample(self, u: Float64[Tensor, "batch"]) -> Level:
        if not self.adapted:
            return self.base.sample(u)
        stratum, inside = self._place(u)
        # rounding must not push a number into the next step of a table
        return self.base.sample((stratum + inside.clamp(1e-9, 1.0 - 1e-9)) / len(self.seen))

    def weight(self, u: Float64[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
        r""":math:`1 / (S p_k) \le 1 / \eta`."""
        return 1.0 / (len(self.seen) * self.probabilities[self._place(u)[0]])

    def observe(self, u: Float64[Tensor, "batch"], losses: Float[Tensor, "batch"]) -> None:
        stratum, _ = self._place(u)
        length, new = self.losses.shape[1], stratum.bincount(minlength=len(self.seen))
        order = stratum.argsort(stable=True)
        stratum = stratum[order]
        rank = torch.arange(len(order)) - (new.cumsum(0) - new)[stratum]
        # if there are more losses than the history holds, the last ones are kept
        kept = rank >= new[stratum] - length
        slot = (self.seen[stratum] + rank) % length
        history = self.losses.clone()
        history[stratum[kept], slot[kept]] = losses.detach().cpu().double()[order[kept]]
        self._set(history, self.seen + new)

    def state_dict(self) -> dict[str, Tensor]:
        """The most recent losses of each stratum, in a ring buffer, and how many losses each has seen."""
        return {"losses": self.losses, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if "losses" not in state or "seen" not in state:
            raise InputError("The checkpoint holds no history of losses: it was trained with other objective.times.")
        losses, seen = state["losses"].double().cpu(), state["seen"].long().cpu()
        now = getattr(self, "losses", losses)
        if losses.shape != now.shape:
            raise InputError(f"The checkpoint holds {tuple(losses.shape)} losses where these need {tuple(now.shape)}.")
        self._set(losses, seen)


class Balanced(Times):
    r"""Wrap other times and divide each loss by the mean loss of its noise level, so that all levels count equally.

    How much a level counts then depends only on how often it is drawn; ``objective.weight`` matters only until the
    means are known. Levels with a large irreducible loss no longer drown out the gradients of the others. (This is the
    uncertainty weighting of Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
    sec. 2.1, with a running mean in place of their learned function.) The uniform numbers are divided into ``S`` equal
    strata; with :math:`\bar L_k` the mean over the most recent losses of a stratum

    .. math::
        w_k = \frac{1}{S} \sum_j \bar L_j \, / \, \bar L_k \le 1000,

    so that the mean loss is unchanged. Until every stratum has a full history the weights are 1.

    Args:
        base: the times to wrap.
        strata: the number of strata that the times are divided into, at least 1.
        history: the number of losses of a stratum that the mean is taken over, at least 1.
    """

    adaptive = True

    def __init__(self, base: Times, strata: int = 32, history: int = 64) -> None:
        if base.adaptive:
            raise InputError("Times that adapt to the losses already weight them; they can't be balanced as well.")
        if strata < 1 or history < 1:
            raise InputError(f"Balanced times need strata and a history of at least 1; got {strata} and {history}.")
        self.base, self.history = base, history
        self.means = torch.zeros(strata, dtype=torch.float64)
        self.seen = torch.zeros(strata, dtype=torch.int64)

    def _stratum(self, u: Tensor) -> Tensor:
        return (u * len(self.seen)).floor().clamp(max=len(self.seen) - 1).long()

    def sample(self, u: Float64[Tensor, "batch"]) -> Level:
        return self.base.sample(u)

    def weight(self, u: Float64[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
        mean = self.means.mean()
        if bool((self.seen < self.history).any()) or not float(mean) > 0.0:
            return torch.ones_like(u)
        return mean / self.means[self._stratum(u)].clamp(min=1e-3 * float(mean))

    def observe(self, u: Float64[Tensor, "batch"], losses: Float[Tensor, "batch"]) -> None:
        stratum, count = self._stratum(u), len(self.seen)
        new = stratum.bincount(minlength=count)
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, stratum, losses.detach().cpu().double())
        self.seen = self.seen + new
        share = (new.double() / self.seen.clamp(min=1, max=self.history)).clamp(max=1.0)
        self.means = torch.lerp(self.means, sums / new.clamp(min=1), share)

    def state_dict(self) -> dict[str, Tensor]:
        """The running mean of each stratum's losses, and how many losses it has seen."""
        return {"means": self.means, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        means, seen = state.get("means"), state.get("seen")
        if means is None or seen is None or not means.shape == seen.shape == self.means.shape:
            raise InputError("The checkpoint holds no mean losses: it was trained without objective.balance.")
        self.means, self.seen = means.double().cpu(), seen.long().cpu()
