"""Quality of samples against seconds of training, on scikit-learn's digits: Sfumato beside other libraries.

Every contender trains on the same 1,000 digits for a given time on this machine and draws 1,000 samples, which one
evaluator compares with the 797 digits that were held out: Frechet distance in the features of a small classifier, in
units of the distance between real and real, and nearest-neighbour ratio in pixels (below 1: copies). The learning rate
of each contender falls to zero over its own budget. The peers' settings were searched by hand on this task, from those
of their examples (rates and widths); each samples with a good solver of its own.

    pip install -e ".[bench]"
    pip install --no-deps denoising-diffusion-pytorch && pip install einops ema-pytorch
    python benchmarks/time_to_quality.py --seconds 10 30 60
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import metrics
from sfumato.config import Config, merge, parse
from sfumato.metrics.frechet import Gaussian
from sfumato.model import Model
from sfumato.recipes import digits
from sfumato.run import describe, make_trainer, read_data, training_data

Step = Callable[[], float]
Draw = Callable[[int, int], Tensor]


@dataclass
class Contender:
    """A recipe: for a number of steps, a function that trains one step, and one that draws ``(count, seed)``."""

    name: str
    start: Callable[[int], tuple[Step, Draw]]


def sfumato(labels: bool) -> Contender:
    def start(steps: int) -> tuple[Step, Draw]:
        over = {
            "data": {"labels": labels},
            "training": {"steps": steps},
            "optimizer": {"warmup": max(1, steps // 20)},
        }
        config = parse(Config, merge(digits().model_dump(), over))
        loader, _ = training_data(config)
        torch.manual_seed(0)
        model = Model(config, describe(loader, 0))
        trainer = make_trainer(model, loader)
        records = trainer.run(steps)

        def draw(count: int, seed: int) -> Tensor:
            with trainer.ema.applied():
                return model.sample(count, seed=seed)

        return lambda: next(records).loss, draw

    return Contender("sfumato, by class" if labels else "sfumato", start)


class Peer:
    """What the peers share: AdamW with warm-up and cosine decay, batches of 128, an average of the weights."""

    def __init__(self, network: nn.Module, steps: int, rate: float, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.network, self.steps, self.rate, self.loss = network, steps, rate, loss
        self.average = copy.deepcopy(network).eval()
        self.optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        data, _ = read_data(digits())
        self.images, self.labels = data.batch(range(len(data))), torch.from_numpy(data.labels)
        self.generator = torch.Generator().manual_seed(0)
        self.done = 0

    def step(self) -> float:
        self.network.train()
        warmup = max(1, self.steps // 20)
        progress = (self.done + 1 - warmup) / max(1, self.steps - warmup)
        factor = (self.done + 1) / warmup if progress < 0 else 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        index = torch.randint(len(self.images), (128,), generator=self.generator)
        loss = self.loss(self.images[index], self.labels[index])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        decay = (1.0 - 1.0 / self.done) ** 13
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1.0 - decay)
        return float(loss.detach())


def diffusers(labels: bool, rate: float = 4e-3, widths: tuple[int, ...] = (16, 32)) -> Contender:
    def start(steps: int) -> tuple[Step, Draw]:
        from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel

        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            norm_num_groups=8,
            attention_head_dim=8,
            num_class_embeds=10 if labels else None,
        )
        scheduler = DDPMScheduler(num_train_timesteps=1000)

        def loss(images: Tensor, classes: Tensor) -> Tensor:
            noise = torch.randn_like(images)
            times = torch.randint(1000, (len(images),))
            noisy = scheduler.add_noise(images, noise, times)
            found = network(noisy, times, class_labels=classes if labels else None).sample
            return nn.functional.mse_loss(found, noise)

        peer = Peer(network, steps, rate, loss)

        @torch.no_grad()
        def draw(count: int, seed: int) -> Tensor:
            solver = DPMSolverMultistepScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
            solver.set_timesteps(30)
            x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
            classes = torch.arange(count) % 10 if labels else None
            for time_ in solver.timesteps:
                found = peer.average(x, time_, class_labels=classes).sample
                x = solver.step(found, time_, x).prev_sample
            return x.clamp(-1, 1)

        return peer.step, draw

    return Contender("diffusers, by class" if labels else "diffusers", start)


def denoising_diffusion_pytorch(rate: float = 2e-3, width: int = 32) -> Contender:
    def start(steps: int) -> tuple[Step, Draw]:
        if "torchvision" not in sys.modules:
            # only its trainer and its utilities for files need it, and neither is used here
            stub: Any = types.ModuleType("torchvision")
            stub.transforms, stub.utils = types.ModuleType("transforms"), types.ModuleType("utils")
            sys.modules["torchvision"] = stub
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        torch.manual_seed(0)
        network = Unet(dim=width, dim_mults=(1, 2), channels=1, flash_attn=False)
        options = {"image_size": 8, "timesteps": 1000, "beta_schedule": "sigmoid", "objective": "pred_v"}
        diffusion = GaussianDiffusion(network, sampling_timesteps=50, **options)
        peer = Peer(network, steps, rate, lambda images, _: diffusion((images + 1) / 2))

        @torch.no_grad()
        def draw(count: int, seed: int) -> Tensor:
            sampler = GaussianDiffusion(peer.average, sampling_timesteps=50, **options)
            torch.manual_seed(seed)
            return sampler.sample(batch_size=count).clamp(0, 1) * 2 - 1

        return peer.step, draw

    return Contender("denoising-diffusion-pytorch", start)


class Evaluator:
    """Frechet distance to the held-out digits in units of real against real, and the nearest-neighbour ratio."""

    def __init__(self) -> None:
        train, heldout = read_data(digits())
        self.train, self.heldout = train.batch(range(len(train))), heldout.batch(range(len(heldout)))
        self.classifier = metrics.train_classifier(self.train, torch.from_numpy(train.labels), seed=0)
        self.real = Gaussian.fit(self.classifier(self.heldout))
        self.floor = Gaussian.fit(self.classifier(self.train)).distance(self.real)

    def __call__(self, images: Tensor) -> tuple[float, float]:
        ratio = Gaussian.fit(self.classifier(images)).distance(self.real) / self.floor
        return ratio, metrics.nearest_neighbour_ratio(images, self.train, self.heldout)


def speed(contender: Contender) -> float:
    """Seconds per step, the least of a few windows: other work on the machine only adds."""
    step, _ = contender.start(200)
    for _ in range(10):
        step()
    windows: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(15):
            step()
        windows.append((time.perf_counter() - began) / 15)
    return sorted(windows)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0, 60.0])
    parser.add_argument("--only", nargs="*", help="contenders whose name contains one of these")
    parser.add_argument("--samplings", type=int, default=4, help="seeds of samples that are averaged")
    parser.add_argument("--rate", type=float, default=None, help="another learning rate for the peers")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file")
    options = parser.parse_args()
    rate = {} if options.rate is None else {"rate": options.rate}
    contenders = [
        sfumato(labels=True),
        sfumato(labels=False),
        diffusers(labels=True, **rate),
        diffusers(labels=False, **rate),
        denoising_diffusion_pytorch(**rate),
    ]
    if options.only:
        contenders = [c for c in contenders if any(word in c.name for word in options.only)]
    evaluator = Evaluator()
    print(f"real against real: {evaluator.floor:.3f}; distances below are in units of it")
    found: list[dict[str, Any]] = []
    for contender in contenders:
        pace = speed(contender)
        for seconds in options.seconds:
            steps = max(20, int(seconds / pace))
            step, draw = contender.start(steps)
            began = time.perf_counter()
            for _ in range(steps):
                step()
            spent = time.perf_counter() - began
            scores = [evaluator(draw(1000, seed)) for seed in range(options.samplings)]
            distances = torch.tensor([s[0] for s in scores])
            distance, spread = distances.mean(), distances.std(correction=0)
            copies = sum(s[1] for s in scores) / len(scores)
            row = {
                "name": contender.name,
                "seconds": round(spent, 1),
                "steps": steps,
                "ms_per_step": round(1e3 * spent / steps, 2),
                "frechet_over_floor": round(float(distance), 3),
                "spread": round(float(spread), 3),
                "neighbour_ratio": round(copies, 3),
            }
            found.append(row)
            print(
                f"{contender.name:30} {spent:6.1f} s {steps:6d} steps {row['ms_per_step']:6.1f} ms   "
                f"Frechet {distance:6.2f} +- {spread:.2f} x floor   nearest-neighbour ratio {copies:.3f}",
                flush=True,
            )
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
