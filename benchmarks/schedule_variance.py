"""What a learned schedule is for: the variance of the estimator of the bound in continuous time, on the digits.

The network of ``objectives.py`` is trained by the bound: with linear beta (the variance-preserving SDE), with a
log-SNR that is all but a straight line between learned ends, and with the learned schedule of VDM (Kingma et al.
2021). Then, on held-out digits:

* the variance over time and noise of one draw of the bound for one image, averaged over images (``iid``), and that of
  the mean of a batch whose images share one set of evenly spread times, times the size of the batch (``stratified``);
* the bound itself in bits per dimension: the mean of all draws, and the ledger of 1000 steps.

    python benchmarks/schedule_variance.py --json schedule_variance.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from objectives import BINS, LEARNED, Over, Row, fresh, of, train
from torch import Tensor

from sfumato import random
from sfumato.config import Config, merge, parse
from sfumato.diffusion.bound import discretized_gaussian
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.learned_schedule import LearnedSchedule, prior_nats
from sfumato.models.data import read_data
from sfumato.models.likelihood import bits_per_dim
from sfumato.models.model import Model
from sfumato.recipes import digits


def freeze_shape(model: Model) -> None:
    """Leave a learned schedule as it starts, all but straight in log-SNR; its ends are still learned."""
    for name, parameter in model.denoiser.schedule.named_parameters():
        parameter.requires_grad_(name == "ends")


SCHEDULES: list[tuple[str, Over, Callable[[Model], None] | None]] = [
    ("linear beta", of({"kind": "continuous_linear"}, weight="vlb_continuous"), None),
    ("linear log-SNR", of(LEARNED, weight="vlb_continuous"), freeze_shape),
    ("learned", of(LEARNED, weight="vlb_continuous"), None),
]


def continuous_bound(denoiser: Denoiser, x0: Tensor, start: float, u: Tensor, seed: int) -> Tensor:
    r"""One draw per image of the bound in continuous time from ``t = start`` on, in bits per dimension.

    The times are ``u`` spread over [start, 1]; the image itself is decoded from its noisy version at ``start``.
    """
    schedule, shape = denoiser.schedule, tuple(x0.shape[1:])
    noise, of_decoder = (random.normal(seed, name, 0, len(x0), shape).to(x0) for name in ("diffusion", "decoder"))
    level = schedule(start + (1.0 - start) * u)
    with torch.no_grad():
        error = (denoiser(diffuse(x0, level, noise), level).eps - noise).double().square().flatten(1).mean(1)
    diffusion = -0.5 * (1.0 - start) * torch.as_tensor(schedule.slope(level.t)) * error
    std = float(schedule(start).noise_to_signal)
    decoder = -discretized_gaussian(x0, x0 + std * of_decoder, std * std, BINS).flatten(1).mean(1)
    return (diffusion + decoder + prior_nats(x0, torch.as_tensor(schedule(1.0).log_snr))) / math.log(2.0)


def measure(steps: int, images: int, rounds: int, draws: int | None, seed: int) -> list[dict[str, Any]]:
    """A line for each schedule, each with a network of its own.

    The bound of linear beta starts at the log-SNR where the learned schedule was told to; nearer to the data, its
    variance would only be larger.
    """
    x0 = read_data(parse(Config, digits()))[1].batch(range(images))
    found: list[dict[str, Any]] = []
    print(f"\n| {'schedule':15} |   iid | stratified |      bound |  1000 steps | log-SNR |")
    print(f"|{'-' * 17}|{'-' * 10}:|{'-' * 12}:|{'-' * 16}:|{'-' * 16}:|{'-' * 14}:|", flush=True)
    for name, over, prepare in SCHEDULES:
        model = fresh(Row("schedule variance", name, merge(over, {"training": {"seed": seed}})).config(steps))
        train(model, prepare)
        denoiser = model.denoiser
        linear = name == "linear beta"
        start = float(denoiser.schedule.at(LEARNED["log_snr_max"]).t) if linear else LearnedSchedule.start
        free, spread = list[Tensor](), list[Tensor]()
        for k in range(rounds):
            order = random.uniform(k, "order", 0, images).argsort()
            shift = random.uniform(k, "shift", 0, 1)
            free.append(continuous_bound(denoiser, x0, start, random.uniform(k, "iid", 0, images), k))
            spread.append(continuous_bound(denoiser, x0, start, (shift + order / images) % 1.0, rounds + k))
        single, batches = torch.stack(free), torch.stack(spread)
        per_image = torch.cat([single, batches]).mean(0)
        ledger = bits_per_dim(denoiser, x0, bins=BINS, flow=False, draws=draws, batch_size=250).bound
        assert ledger is not None
        row = {
            "name": name,
            "seed": seed,
            "iid": float(single.var(0).mean()),
            "iid_error": float(single.var(0).std() / math.sqrt(images)),
            "stratified": float(batches.mean(1).var() * images),
            "bound": float(per_image.mean()),
            "bound_error": float(per_image.std() / math.sqrt(images)),
            "ledger": ledger.mean,
            "ledger_error": ledger.standard_error,
            "log_snr": [float(denoiser.schedule(start).log_snr), float(denoiser.schedule(1.0).log_snr)],
        }
        found.append(row)
        high, low = row["log_snr"]
        bound = f"{row['bound']:.3f} ± {row['bound_error']:.3f}"
        print(
            f"| {name:15} | {row['iid']:8.2f} | {row['stratified']:10.2f} | {bound} | "
            f"{ledger.mean:.3f} ± {ledger.standard_error:.3f} | {low:.2f} ... {high:.2f} |",
            flush=True,
        )
    return found


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="training steps of each schedule")
    parser.add_argument("--images", type=int, default=100, help="held-out images")
    parser.add_argument("--rounds", type=int, default=200, help="draws of the bound for each image")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--quick", action="store_true", help="a few steps and draws: whether it runs")
    parser.add_argument("--json", type=Path, default=None, help="a file for the numbers")
    options = parser.parse_args(arguments)
    if options.quick:
        found = measure(steps=40, images=16, rounds=40, draws=20, seed=options.seed)
    else:
        found = measure(options.steps, options.images, options.rounds, None, options.seed)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
