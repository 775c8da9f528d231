"""What super-resolution reaches on crops of pictures that it has not seen, beside bicubic interpolation.

Crops of 64x64 are scaled down as in training and up again by each run. FD and KID are those of efficientnet-lite0's
features of the outputs to those of the true crops; every method has the same crops.

    python benchmarks/super_resolution.py PICTURES... --runs runs/photos-x4 runs/regression --steps 4 8 100

PICTURES are files, or folders that are searched for .png; those whose names end in _LR.png are passed over.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import sfumato
from sfumato.conditioning.low_resolution import LowResolution
from sfumato.io.images import read_any_size
from sfumato.metrics import colour_error, consistency, extract, features, frechet, kid, psnr, ssim
from sfumato.metrics.pairs import mean

SIDE = 64


def crops(sources: list[Path], stride: int) -> Tensor:
    """Crops ``(N, 3, 64, 64)`` in [-1, 1], every ``stride`` pixels."""
    found: list[Tensor] = []
    for path in (p for source in sources for p in (sorted(source.rglob("*.png")) if source.is_dir() else [source])):
        if path.name.endswith("_LR.png"):
            continue
        picture = read_any_size(path, 3)
        patches = picture.unfold(1, SIDE, stride).unfold(2, SIDE, stride)
        found.append(patches.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIDE, SIDE))
    return torch.cat(found)


def methods(runs: list[Path], steps: list[int], temperatures: list[float], low: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What each method makes of the small pictures."""
    yield "bicubic", functional.interpolate(low, (SIDE, SIDE), mode="bicubic").clamp(-1.0, 1.0)
    for run in runs:
        model = sfumato.load(run)
        blind = model.config.model.parameterization.kind == "regression"
        settings = [(1, 1.0)] if blind else itertools.product(steps, temperatures)
        for (count, temperature), consistent in itertools.product(settings, (False, True)):
            name = run.name if blind else f"{run.name}, {count} steps, temperature {temperature:g}"
            options: dict[str, Any] = {
                "steps": count,
                "temperature": temperature,
                "guidance": {"consistent": consistent},
            }
            yield name + ", consistent" * consistent, model.sample(len(low), seed=1, low_resolution=low, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--runs", nargs="+", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", type=int, default=[8])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.7, 1.0])
    parser.add_argument("--stride", type=int, default=SIDE)
    options = parser.parse_args()
    truth = crops(options.pictures, options.stride)
    condition = next(c for c in sfumato.load(options.runs[0]).conditions.values() if isinstance(c, LowResolution))
    low = condition.of(truth, {})
    space = features("efficientnet-lite0")
    real = extract(space, truth, progress=False)
    # the floor: how far two halves of the real crops are from each other
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(real)))
    halves = real[order[::2]], real[order[1::2]]
    table = Table("method", "FD", "KID x 1000", "PSNR", "SSIM", "consistency dB", "colour error / 255")
    table.add_row("two halves of the real crops", f"{frechet(*halves).value:.2f}", f"{1000 * kid(*halves).value:.2f}")
    for name, images in methods(options.runs, options.steps, options.temperatures, low):
        vectors = extract(space, images, progress=False)
        fd, kernel = frechet(vectors, real), kid(vectors, real)
        agreement = consistency(images, low, lambda x: condition.of(x, {}))
        table.add_row(
            name,
            f"{fd.value:.2f} ± {fd.error or 0.0:.2f}",
            f"{1000 * kernel.value:.2f} ± {1000 * (kernel.error or 0.0):.2f}",
            f"{mean(psnr(images, truth)).value:.2f}",
            f"{mean(ssim(images, truth)).value:.4f}",
            f"{mean(agreement.psnr).value:.1f}",
            f"{mean(colour_error(images, truth)).value:.3f}",
        )
    console = Console(width=140)
    console.print(f"{len(truth)} crops")
    console.print(table)


if __name__ == "__main__":
    main()
