"""The networks of EDM once more, by formulas and plain functions, for our layers to be compared with.

Written from the paper (Karras et al. 2022, app. F) and from what the tensors of the published files are called. A
tensor is drawn when the formula first asks for it, so that this file alone decides their names and shapes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Reference:
    """``forward`` draws the tensors that it meets for the first time into ``state``."""

    def __init__(self, settings: dict[str, Any], seed: int = 0) -> None:
        self.settings, self.state = settings, dict[str, Tensor]()
        self.generator = torch.Generator().manual_seed(seed)
        self.song = settings["class_name"] == "SongUNet"

    def tensor(self, name: str, *shape: int, around: float = 0.0) -> Tensor:
        if name not in self.state:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 20
            self.state[name] = around + torch.randn(shape, generator=self.generator) / math.sqrt(fan_in)
        assert self.state[name].shape == shape, name
        return self.state[name]

    def norm(self, name: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        groups = min(32, channels // 4)
        h = x.reshape(len(x), groups, -1)
        eps = 1e-6 if self.song else 1e-5
        h = (h - h.mean(2, keepdim=True)) / (h.var(2, unbiased=False, keepdim=True) + eps).sqrt()
        gain, bias = self.tensor(f"{name}.weight", channels, around=1.0), self.tensor(f"{name}.bias", channels)
        return h.reshape(x.shape) * gain[:, None, None] + bias[:, None, None]

    def linear(self, name: str, x: Tensor, out: int, bias: bool = True) -> Tensor:
        y = x @ self.tensor(f"{name}.weight", out, x.shape[1]).T
        return y + self.tensor(f"{name}.bias", out) if bias else y

    def taps(self) -> Tensor:
        line = torch.tensor(self.settings.get("resample_filter", (1, 1)), dtype=torch.float32)
        return torch.outer(line, line) / line.sum() ** 2

    def down(self, x: Tensor, pad: int | None = None) -> Tensor:
        """Correlation with the filter, every second position; one channel after the other."""
        f = self.taps()
        pad = f.shape[0] // 2 - 1 if pad is None else pad
        one = [functional.conv2d(c, f[None, None], stride=2, padding=pad) for c in x.split(1, dim=1)]
        return torch.cat(one, 1)

    def up(self, x: Tensor) -> Tensor:
        """Zeros between the values, then correlation with four times the filter."""
        f, (height, width) = 4.0 * self.taps(), x.shape[2:]
        spread = x.new_zeros(*x.shape[:2], 2 * height, 2 * width)
        spread[:, :, ::2, ::2] = x
        # an output at 2 i + j - p takes the input i: the filter reversed, and it is symmetric
        before, after = f.shape[0] // 2, f.shape[0] // 2 - 1
        spread = functional.pad(spread, (before, after, before, after))
        return torch.cat([functional.conv2d(spread[:, i : i + 1], f[None, None]) for i in range(x.shape[1])], 1)

    def conv(self, name: str, x: Tensor, out: int, kernel: int = 3, change: str = "") -> Tensor:
        x = self.down(x) if change == "down" else self.up(x) if change == "up" else x
        if change:
            self.state[f"{name}.resample_filter"] = self.taps()[None, None]
        if kernel == 0:
            return x
        weight = self.tensor(f"{name}.weight", out, x.shape[1], kernel, kernel)
        return functional.conv2d(x, weight, self.tensor(f"{name}.bias", out), padding=kernel // 2)

    def block(self, name: str, x: Tensor, emb: Tensor, out: int, change: str = "", attend: bool = False) -> Tensor:
        scale = math.sqrt(0.5) if self.song else 1.0
        h = self.conv(f"{name}.conv0", functional.silu(self.norm(f"{name}.norm0", x)), out, 3, change)
        told = self.linear(f"{name}.affine", emb, out if self.song else 2 * out)[:, :, None, None]
        if self.song:
            h = functional.silu(self.norm(f"{name}.norm1", h + told))
        else:
            h = functional.silu(self.norm(f"{name}.norm1", h) * (1.0 + told[:, :out]) + told[:, out:])
        h = self.conv(f"{name}.conv1", h, out)
        if x.shape[1] != out or change:
            kernel = 1 if self.song or x.shape[1] != out else 0
            x = self.conv(f"{name}.skip", x, out, kernel, change)
        x = (x + h) * scale
        if not attend:
            return x
        heads = 1 if self.song else out // 64
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x), 3 * out, 1)
        mixed = []
        for head in qkv.chunk(heads, dim=1):
            q, k, v = head[:, 0::3].flatten(2), head[:, 1::3].flatten(2), head[:, 2::3].flatten(2)
            weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
            mixed.append(v @ weights.transpose(1, 2))
        h = self.conv(f"{name}.proj", torch.cat(mixed, 1).reshape(x.shape), out, 1)
        return (x + h) * scale

    def embedding(self, noise: Tensor, one_hot: Tensor | None, augmented: Tensor | None) -> Tensor:
        settings = self.settings
        width = settings["model_channels"]
        features, out = width * settings.get("channel_mult_noise", 1), width * 4
        half = features // 2
        if settings.get("embedding_type") == "fourier":
            angle = 2.0 * math.pi * noise[:, None] * self.tensor("map_noise.freqs", half)
        else:
            i = torch.arange(half, dtype=torch.float64) / (half - 1 if self.song else half)
            angle = noise[:, None] * (10_000.0**-i).float()
        parts = [angle.sin(), angle.cos()] if self.song else [angle.cos(), angle.sin()]
        emb = torch.cat(parts, 1)
        if self.song and one_hot is not None:
            emb = emb + self.linear("map_label", one_hot * math.sqrt(one_hot.shape[1]), features)
        if augmented is not None:
            emb = emb + self.linear("map_augment", augmented, features, bias=False)
        emb = self.linear("map_layer1", functional.silu(self.linear("map_layer0", emb, out)), out)
        if not self.song and one_hot is not None:
            emb = emb + self.linear("map_label", one_hot, out, bias=False)
        return functional.silu(emb)

    def __call__(
        self, x: Tensor, noise: Tensor, one_hot: Tensor | None = None, augmented: Tensor | None = None
    ) -> Tensor:
        settings, song = self.settings, self.song
        emb, outputs = self.embedding(noise, one_hot, augmented), x.shape[1]
        side, width, blocks = settings["img_resolution"], settings["model_channels"], settings["num_blocks"]
        widths = [width * m for m in settings["channel_mult"]]
        sides = [side // 2**level for level in range(len(widths))]
        aside = x
        x = self.conv(f"enc.{side}x{side}_conv", x, width if song else widths[0])
        skips = [x]
        for level, (s, wide) in enumerate(zip(sides, widths, strict=True)):
            if level > 0:
                x = self.block(f"enc.{s}x{s}_down", x, emb, x.shape[1], "down")
                if settings.get("encoder_type") == "residual":
                    name = f"enc.{s}x{s}_aux_residual"
                    weight = self.tensor(f"{name}.weight", x.shape[1], aside.shape[1], 3, 3)
                    pad = self.taps().shape[0] // 2 - 1
                    self.state[f"{name}.resample_filter"] = self.taps()[None, None]
                    h = self.down(functional.conv2d(aside, weight, padding=1 + pad), 0)
                    h = h + self.tensor(f"{name}.bias", x.shape[1])[:, None, None]
                    x = aside = (x + h) / math.sqrt(2.0)
                skips.append(x)
            for i in range(blocks):
                x = self.block(f"enc.{s}x{s}_block{i}", x, emb, wide, attend=s in settings["attn_resolutions"])
                skips.append(x)
        for level, (s, wide) in reversed(list(enumerate(zip(sides, widths, strict=True)))):
            if level == len(widths) - 1:
                x = self.block(f"dec.{s}x{s}_in0", x, emb, x.shape[1], attend=True)
                x = self.block(f"dec.{s}x{s}_in1", x, emb, x.shape[1])
            else:
                x = self.block(f"dec.{s}x{s}_up", x, emb, x.shape[1], "up")
            for i in range(blocks + 1):
                attend = s in settings["attn_resolutions"] and (not song or i == blocks)
                x = self.block(f"dec.{s}x{s}_block{i}", torch.cat([x, skips.pop()], 1), emb, wide, attend=attend)
        norm, conv = (
            (f"dec.{side}x{side}_aux_norm", f"dec.{side}x{side}_aux_conv") if song else ("out_norm", "out_conv")
        )
        return self.conv(conv, functional.silu(self.norm(norm, x)), outputs)
