"""The U-Net."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sfumato.errors import InputError
from sfumato.networks.blueprint import Plan
from sfumato.networks.dropout import number_layers
from sfumato.networks.embeddings import TimeEmbedding
from sfumato.networks.layers import Attention, CrossAttention, ResBlock, conv, group_norm, head_count, zero
from sfumato.networks.resampling import Resample, from_patches, to_patches
from sfumato.networks.slots import check_channels, check_tokens, check_vector


class _Block(nn.Module):
    """A residual block and, where asked, attention."""

    def __init__(self, plan: Plan, inputs: int, outputs: int, attend: bool) -> None:
        super().__init__()
        self.res = plan.res_block(inputs, outputs)
        heads = head_count(outputs, plan.heads, plan.head_channels) if attend else 0
        how: dict[str, Any] = {"eps": plan.eps, "group_channels": plan.group_channels, "rescale": plan.rescale}
        self.attention = Attention(outputs, heads, plan.groups, **how) if attend else None
        cross = attend and plan.tokens is not None
        self.cross = CrossAttention(outputs, plan.tokens or 0, heads, plan.groups, **how) if cross else None

    def forward(
        self, x: Tensor, embedding: Tensor, keys: Tensor | None, tokens: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        x = self.res(x, embedding, keys)
        x = x if self.attention is None else self.attention(x)
        return x if self.cross is None else self.cross(x, tokens, mask)


class _ResidualInput(nn.Module):
    """The input of a resolution, convolved and then filtered to the next, where it is added."""

    def __init__(self, plan: Plan, inputs: int, outputs: int) -> None:
        super().__init__()
        self.resample = Resample(plan.dims, "down", plan.taps)
        # no position of the convolution is lost to the filter at the border
        self.conv = conv(plan.dims, inputs, outputs, pad=1 + self.resample.pad)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return (x + self.resample.filter(self.conv(before), 0)) * math.sqrt(0.5)


class WayDown(nn.Module):
    """The time embedding, the first convolution, the way down and the middle."""

    def __init__(self, inputs: int, plan: Plan) -> None:
        super().__init__()
        plan.check()
        channels = plan.channels
        self.plan = plan
        self.inputs, self.dims, self.factor = inputs, plan.dims, plan.patch * 2 ** (len(channels) - 1)
        self.width = plan.features if plan.vector_in == "features" else plan.width
        self.time = TimeEmbedding(plan.features, plan.width, plan.time_scale, plan.time_kind, plan.time_period)
        self.every = plan.skips == "all"
        self.current = plan.first or channels[0]
        seen = (inputs + plan.concatenated) * plan.patch**plan.dims
        self.first = conv(plan.dims, seen, self.current)
        self.joined = [self.current] if self.every else []
        self.down = nn.ModuleList()
        for level, wide in enumerate(channels):
            stage = nn.ModuleList()
            for _ in range(plan.blocks):
                stage.append(_Block(plan, self.current, wide, level in plan.attention))
                self.current = wide
                self.joined.append(self.current)
            if level < len(channels) - 1:
                stage.append(plan.downsample(self.current))
                self.joined += [self.current] if self.every else []
            self.down.append(stage)
        if plan.residual_input:
            before = [seen, *channels[:-1]]
            self.residuals = nn.ModuleList(
                _ResidualInput(plan, b, c) for b, c in zip(before, channels[:-1], strict=False)
            )
        self.middle = nn.ModuleList(
            _Block(plan, self.current, self.current, plan.middle_attention and i == 0) for i in range(plan.middle)
        )

    def check(self, shape: Sequence[int]) -> None:
        """Check that inputs of shape ``(channels, *space)`` fit.

        Raises:
            InputError: for another number of channels or axes, or sides that the down-sampling does not divide.
        """
        channels, *sides = shape
        if channels != self.inputs or len(sides) != self.dims:
            raise InputError(
                f"This network takes {self.inputs} channels over {self.dims} spatial axes; got shape {tuple(shape)}."
            )
        if any(side % self.factor or side == 0 for side in sides):
            below = [max(1, side // self.factor) * self.factor for side in sides]
            above = [-(-side // self.factor) * self.factor for side in sides]
            fits = " or ".join("x".join(map(str, size)) for size in dict.fromkeys([tuple(below), tuple(above)]))
            raise InputError(
                f"A size of {'x'.join(map(str, sides))} is not divisible by the down-sampling of {self.factor}; "
                f"resize to {fits}, or use fewer resolutions."
            )

    def embed(self, time: Tensor, vector: Tensor | None) -> Tensor:
        """The activation of the embedding, where every block starts: computed once."""
        if self.plan.vector_in == "features":
            embedding = self.time(time, vector)
        else:
            embedding = self.time(time)
            embedding = embedding if vector is None else embedding + vector
        return functional.silu(embedding)

    def _run(self, module: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        if self.plan.checkpointing and torch.is_grad_enabled():
            # no generator is used within, so there is no state of one to restore
            return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
        return module(*inputs)

    def descend(
        self, x: Tensor, embedding: Tensor, keys: Tensor | None, told: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        """The activation after the middle, and those that are joined on the way up."""
        x = aside = to_patches(x, self.plan.patch)
        x = self.first(x)
        skips = [x] if self.every else []
        for level, stage in enumerate(self.down):
            for module in stage:  # pyright: ignore[reportGeneralTypeIssues]
                block = isinstance(module, _Block)
                if block:
                    x = self._run(module, x, embedding, keys, *told)
                elif isinstance(module, ResBlock):
                    x = self._run(module, x, embedding, keys)
                else:
                    x = module(x)
                if not block and self.plan.residual_input:
                    x = aside = self.residuals[level](x, aside)
                if block or self.every:
                    skips.append(x)
        for module in self.middle:
            x = self._run(module, x, embedding, keys, *told)
        return x, skips

    def initialize(self) -> None:
        """Initialize the weights as planned, and number the dropout layers."""
        number_layers(self)
        if self.plan.initialization == "torch" or next(self.parameters()).is_meta:
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and bool(module.weight.any()):
                # weaker queries, keys and values: attention that starts soft (Karras et al. 2022, code)
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(0.2) if name.endswith("qkv") else 1.0)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class UNet(WayDown):
    """A U-Net of residual blocks and self-attention.

    By its plan it is that of DDPM (Ho et al. 2020, app. B), Improved DDPM and ADM (Dhariwal and Nichol 2021, sec. 3),
    DDPM++ or NCSN++ (Y. Song et al. 2021, app. H).

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        channels: width of each resolution, from the finest; each further one halves the sides.
        options: the other attributes of a :class:`Plan`.

    Raises:
        InputError: if the settings contradict each other.
    """

    def __init__(self, inputs: int, outputs: int, channels: Sequence[int] = (64, 128), **options: Any) -> None:
        plan = Plan(channels=channels, **options)
        super().__init__(inputs, plan)
        joined, current = self.joined, self.current
        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(channels))):
            stage = nn.ModuleList()
            count = plan.blocks + self.every
            for i in range(count):
                attend = level in plan.attention and (plan.up_attention == "all" or i == count - 1)
                stage.append(_Block(plan, current + joined.pop(), wide, attend))
                current = wide
            if level > 0:
                stage.append(plan.upsample(current))
            self.up.append(stage)
        self.norm = group_norm(current, plan.groups, eps=plan.eps, group_channels=plan.group_channels)
        self.last = zero(conv(plan.dims, current, outputs * plan.patch**plan.dims))
        self.initialize()

    def forward(
        self,
        x: Float[Tensor, "batch inputs *space"],
        time: Float[Tensor, "batch"],
        vector: Float[Tensor, "batch width"] | None = None,
        tokens: Float[Tensor, "batch length features"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
        channels: Float[Tensor, "batch concatenated *space"] | None = None,
        keys: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output for ``x`` at ``time``.

        Args:
            x: the input.
            time: one number per sample.
            vector: added to the time embedding.
            tokens: attended to; without them, to nothing.
            mask: False for the tokens that are not to be seen.
            channels: concatenated to ``x``; zeros if they are missing.
            keys: one number of 32 bits per sample that decides what dropout leaves out; without them, nothing.

        Raises:
            InputError: if the sides of ``x`` do not divide by the down-sampling, or the network was not made for the
                condition or takes it in another shape.
        """
        self.check(x.shape[1:])
        x = self._concatenated(x, channels)
        check_vector(vector, x, self.width)
        check_tokens(tokens, mask, x, self.plan.tokens)
        embedding = self.embed(time, vector)
        told = (None if tokens is None else tokens.to(x.dtype), mask)
        x, skips = self.descend(x, embedding, keys, told)
        for stage in self.up:
            for module in stage:  # pyright: ignore[reportGeneralTypeIssues]
                if isinstance(module, _Block):
                    x = self._run(module, torch.cat([x, skips.pop()], dim=1), embedding, keys, *told)
                elif isinstance(module, ResBlock):
                    x = self._run(module, x, embedding, keys)
                else:
                    x = module(x)
        return from_patches(self.last(functional.silu(self.norm(x))), self.plan.patch)

    def _concatenated(self, x: Tensor, channels: Tensor | None) -> Tensor:
        wanted = self.plan.concatenated
        if channels is None:
            return torch.cat([x, x.new_zeros(x.shape[0], wanted, *x.shape[2:])], dim=1) if wanted else x
        check_channels(channels, x, wanted)
        return torch.cat([x, channels.to(x.dtype)], dim=1)
