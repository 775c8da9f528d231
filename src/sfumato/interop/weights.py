"""Weights of others: read without running anything, and copied into our layers by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.io.tensors import check_state, read_state
from sfumato.networks.attention import Attention
from sfumato.networks.unet import ResBlock

Weights = str | Path | Mapping[str, Tensor]
"""A file, or a mapping from names to tensors."""

HeadOrder = Literal["ours", "heads_first", "qkv_last"]
"""How the rows of a projection to queries, keys and values are ordered.

By q, k or v, then head, then channel; by head, then q, k or v; or by head and channel, then q, k or v.
"""


def read_weights(weights: Weights) -> dict[str, Tensor]:
    """The tensors of a file, or those that are given."""
    return read_state(weights) if isinstance(weights, str | Path) else check_state(weights, "What was given")


class Transfer:
    """Copies the tensors of a state dict into modules, and says in the end what did not fit.

    Args:
        weights: a file, or tensors by name.
        rename: what becomes of each name; None leaves the tensor out.
        origin: where tensors that are given are from.
    """

    def __init__(
        self,
        weights: Weights,
        rename: Callable[[str], str | None] = lambda name: name,
        *,
        origin: str = "the state dict",
    ) -> None:
        state, self.origin = read_weights(weights), str(weights) if isinstance(weights, str | Path) else origin
        self.state = {new: tensor for name, tensor in state.items() if (new := rename(name)) is not None}
        self._missing: dict[str, tuple[int, ...]] = {}
        self._reshaped: list[str] = []
        self._invalid: list[str] = []
        self._used: set[str] = set()

    def tensor(self, name: str, shape: Iterable[int]) -> Tensor:
        """The tensor of that name in float64; zeros where it is not as it should be, which :meth:`finish` reports.

        Sides of 1 at the end don't count: a 1x1 convolution is a linear layer.
        """
        expected, tensor = tuple(shape), self.state.get(name)
        self._used.add(name)
        if tensor is None:
            self._missing[name] = expected
        elif _squeezed(tensor.shape) != _squeezed(expected):
            self._reshaped.append(f"{name!r} is {tuple(tensor.shape)} in place of {expected}")
        elif not tensor.is_floating_point():
            self._invalid.append(f"{name!r} ({str(tensor.dtype).removeprefix('torch.')})")
        elif not bool(tensor.isfinite().all()):
            self._invalid.append(f"{name!r} (not finite)")
        else:
            return tensor.detach().double().cpu().reshape(expected)
        return torch.zeros(expected, dtype=torch.float64)

    def layer(self, module: nn.Module, *names: str, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Copy weight and bias of a layer, both put through ``change``.

        With several names, its outputs are those of several layers there, one after the other.
        """
        for kind, parameter in module.named_parameters(recurse=False):
            shape = (parameter.shape[0] // len(names), *parameter.shape[1:])
            value = torch.cat([self.tensor(f"{name}.{kind}", shape) for name in names])
            put(parameter, value if change is None else change(value))

    def labels(self, table: Tensor | None, name: str) -> None:
        """Copy a table of labels without a vector for no label: that one is zero."""
        if table is not None:
            put(table[1:], self.tensor(name, table[1:].shape))
            put(table[0], torch.zeros(()))

    def block(self, block: ResBlock, name: str, names: Mapping[str, str]) -> None:
        """Copy a residual block; ``names`` are those of its layers there, by ours.

        Where the embedding scales and shifts, the gain ``g`` and bias ``b`` that others keep in the normalization
        before are folded into it: (g n + b) (1 + s) + t = n (1 + s') + t'.
        """
        folded = ("modulation", "norm2") if block.adaptive else ()
        for ours, theirs in names.items():
            layer = getattr(block, ours)
            if ours not in folded and not isinstance(layer, nn.Identity):
                self.layer(layer, f"{name}.{theirs}")
        if not folded:
            return
        norm, linear = f"{name}.{names['norm2']}", f"{name}.{names['modulation']}"
        gain, bias = (self.tensor(f"{norm}.{kind}", (block.norm2.num_channels,)) for kind in ("weight", "bias"))
        weight, offset = (
            self.tensor(f"{linear}.{kind}", p.shape).chunk(2) for kind, p in block.modulation.named_parameters()
        )
        g, b = gain[:, None], bias[:, None]
        put(block.modulation.weight, torch.cat([g * weight[0], weight[1] + b * weight[0]]))
        put(block.modulation.bias, torch.cat([gain * offset[0] + gain - 1.0, offset[1] + bias + bias * offset[0]]))

    def attention(self, layer: Attention, norm: str, qkv: str, out: str, order: HeadOrder) -> None:
        """Copy an attention layer whose queries, keys and values are one projection with rows in ``order``."""
        self.layer(layer.norm, norm)
        self.layer(layer.qkv, qkv, change=lambda rows: by_projection(rows, layer.heads, order))
        self.layer(layer.out, out)

    def finish(self, ignored: str = "\0") -> None:
        """Check that everything was there, and nothing else but names that start with ``ignored``."""
        unknown = [name for name in self.state if name not in self._used and not name.startswith(ignored)]
        missing = [f"{name!r}{self._hint(name, shape, unknown)}" for name, shape in self._missing.items()]
        parts = [
            _listed(missing, "is", "are", "missing"),
            _listed(self._reshaped, "has", "have", "another shape"),
            _listed(self._invalid, "is", "are", "no finite real numbers"),
            _listed([repr(name) for name in unknown], "is", "are", "not of this network"),
        ]
        if any(parts):
            problems = "; ".join(part for part in parts if part)
            raise InputError(f"The weights in {self.origin} don't fit the configuration: {problems}.")

    def _hint(self, name: str, shape: tuple[int, ...], unknown: Sequence[str]) -> str:
        """The unknown tensor that a missing one may be called."""
        if list(self._missing).index(name) >= SHOWN:
            return ""
        close = [u for u in unknown if _squeezed(self.state[u].shape) == _squeezed(shape)]
        near = difflib.get_close_matches(name, close, 1, 0.0)
        return f" ({near[0]!r} has its shape and may be its name here)" if near else ""


class Collection:
    """The other way: the tensors of modules, under the names that another library has for them.

    Args:
        null_label: whether a table of labels keeps, after the classes, the one for none.
    """

    def __init__(self, *, null_label: bool = False) -> None:
        self.state: dict[str, Tensor] = {}
        self._null_label = null_label

    def layer(self, module: nn.Module, *names: str, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Collect weight and bias of a layer, both put through ``change``; with several names, each a part of them."""
        for kind, parameter in module.named_parameters(recurse=False):
            value = parameter.detach() if change is None else change(parameter.detach())
            for name, part in zip(names, value.chunk(len(names)), strict=True):
                self.state[f"{name}.{kind}"] = part

    def labels(self, table: Tensor | None, name: str) -> None:
        """Collect a table of labels."""
        if table is not None:
            self.state[name] = table.detach().roll(-1, 0) if self._null_label else table.detach()[1:]

    def block(self, block: ResBlock, name: str, names: Mapping[str, str]) -> None:
        """Collect a residual block.

        Where the embedding scales and shifts, the normalization before has a gain and bias there: 1 and 0.
        """
        for ours, theirs in names.items():
            layer = getattr(block, ours)
            if not isinstance(layer, nn.Identity):
                self.layer(layer, f"{name}.{theirs}")
        if block.adaptive:
            norm = f"{name}.{names['norm2']}"
            self.state[f"{norm}.weight"] = torch.ones(block.norm2.num_channels)
            self.state[f"{norm}.bias"] = torch.zeros(block.norm2.num_channels)


SHOWN = 10
"""The most tensors of one kind that are named."""


def _listed(items: Sequence[str], one: str, many: str, problem: str) -> str:
    """How many tensors have a problem, and which; nothing for none."""
    count = len(items)
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    number = f"1 tensor {one}" if count == 1 else f"{count} tensors {many}"
    return f"{number} {problem}: {', '.join(items[:SHOWN])}{more}" if items else ""


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    sides = tuple(shape)
    while sides and sides[-1] == 1:
        sides = sides[:-1]
    return sides


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Write a value into a parameter."""
    parameter.copy_(value)


def by_projection(rows: Tensor, heads: int, order: HeadOrder) -> Tensor:
    """The rows of a projection in our order: q, k or v, then head, then channel."""
    if order == "heads_first":
        return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).reshape(rows.shape)
    if order == "qkv_last":
        return rows.unflatten(0, (heads, -1, 3)).movedim(2, 0).reshape(rows.shape)
    return rows


def swap_halves(parameter: Tensor) -> Tensor:
    """The halves of the last axis exchanged: from features (sin, cos) of time to ours, (cos, sin); a bias has none."""
    first, second = parameter.chunk(2, dim=-1)
    return parameter if parameter.ndim < 2 else torch.cat([second, first], dim=-1)


_FEW = {"blocks": 64}
_SMALL, _PARAMETERS = 2**20, 2**24


def require_fit(settings: Mapping[str, Any], state: Mapping[str, Tensor], build: Callable[[], nn.Module]) -> None:
    """Check that a network may have these weights, before time and memory are spent on it.

    What is small is left to :meth:`Transfer.finish`, which knows more of what does not fit.

    Args:
        settings: numbers that say how large it is, by name.
        state: the weights.
        build: makes the network, here without memory.
    """
    numbers = sum(tensor.numel() for tensor in state.values())
    for name, value in settings.items():
        most = max(_FEW[name], len(state)) if name in _FEW else max(_SMALL, numbers)
        parts: Sequence[Any] = value if isinstance(value, list | tuple) else (value,)
        largest = max((part for part in parts if isinstance(part, int)), default=0)
        if name == "channels" and min(parts, default=0) < 1:
            raise InputError(f"The settings ask for a network with channels {parts}; at least 1 is expected.")
        if largest > most:
            raise InputError(
                f"The settings ask for a network with {name} {largest:.3g}; the weights are {numbers:,} numbers in "
                f"{len(state):,} tensors. Take the settings that belong to these weights."
            )
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in build().parameters())
    except (RuntimeError, OverflowError):
        count = 2**63
    if count > max(_PARAMETERS, 4 * numbers):
        raise InputError(
            f"The settings ask for a network of {count:.3g} parameters; the weights are {numbers:,} numbers. Take the "
            "settings that belong to these weights."
        )


def require_groups(network: nn.Module, groups: int, at_least: int = 1) -> None:
    """Check that every normalization has these groups, or as many as have ``at_least`` so many channels."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            expected = min(groups, module.num_channels // at_least)
            if module.num_groups != expected:
                raise InputError(
                    f"This network normalizes {module.num_channels} channels in {expected} groups, which do not divide "
                    f"them; networks whose widths divide by {groups} can be loaded."
                )
