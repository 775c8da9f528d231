"""Steps that add noise have no exact end; their samples are compared with the data, up to what chance makes of that."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato import random
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.variance import large
from sfumato.sampling import grids
from sfumato.sampling.sample import Step
from sfumato.sampling.steps import ancestral, ddim
from side_by_side import own, peers_diffusers
from side_by_side.peers_k_diffusion import sampling
from side_by_side.problem import SCHEDULES, Counted
from side_by_side.targets import Target

Draw = Callable[[Target, str, int, int, int], Tensor | None]
"""``(target, schedule, nfe, seed, count)`` to samples, or None for a schedule that it does not know."""


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 256, seed: int = 0) -> float:
    r"""The sliced 2-Wasserstein distance of two sets of as many samples ``(N, D)`` (Bonneel et al. 2015).

    .. math:: \left(\mathbb E_\theta\, W_2^2(\theta^\top a, \theta^\top b)\right)^{1/2}

    over directions on the unit sphere. In one dimension the optimal transport is between sorted samples; a difference
    of root mean square ``c`` per dimension in no special direction makes a distance of about ``c``.
    """
    if a.shape != b.shape:
        raise ValueError(f"two sets of samples must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    directions = random.normal(seed, "projections", 0, projections, a.shape[1:]).double()
    directions = directions / directions.norm(dim=1, keepdim=True)
    first, second = ((x.double() @ directions.mT).sort(0).values for x in (a, b))
    return float((first - second).square().mean().sqrt())


@dataclass(frozen=True)
class Floor:
    """The distance between two independent sets of exact samples: its mean and its standard deviation."""

    mean: float
    spread: float


def floor(target: Target, count: int, repeats: int = 8) -> Floor:
    """What no sampler can be told to be better than with ``count`` samples."""
    sets = [target.oracle.sample(count, seed, dtype=torch.float64) for seed in range(100, 100 + 2 * repeats)]
    found = torch.tensor([sliced_wasserstein(sets[2 * i], sets[2 * i + 1], seed=i) for i in range(repeats)])
    return Floor(float(found.mean()), float(found.std()))


def _own(target: Target, schedule_name: str, nfe: int, seed: int, count: int, *, step: Step, grid: Any) -> Tensor:
    schedule: Schedule = SCHEDULES[schedule_name]
    levels = grid(schedule, nfe)
    noise = target.noise(seed, count)
    return own.final(Counted(target, schedule), noise * next(iter(levels)).sigma, levels, step)


def own_draws() -> dict[str, Draw]:
    """Sfumato's stochastic steps, and one deterministic for comparison."""
    found: dict[str, Draw] = {}
    for grid_name, grid in (("uniform", grids.uniform), ("karras", grids.karras)):
        for name, step in (
            ("DDIM", ddim),
            ("ancestral, small variance", ancestral),
            ("ancestral, large variance", partial(ancestral, variance=large)),
            ("DDIM, eta 0.5", partial(ddim, eta=0.5)),
        ):
            found[f"{name}, {grid_name}"] = partial(_own, step=step, grid=grid)
    return found


def peer_draws() -> dict[str, Draw]:
    """Those of the peers that are installed; k-diffusion's on EDM's grid."""
    found: dict[str, Draw] = {}
    if importlib.util.find_spec("diffusers") is not None:
        found |= {name: partial(_diffusers, name=name) for name in peers_diffusers.STOCHASTIC}
    if importlib.util.find_spec("k_diffusion") is not None:
        names = ("euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
        found |= {f"k-diffusion {name}(karras)": partial(_k_diffusion, sampler=name) for name in names}
    return found


def _diffusers(target: Target, schedule: str, nfe: int, seed: int, count: int, *, name: str) -> Tensor | None:
    if schedule not in peers_diffusers.VP:
        return None
    model = Counted(target, SCHEDULES[schedule])
    return peers_diffusers.draw(name, schedule, target.noise(seed, count), model, nfe, seed)


def _k_diffusion(target: Target, schedule: str, nfe: int, seed: int, count: int, *, sampler: str) -> Tensor:
    k = sampling()
    model = Counted(target, SCHEDULES[schedule])
    steps = (nfe + 1) // 2 if sampler in ("dpmpp_sde", "dpmpp_2s_ancestral") else nfe
    sigmas = k.get_sigmas_karras(steps, 0.002, float(model.schedule(1.0).noise_to_signal)).double()
    start, draws = target.noise(seed, count) * sigmas[0], 0

    def noise(*levels: Any) -> Tensor:
        nonlocal draws
        draws += 1
        return random.normal(seed, "peer", 0, count, tuple(start.shape[1:]), step=draws).double()

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        return model.denoised(x, float(sigma[0]))

    return getattr(k, f"sample_{sampler}")(denoised, start, sigmas, noise_sampler=noise, disable=True)


def measure(draw: Draw, target: Target, schedule: str, nfe: int, count: int) -> float | None:
    """The distance of the samples of seed 0 to exact ones, or None where the sampler does not know the schedule."""
    with torch.no_grad():
        samples = draw(target, schedule, nfe, 0, count)
    if samples is None:
        return None
    return sliced_wasserstein(samples, target.oracle.sample(count, 99, dtype=torch.float64))
