"""Write a sampler: a function from one noise level to the next.

    python examples/own_sampler.py

A step may call the denoiser as often as it likes, and at any level. This one is the midpoint method on the probability
flow, which is compared with DDIM on data whose exact solution is known.
"""

from __future__ import annotations

import torch

import sfumato
from sfumato.diffusion.level import Level
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.sampling.grids import karras
from sfumato.sampling.sample import Memory, Predict, initial


def midpoint(denoise: Predict, x: torch.Tensor, t: Level, s: Level, memory: Memory) -> torch.Tensor:
    """The midpoint method in x / alpha, whose derivative by sigma / alpha is the predicted noise."""
    if float(s.sigma) == 0.0:  # no denoiser is called without noise: the last step is Euler's
        return denoise(x, t).x0 * s.alpha
    high, low = t.sigma / t.alpha, s.sigma / s.alpha
    middle = schedule.at(torch.log(torch.as_tensor((high * low) ** 0.5)) * -2.0)
    at_middle = middle.sigma / middle.alpha
    half = (x / t.alpha + (at_middle - high) * denoise(x, t).eps) * middle.alpha
    return (x / t.alpha + (low - high) * denoise(half, middle).eps) * s.alpha


data = torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(-1) / 2.0
oracle, schedule = GaussianOracle.fit(data), sfumato.Karras(sigma_max=10.0)
for steps in (5, 10, 20, 40):
    levels = karras(schedule, steps)
    x = initial(levels, (1, 4, 4), seed=0, count=16).double()
    exact = oracle.flow(x, levels[0], levels[-1])
    errors: list[str] = []
    for name, step in (("midpoint", midpoint), ("DDIM", sfumato.ddim)):
        *_, last = sfumato.sample(oracle, x, levels, step)
        errors.append(f"{name} {float((last.x - exact).square().mean().sqrt()):.5f}")
    print(f"{steps:3d} steps: error of {', '.join(errors)}")
