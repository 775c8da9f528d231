"""The two processes as strips of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato import random
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.gaussian import transition
from sfumato.diffusion.level import Level, sqrt
from sfumato.errors import InputError
from sfumato.sampling.sample import Step, sample, seeded_noise


@dataclass(frozen=True, slots=True)
class Strip:
    r"""Images at the levels of a chain.

    Attributes:
        times: the levels.
        alpha: the scale of the data at each.
        sigma: the noise at each.
        images: :math:`x_t`.
        x0: of a reverse chain, the estimate of the data at each level.
    """

    times: Float64[Tensor, "levels"]
    alpha: Float64[Tensor, "levels"]
    sigma: Float64[Tensor, "levels"]
    images: Float[Tensor, "levels batch channels *space"]
    x0: Float[Tensor, "levels batch channels *space"] | None = None


def _strip(levels: list[Level], images: list[Tensor], x0: list[Tensor] | None = None) -> Strip:
    columns = [[float(getattr(level, name)) for level in levels] for name in ("t", "alpha", "sigma")]
    t, alpha, sigma = (torch.tensor(column, dtype=torch.float64) for column in columns)
    return Strip(t, alpha, sigma, torch.stack(images), None if x0 is None else torch.stack(x0))


def forward_chain(images: Float[Tensor, "batch channels *space"], levels: Level, *, seed: int = 0) -> Strip:
    r"""A draw of the joint :math:`q(x_{t_1}, \dots, x_{t_n} | x_0) = \prod q(x_{t_i} | x_{t_{i-1}})`.

    Each image is made from the one before by the transition kernel (Ho et al. 2020, eq. 2), for any rising levels.
    The strip begins with the data.

    Args:
        images: the data.
        levels: the levels of the chain, from near the data to the noise.
        seed: which noise.

    Raises:
        InputError: if the levels do not rise, or hold the data themselves.
    """
    if bool((torch.as_tensor(levels.t).reshape(-1).diff() <= 0.0).any()):
        raise InputError("The levels of a forward chain must rise strictly from the data to the noise.")
    stops = list(levels)
    if any(float(level.sigma) <= 0.0 for level in stops):
        raise InputError("A forward chain begins at the data by itself; leave t = 0 out.")
    x, before = images, Level(0.0, 1.0, 0.0)
    drawn = [x]
    for i, level in enumerate(stops):
        scale, variance = transition(level, before)
        noise = random.normal(seed, "forward chain", 0, len(images), tuple(images.shape[1:]), step=i).to(images)
        x = float(scale) * x + float(sqrt(max(float(variance), 0.0))) * noise
        drawn.append(x)
        before = level
    return _strip([Level(0.0, 1.0, 0.0), *stops], drawn)


def reverse_chain(
    denoiser: Denoise,
    x: Float[Tensor, "batch channels *space"],
    levels: Level,
    step: Step,
    *,
    keep: int = 8,
    seed: int = 0,
    **cond: Any,
) -> Strip:
    """A run of the sampler, of which ``keep`` evenly spread levels are kept, the noise and the sample among them.

    Args:
        denoiser: any denoiser.
        x: the start, at the first level of the grid.
        levels: a grid that ends at the data.
        step: the sampler.
        keep: how many levels to keep; all of a shorter grid.
        seed: the noise of stochastic steps.
        cond: conditions, passed on to the denoiser.

    Raises:
        InputError: if fewer than two levels are to be kept.
    """
    if keep < 2:
        raise InputError(f"A strip shows at least 2 levels, the noise and the sample; got {keep}.")
    stops = list(levels)
    last = len(stops) - 1
    wanted = {round(i * last / (keep - 1)) for i in range(keep)}
    kept = [(stops[0], x, torch.zeros_like(x))]
    for i, frame in enumerate(sample(denoiser, x, levels, step, noise=seeded_noise(seed), previews=True, **cond)):
        assert frame.x0 is not None
        if i == 0:
            # what the denoiser says of pure noise belongs to the level of pure noise
            kept[0] = (stops[0], x, frame.x0)
        if i + 1 in wanted:
            kept.append((frame.level, frame.x, frame.x if i + 1 == last else frame.x0))
    return _strip([k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept])
