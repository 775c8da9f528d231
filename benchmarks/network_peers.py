"""What the benchmark of networks measures: the work, and the other libraries that do it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Work:
    """A network and the batch that it is given.

    Attributes:
        name: what it is called.
        widths: channels of each resolution.
        attention: the resolution with self-attention.
        blocks: residual blocks per resolution.
        head: channels of an attention head; None for one head.
        shape: of a sample.
        batch: samples.
        groups: groups of the normalizations.
    """

    name: str
    widths: tuple[int, ...]
    attention: int
    blocks: int
    head: int | None
    shape: tuple[int, int, int]
    batch: int
    groups: int = 32

    def heads(self) -> dict[str, int]:
        return {"heads": 1} if self.head is None else {"head_channels": self.head}


@dataclass
class Contender:
    """A library ready to work.

    Attributes:
        name: what it is called.
        precision: what it trains in, and what its forward pass computes in.
        parameters: of its network.
        train: a training step; None where there is none.
        forward: a denoising forward pass.
    """

    name: str
    precision: tuple[str, str]
    parameters: int
    train: Callable[[], Any] | None
    forward: Callable[[], Any]


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def inputs(work: Work) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(work.batch, *work.shape, generator=generator), torch.full((work.batch,), 500)


def diffusers(work: Work, bf16: bool = False) -> Contender:
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    levels = range(len(work.widths))
    down = tuple("AttnDownBlock2D" if i == work.attention else "DownBlock2D" for i in levels)
    up = tuple("AttnUpBlock2D" if i == work.attention else "UpBlock2D" for i in reversed(levels))
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=work.shape[-1],
        in_channels=work.shape[0],
        out_channels=work.shape[0],
        block_out_channels=work.widths,
        layers_per_block=work.blocks,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=work.head,
        norm_num_groups=work.groups,
    )
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    x, times = inputs(work)

    def train() -> float:
        network.train()
        noise = torch.randn_like(x)
        drawn = torch.randint(0, 1000, (work.batch,))
        noisy = scheduler.add_noise(x, noise, drawn)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.mse_loss(network(noisy, drawn).sample.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        return loss.detach().item()

    @torch.no_grad()
    def forward() -> Tensor:
        network.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(x, times).sample

    name, precision = ("diffusers bf16", "bf16") if bf16 else ("diffusers", "fp32")
    return Contender(name, (precision, precision), size(network), train, forward)


def denoising_diffusion_pytorch(work: Work) -> Contender:
    if "torchvision" not in sys.modules:
        # only its utilities for files need it, and none is used here
        stub: Any = types.ModuleType("torchvision")
        stub.transforms, stub.utils = types.ModuleType("transforms"), types.ModuleType("utils")
        sys.modules["torchvision"] = stub
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    torch.manual_seed(0)
    first = work.widths[0]
    network = Unet(dim=first, dim_mults=tuple(w // first for w in work.widths), channels=work.shape[0])
    diffusion = GaussianDiffusion(network, image_size=work.shape[-1], timesteps=1000)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    x, times = inputs(work)
    images = x.clamp(-1, 1) * 0.5 + 0.5

    def train() -> float:
        network.train()
        loss = diffusion(images)
        loss.backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        return loss.detach().item()

    @torch.no_grad()
    def forward() -> Tensor:
        network.eval()
        return network(x, times)

    return Contender("denoising-diffusion-pytorch", ("fp32", "fp32"), size(network), train, forward)


def azula(work: Work) -> Contender:
    from azula.plugins.adm._src.unet import UNetModel

    first = work.widths[0]
    torch.manual_seed(0)
    network = UNetModel(
        image_size=work.shape[-1],
        in_channels=work.shape[0],
        model_channels=first,
        out_channels=work.shape[0],
        num_res_blocks=work.blocks,
        attention_resolutions={2**work.attention},
        channel_mult=tuple(w // first for w in work.widths),
        num_heads=1,
        num_head_channels=work.head or -1,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999)
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=decay)
    x, times = inputs(work)

    def train() -> float:
        network.train()
        noise = torch.randn_like(x)
        alpha_bar = torch.rand(work.batch, 1, 1, 1)
        noisy = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
        loss = nn.functional.mse_loss(network(noisy, 1000 * alpha_bar.flatten()), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(network)
        return loss.detach().item()

    @torch.no_grad()
    def forward() -> Tensor:
        network.eval()
        return network(x, times)

    return Contender("azula", ("fp32", "fp32"), size(network), train, forward)
