"""Seconds of a training step and of a denoising forward pass: Sfumato beside other libraries, in one run.

Two networks: that of DDPM for CIFAR-10 (35.7 million parameters, batches of 16 at 3x32x32), and one as people train on
a processor (1.6 million parameters, batches of 128 at 1x32x32). A training step is everything that a step is: noise,
loss, gradient, clipping, optimizer, average of the weights; Sfumato's has the reading of the batch in it too. The
contenders take turns; each time and each ratio is a median over the turns, with the middle half of them beside it.

``sfumato`` is what it does without being asked; ``sfumato fp32`` is held in float32; ``sfumato openvino`` is the
forward pass of its inference engine. ``diffusers`` does what its example of unconditional training does on a processor
(float32, AdamW and EMAModel as they are made there), ``diffusers bf16`` the same within autocast.
``denoising-diffusion-pytorch`` is a network of the same widths with the layers of that library, under the optimizer and
average of its trainer. ``azula`` has no trainer: its copy of the guided-diffusion
network, of the same layers, trains with AdamW and an average as PyTorch has them.

    pip install -e ".[bench]"
    pip install --no-deps denoising-diffusion-pytorch azula && pip install einops ema-pytorch gdown
    pip install "sfumato[int8]"
    python benchmarks/networks.py --repeats 9 --json networks.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network_peers import Contender, Work, azula, denoising_diffusion_pytorch, diffusers, inputs, size
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sfumato.config import Config, parse
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError
from sfumato.models.inference import prepared
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.networks.execution import Bfloat16Copy
from sfumato.runs.setup import make_trainer
from sfumato.training.precision import supports_bf16

CPU = torch.device("cpu")


LARGE = Work("DDPM's CIFAR-10", (128, 256, 256, 256), 1, 2, None, (3, 32, 32), 16)
SMALL = Work("small", (32, 64, 64), 2, 2, 8, (1, 32, 32), 128)
QUICK = Work("tiny", (32, 32), 1, 1, 8, (1, 8, 8), 4)


def matmul_speed(dtype: torch.dtype, size: int = 768, seconds: float = 0.03) -> float:
    """Multiply-accumulates per second of matrix products on the CPU, the best of as many as fit in some ``seconds``."""
    a, b = (torch.full((size, size), 0.5, device=CPU, dtype=dtype) for _ in range(2))
    best, began = 0.0, time.perf_counter()
    while best == 0.0 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        # reading one number waits for the result
        float((a @ b)[0, 0])
        best = max(best, size**3 / (time.perf_counter() - start))
    return best


def built(work: Work, fp32: bool = False) -> Model:
    network = {
        "kind": "unet",
        "channels": work.widths,
        "attention": (work.attention,),
        "blocks": work.blocks,
        "groups": work.groups,
        "modulation": "additive",
        **work.heads(),
    }
    precision = "fp32" if fp32 else "auto"
    settings = {
        "model": {"schedule": "linear", "parameterization": "eps", "network": network},
        "training": {"steps": 1_000_000, "batch_size": work.batch, "precision": precision},
    }
    return Model.build(parse(Config, settings), Info(shape=work.shape, std=0.5, train=512))


def sfumato(work: Work, fp32: bool = False) -> Contender:
    model, bf16 = built(work, fp32), not fp32 and supports_bf16(CPU)
    config = model.config
    images = np.random.default_rng(0).integers(0, 256, (512, *work.shape), dtype=np.uint8)
    trainer = make_trainer(model, Loader(Dataset(images, name="noise"), 0), bf16=bf16)
    records = trainer.run(config.training.steps)
    x, _ = inputs(work)
    (level,) = list(model.denoiser.schedule(torch.tensor([0.5])))

    @torch.no_grad()
    def forward() -> Tensor:
        model.denoiser.eval()
        found = denoiser(x, level).eps
        model.denoiser.train()
        return found

    sampling = config.sampling.model_copy(update={"precision": "fp32"}) if fp32 else config.sampling
    denoiser = prepared(model.denoiser, work.shape, sampling)
    layout = ", channels last" if model.config.training.channels_last else ""
    halves = (bf16, isinstance(denoiser.network, Bfloat16Copy))
    name, precision = "sfumato fp32" if fp32 else "sfumato", tuple(("bf16" if h else "fp32") + layout for h in halves)
    return Contender(name, precision, size(model.denoiser), trainer_step(records), forward)


def in_engine(work: Work, precision: str) -> Contender:
    """The forward pass in OpenVINO, of the same network."""
    from sfumato.interop import engines

    model = built(work)
    fast = engines.compile(model, "openvino", precision).denoiser.eval()
    x, _ = inputs(work)
    (level,) = list(model.denoiser.schedule(torch.tensor([0.5])))

    @torch.no_grad()
    def forward() -> Tensor:
        return fast(x, level).eps

    forward()
    return Contender(f"sfumato openvino {precision}", ("", precision), size(model.denoiser), None, forward)


def trainer_step(records: Any) -> Callable[[], float]:
    return lambda: next(records).loss


CONTENDERS: dict[str, Callable[[Work], Contender]] = {
    "sfumato": sfumato,
    "sfumato fp32": lambda work: sfumato(work, fp32=True),
    "sfumato openvino bf16": lambda work: in_engine(work, "bf16"),
    "sfumato openvino int8": lambda work: in_engine(work, "int8"),
    "diffusers": diffusers,
    "diffusers bf16": lambda work: diffusers(work, bf16=True),
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
    "azula": azula,
}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The median, and the middle half around it."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def macs(call: Callable[[], Any], batch: int) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // (2 * batch)


def measure(work: Work, names: list[str], repeats: int, peak: dict[str, float]) -> list[dict[str, Any]]:
    """Rows of one network: each contender's training step and forward pass, in turns."""
    contenders: list[tuple[Contender, int]] = []
    for name in names:
        try:
            made = CONTENDERS[name](work)
        except (ImportError, InputError) as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
            continue
        if made.train is not None:
            made.train()
        # an engine hides its products; they are those of the network in torch
        contenders.append((made, macs(made.forward, work.batch) or contenders[0][1]))
    rows: list[dict[str, Any]] = []
    for column, what in enumerate(("train", "forward")):
        able = [(made, each) for made, each in contenders if getattr(made, what) is not None]
        seconds: dict[str, list[float]] = {made.name: [] for made, _ in able}
        for turn in range(repeats):
            # nobody is always the one that follows the same other
            for made, _ in able[turn % len(able) :] + able[: turn % len(able)]:
                began = time.perf_counter()
                getattr(made, what)()
                seconds[made.name].append(time.perf_counter() - began)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                peak[name] = max(peak[name], matmul_speed(dtype, 1536, 0.2))
        base = seconds[able[0][0].name]
        for made, each in able:
            median, low, high = quartiles(seconds[made.name])
            ratio, ratio_low, ratio_high = quartiles([b / a for a, b in zip(base, seconds[made.name], strict=True)])
            rows.append(
                {
                    "network": work.name,
                    "batch": work.batch,
                    "work": {"train": "training step", "forward": "denoising forward"}[what],
                    "contender": made.name,
                    "precision": made.precision[column],
                    "parameters": made.parameters,
                    "macs": each,
                    "seconds": median,
                    "seconds_low": low,
                    "seconds_high": high,
                    "ratio": ratio,
                    "ratio_low": ratio_low,
                    "ratio_high": ratio_high,
                    "macs_per_second": (3 if what == "train" else 1) * each * work.batch / median,
                }
            )
    return rows


