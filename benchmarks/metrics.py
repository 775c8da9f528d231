"""How long the distances of an evaluation take, as ratios to what anyone else would compute, in one interleaved run.

- The Frechet distance beside numpy.cov and scipy.linalg.sqrtm of the product, which is what pytorch-fid does.
- Precision, recall, density and coverage beside two products of all vectors with all others in float32: two sets have
  three matrices of distances, and two of them are symmetric. And beside the package prdc, if it is installed.

Seconds are those of the processor, over all threads: other jobs on the machine change them less than those of the
clock. The medians of ratios within a round are printed, with the smallest and largest.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py --samples 10000 --features 2048 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sfumato.metrics import frechet_distance, prdc


def features(seed: int, samples: int, size: int) -> Tensor:
    """Correlated, with variances that fall by 5 orders of magnitude, and not negative, as those of networks are."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator) * torch.logspace(0, -2.5, size)[:, None]
    generator.manual_seed(seed)
    return (torch.randn(samples, size, generator=generator) @ mixing / size**0.5 + 0.01 * seed).relu()


def by_square_root(a: Tensor, b: Tensor) -> float:
    covariances = [np.cov(x.double().numpy(), rowvar=False) for x in (a, b)]
    gap = (a.double().mean(dim=0) - b.double().mean(dim=0)).numpy()
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return float(gap @ gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2.0 * np.trace(root.real))


def two_products(a: Tensor, b: Tensor) -> None:
    for _ in range(2):
        a @ b.T


def by_package(a: Tensor, b: Tensor) -> list[float]:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        found = compute_prdc(b.numpy(), a.numpy(), 5)
    return [float(value) for value in found.values()]


def compared(rows: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Processor seconds of each in every round, and what each returned."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    results: dict[str, object] = {}
    for _ in range(rounds):
        for name, call in rows.items():
            began = time.process_time()
            results[name] = call()
            seconds[name].append(time.process_time() - began)
    return seconds, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10000, help="of each of the two sets")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["frechet", "prdc"])
    parser.add_argument("--no-package", action="store_true", help="leave the package prdc out, which is slow")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of few samples for many features
    a, b = (features(seed, options.samples, options.features) for seed in (1, 2))
    runs: dict[str, dict[str, Callable[[], object]]] = {
        "frechet": {
            "frechet_distance": lambda: frechet_distance(a, b),
            "numpy.cov, scipy.linalg.sqrtm": lambda: by_square_root(a, b),
        },
        "prdc": {"two products": lambda: two_products(a, b), "prdc": lambda: [e.value for e in prdc(a, b, 5, 5)]},
    }
    if not options.no_package:
        runs["prdc"]["the package prdc"] = lambda: by_package(a, b)
    console = Console()
    for title, rows in runs.items():
        if options.only not in (None, title):
            continue
        seconds, results = compared(rows, options.rounds)
        first = next(iter(rows))
        table = Table(
            "", "processor seconds", f"over {first}", "result", title=f"2 x {options.samples} x {options.features}"
        )
        for name, times in seconds.items():
            ratios = [x / y for x, y in zip(times, seconds[first], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            result = results[name]
            shown = result if isinstance(result, list) else [result]
            numbers = " ".join("" if value is None else f"{value:.9g}" for value in shown)
            table.add_row(name, f"{statistics.median(times):.2f}", spread, numbers)
        console.print(table)


if __name__ == "__main__":
    main()
