"""What the sampling loop costs beside arithmetic: a network that returns zeros, deterministic steps, one process.

The baselines are loops written by hand, without any abstraction: ``in place (2)`` folds the update of DDIM into one
multiplication and one addition with numbers computed beforehand, the least that is possible; ``in place (3)`` is the
update as one would write it. ``sfumato`` is the loop as ``Model.sample`` runs it. Where they are
installed, diffusers' DDIM and k-diffusion's ``sample_dpmpp_2m`` run beside them, each in its own loop, as its users
write it. Interleaved, median of many.

    pip install -e ".[bench]" && pip install --no-deps k-diffusion
    python benchmarks/sampler_overhead.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfumato.diffusion.denoiser import Denoiser, embed_index
from sfumato.diffusion.level import Level
from sfumato.diffusion.parameterization import eps
from sfumato.diffusion.schedule import linear
from sfumato.sampling import grids
from sfumato.sampling.defaults import best
from sfumato.sampling.published import dpm_solver_pp
from sfumato.sampling.sample import Step, initial, sample
from sfumato.sampling.steps import ddim, heun


class Zero(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.zeros = torch.zeros(shape)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.zeros


def peers(start: Tensor, network: nn.Module, steps: int) -> dict[str, Callable[[], Tensor]]:
    """The loops of other libraries, of those that are installed."""
    found: dict[str, Callable[[], Tensor]] = {}
    try:
        from diffusers import DDIMScheduler
    except ImportError:
        print("diffusers: left out, it is not installed")
    else:
        scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
        scheduler.set_timesteps(steps)

        @torch.no_grad()
        def diffusers_ddim() -> Tensor:
            x = start
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t), t, x).prev_sample
            return x

        found["diffusers DDIM"] = diffusers_ddim
    try:
        from side_by_side.peers_k_diffusion import sampling

        k = sampling()
    except ImportError:
        print("k-diffusion: left out, it is not installed")
    else:
        sigmas = k.get_sigmas_karras(steps, 0.002, 80.0)
        found["k-diffusion 2M"] = lambda: k.sample_dpmpp_2m(network, start * sigmas[0], sigmas, disable=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shape", type=int, nargs=4, default=(64, 3, 32, 32))
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    shape = tuple(options.shape)
    schedule, network = linear(1000), Zero(shape)
    denoiser = Denoiser(network, schedule, eps, embed_index(1000))
    levels = grids.uniform(schedule, options.steps)
    start = initial(levels, shape[1:], 0, count=shape[0])
    nodes = list(levels)
    pairs = list(itertools.pairwise(nodes))

    @torch.no_grad()
    def folded() -> Tensor:
        x, index = start.clone(), torch.empty(shape[0])
        for t, s in pairs:
            noise = network(x, index.fill_(t.t * 1000 - 1))
            x.mul_(s.alpha / t.alpha).add_(noise, alpha=s.sigma - t.sigma * s.alpha / t.alpha)
        return x

    @torch.no_grad()
    def plain() -> Tensor:
        x, index = start.clone(), torch.empty(shape[0])
        for t, s in pairs:
            noise = network(x, index.fill_(t.t * 1000 - 1))
            x.sub_(noise, alpha=t.sigma).mul_(s.alpha / t.alpha).add_(noise, alpha=s.sigma)
        return x

    def ours(step: Step, grid: Level = levels) -> Tensor:
        x = start
        for frame in sample(denoiser, start, grid, step):
            x = frame.x
        return x

    runs: dict[str, Callable[[], Tensor]] = {
        "in place (2)": folded,
        "in place (3)": plain,
        "sfumato": lambda: ours(ddim),
    }
    results = [run() for run in runs.values()]
    assert all((result - results[0]).abs().max() < 1e-4 for result in results)
    runs |= {
        "sfumato 2M": lambda: ours(dpm_solver_pp(2)),
        "sfumato Heun": lambda: ours(heun),
        "sfumato best": lambda: ours(*reversed(best(schedule, options.steps))),
        **peers(start, network, options.steps),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) / options.steps * 1e3)
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(times["sfumato"], times[name], strict=True)) for name in runs
    }
    for name, value in median.items():
        print(f"{name:22} {value * 1e3:6.1f} us per step   sfumato (DDIM) is {ratios[name]:.2f} x")
    print(json.dumps({"ms_per_step": median, "sfumato_over": ratios}))


if __name__ == "__main__":
    main()
