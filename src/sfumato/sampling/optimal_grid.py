"""The optimal trajectory of Analytic-DPM: the grid of K steps whose variational bound is the lowest."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.diffusion.analytic import Gamma
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Discrete, Schedule
from sfumato.errors import InputError
from sfumato.sampling.grids import uniform

CANDIDATES = 1000
"""How many steps of a continuous schedule a trajectory is chosen from."""


def optimal(
    schedule: Schedule,
    steps: int,
    gamma: Gamma,
    *,
    radius: float = 1.0,
    bins: int | None = None,
    candidates: Level | None = None,
) -> Level:
    r"""The ``steps + 1`` of the candidate levels from noise to data for which the sum of :func:`costs` is the least.

    It is the shortest path of ``K`` edges, by dynamic programming (Watson et al. 2021), with the costs that one table
    of Gamma gives to every pair of levels (Bao et al. 2022, sec. 4). Those do not know the step to the data, so as
    published the last noisy level is the last of the candidates, the first step of a beta table; one step alone goes
    from noise to data at once. With ``bins`` the decoder of the bound is part of the sum and the last noisy level is
    chosen like the others: better for the bound, while a sampler, which adds no noise in that step, is left with the
    mean of what may be a blurred image.

    Args:
        schedule: where the candidates are taken from.
        steps: how many steps, ``K``.
        gamma: the table of the denoiser.
        radius: half the width of the range of the data, as in :func:`sfumato.diffusion.analytic.analytic`.
        bins: the number of values of the data, to count the decoder too.
        candidates: a grid from noise to data; by default the full one of a discrete schedule, and 1000 steps uniform in
            time of another.

    Raises:
        InputError: if there are not 1 to as many steps as the candidates make, these do not fall to the data, or Gamma
            does not cover them.
    """
    if candidates is None:
        candidates = uniform(schedule, schedule.steps if isinstance(schedule, Discrete) else CANDIDATES)
    log_snr = _noisy(candidates)
    count = len(log_snr)
    if not 1 <= steps <= count:
        raise InputError(
            f"A trajectory of {steps} steps can't be chosen from {count + 1} levels; ask for 1 to {count} steps."
        )
    edges = torch.full((count + 1, count + 1), math.inf, dtype=torch.float64)
    spread = _spread(candidates, gamma, radius, count if bins is not None else count - 1)
    snr = log_snr.exp()
    between = _step(snr[: count - 1, None], snr, spread[: count - 1, None])
    edges[: count - 1, :count] = between.masked_fill(torch.ones_like(between).tril().bool(), math.inf)
    if bins is not None:
        edges[:count, count] = _decoder(spread, bins)
    else:
        edges[count - 1 if steps > 1 else 0, count] = 0.0
    chosen = torch.tensor(_shortest(edges, steps))
    t, alpha, sigma = (torch.as_tensor(value)[chosen] for value in (candidates.t, candidates.alpha, candidates.sigma))
    return Level(t, alpha, sigma)


def costs(levels: Level, gamma: Gamma, *, radius: float = 1.0, bins: int | None = None) -> Float64[Tensor, "steps"]:
    r"""What each step of a grid costs the bound with the optimal mean and variance, in bits per dimension.

    The expectation of the divergence :math:`L_{t-1}` is then

    .. math::
        \tfrac12 \log_2 \frac{\tilde\beta + k_0^2 V_t}{\tilde\beta}
        = \tfrac12 \log_2\left(1 + (\mathrm{SNR}_s - \mathrm{SNR}_t)\, V_t\right), \qquad
        V_t = \tfrac1D \mathbb E \operatorname{tr} Var[x_0 | x_t]

    (Bao et al. 2022, sec. 4, since :math:`k_0^2 / \tilde\beta` is the weight
    :math:`\mathrm{SNR}_s - \mathrm{SNR}_t` of Kingma et al. 2021, eq. 14). For isotropic Gaussian data
    it depends on both ends alone: all trajectories are as good. The step to the data costs nothing, or with ``bins``

    .. math::
        L_0 \approx \tfrac12 \log_2\left(1 + 2 \pi e\, V_t / w^2\right), \qquad w = \frac{2}{n - 1}

    which is the entropy of a normal value of that variance rounded to bins of width ``w``, from below by the inequality
    of entropy powers and at most :math:`\tfrac12 \log_2 \frac{\pi e}{6} = 0.25` bits too low. It is too high where many
    values lie at the ends of their range, as the background of a drawing does.

    The table is used as :meth:`~sfumato.diffusion.analytic.Gamma.monotone` makes it: where almost nothing of the data
    is left an estimate may say that a step costs nothing, which a search for the least cost would be sure to find.

    Args:
        levels: any grid from noise to data.
        gamma: the table of the denoiser.
        radius: half the width of the range of the data, as in :func:`sfumato.diffusion.analytic.analytic`.
        bins: the number of values of the data, to count the decoder too.

    Raises:
        InputError: if the levels do not fall to the data, or Gamma does not cover them.
    """
    snr = _noisy(levels).exp()
    spread = _spread(levels, gamma, radius, len(snr) if bins is not None else len(snr) - 1)
    last = snr.new_zeros(1) if bins is None else _decoder(spread[-1:], bins)
    return torch.cat([_step(snr[:-1], snr[1:], spread[: len(snr) - 1]), last]) / math.log(2.0)


def _noisy(levels: Level) -> Float64[Tensor, "noisy"]:
    """The log-SNR of the noisy levels of a grid that is fit for a trajectory."""
    sigma, log_snr = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (levels.sigma, levels.log_snr))
    if len(sigma) < 2 or float(sigma[-1]) != 0.0 or not bool((log_snr.diff() > 0.0).all()):
        raise InputError(
            "A trajectory needs levels that fall strictly from noise to the data: "
            "at least two, the last with sigma = 0."
        )
    return log_snr[:-1]


def _spread(levels: Level, gamma: Gamma, radius: float, count: int) -> Float64[Tensor, "count"]:
    """The variance of the data given each of the first levels, bounded as in the optimal reverse variance."""
    if radius <= 0.0:
        raise InputError(f"radius must be positive; got {radius}.")
    t, alpha, sigma = (torch.as_tensor(value)[:count] for value in (levels.t, levels.alpha, levels.sigma))
    found = torch.as_tensor(gamma.monotone().data_variance(Level(t, alpha, sigma))) if count else t.new_zeros(0)
    return found.clamp(max=radius * radius)


def _step(start: Tensor, end: Tensor, spread: Tensor) -> Tensor:
    """The cost in nats of steps between signal-to-noise ratios."""
    return 0.5 * ((end - start) * spread).log1p()


def _decoder(spread: Tensor, bins: int) -> Tensor:
    if bins < 2:
        raise InputError(f"Quantized data have at least 2 values; got bins={bins}.")
    width = 2.0 / (bins - 1)
    return 0.5 * (2.0 * math.pi * math.e / (width * width) * spread).log1p()


def _shortest(edges: Float64[Tensor, "nodes nodes"], steps: int) -> list[int]:
    """The path of least length from the first node to the last with so many edges, all of which go forward."""
    last = len(edges) - 1
    # after k edges a path is at node k at least, and at most so far that the others can still go forward
    width = last - steps + 1
    length = torch.full((width,), math.inf, dtype=torch.float64)
    length[0] = 0.0
    came: list[Tensor] = []
    for k in range(1, steps + 1):
        length, best = (length[:, None] + edges[k - 1 : k - 1 + width, k : k + width]).min(0)
        came.append(best + (k - 1))
    path = [last]
    for k in range(steps, 0, -1):
        path.append(int(came[k - 1][path[-1] - k]))
    return path[::-1]