def show(rows: list[dict[str, Any]], machine: dict[str, Any], console: Console) -> None:
    table = Table("network", "work", "contender", "precision", box=None, padding=(0, 2, 0, 0))
    for name in ("parameters", "MMAC", "ms", "middle half", "times ours", "of peak"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['network']}, {row['batch']}",
            row["work"],
            row["contender"],
            row["precision"],
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:,.4g}",
            f"{1e3 * row['seconds']:,.1f}",
            f"{1e3 * row['seconds_low']:,.1f} ... {1e3 * row['seconds_high']:,.1f}",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f} ... {row['ratio_high']:.2f})",
            "" if row["of_peak"] is None else f"{row['of_peak']:.0%} of {row['precision'][:4]}",
        )
    console.print(table)
    console.print(
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; peak of matrix products "
        f"{2e-9 * machine['peak']['fp32']:,.0f} GFLOP/s in fp32, {2e-9 * machine['peak']['bf16']:,.0f} in bf16",
        highlight=False,
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contender")
    parser.add_argument("--quick", action="store_true", help="a tiny network in place of the two")
    parser.add_argument("--only", nargs="*", default=[], help="networks and contenders by the start of their names")
    parser.add_argument("--json", type=Path, default=None, help="a file for the numbers")
    options = parser.parse_args(arguments)
    works = [QUICK] if options.quick else [LARGE, SMALL]
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    unknown = [o for o in options.only if not any(n.startswith(o) for n in [*CONTENDERS, *(w.name for w in works)])]
    if unknown:
        parser.error(
            f"nothing is called {unknown[0]!r}; there are {', '.join([*(w.name for w in works), *CONTENDERS])}"
        )

    def chosen(names: list[str]) -> list[str]:
        return [n for n in names if any(n.startswith(o) for o in options.only)] or names

    wanted, peak = chosen([work.name for work in works]), {"fp32": 0.0, "bf16": 0.0}
    rows: list[dict[str, Any]] = []
    for work in works:
        if work.name in wanted:
            rows += measure(work, chosen(list(CONTENDERS)), options.repeats, peak)
    for row in rows:
        # the peak of int8 is not measured
        known = peak.get(row["precision"][:4])
        row["of_peak"] = None if known is None else row["macs_per_second"] / known
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": options.repeats,
        "peak": peak,
    }
    found = {"machine": machine, "rows": rows}
    show(rows, machine, Console(width=200))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
