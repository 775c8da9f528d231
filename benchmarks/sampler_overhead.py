"""What the sampling loop costs beside arithmetic: a network that returns zeros, DDIM, one process.

The baselines are loops written by hand, without any abstraction: ``in place (2)`` folds the update of DDIM into one
multiplication and one addition with numbers computed beforehand, the least that is possible; ``in place (3)`` is the
update as one would write it. ``sfumato`` is the loop as ``Model.sample`` runs it, ``frames kept`` the loop whose frames
may all be kept. Interleaved, median of many.

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
from sfumato.diffusion.parameterization import eps
from sfumato.diffusion.schedule import linear
from sfumato.sampling import grids
from sfumato.sampling.ddim import ddim
from sfumato.sampling.sample import initial, sample


class Zero(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.zeros = torch.zeros(shape)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.zeros


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

    def ours(reuse: bool) -> Tensor:
        x = start
        for frame in sample(denoiser, start, levels, ddim, reuse=reuse):
            x = frame.x
        return x

    runs: dict[str, Callable[[], Tensor]] = {
        "in place (2)": folded,
        "in place (3)": plain,
        "sfumato, frames kept": lambda: ours(reuse=False),
        "sfumato": lambda: ours(reuse=True),
    }
    results = [run() for run in runs.values()]
    assert all((result - results[0]).abs().max() < 1e-4 for result in results)
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
        print(f"{name:22} {value * 1e3:6.1f} us per step   sfumato is {ratios[name]:.2f} x")
    print(json.dumps({"ms_per_step": median, "sfumato_over": ratios}))


if __name__ == "__main__":
    main()
