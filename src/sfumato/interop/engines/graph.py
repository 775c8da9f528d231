"""The network of a model as a graph that other programs run, and the network that calls such a program."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sfumato.conditioning.base import Condition, keys_of, require_known
from sfumato.conditioning.embedding import Tokens
from sfumato.conditioning.labels import Label
from sfumato.conditioning.low_resolution import LowResolution
from sfumato.conditioning.text import Text
from sfumato.errors import InputError
from sfumato.interop.model import conditions_of, null_conditions
from sfumato.models.model import Model

OUTPUT = "output"
"""The name of the network's output in every graph."""

Run = Callable[[dict[str, Any]], Any]
"""What computes the output from NumPy arrays by the names of the inputs: x, time, conditions."""


def require(package: str, extra: str, what: str) -> Any:
    """An optional package, or a sentence that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f'{what} needs {package}; install it with: pip install "sfumato[{extra}]"') from None


class _Flat(nn.Module):
    """A network that takes its conditions by place, as graphs do."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
        return self.network(x, time, **dict(zip(self.names, conditions, strict=True)))


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as a graph, for any batch size.

    Attributes:
        exported: the graph of torch.
        inputs: the names of its inputs: ``x``, ``time`` and the conditions.
        shapes: the shape of each for one sample; None for what may be any: a number of tokens, a side of a small image.
        nulls: the null value of each tensor of the conditions, for one sample.
        conditions: the conditions by name.
    """

    exported: ExportedProgram
    inputs: tuple[str, ...]
    shapes: dict[str, tuple[int | None, ...]]
    nulls: dict[str, Tensor]
    conditions: dict[str, Condition]

    def arrays(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> dict[str, Any]:
        """NumPy arrays by the names of the inputs, the null value for conditions that are missing."""
        for name in cond:
            require_known(name, self.nulls)
        given = {"x": x, "time": time, **cond}
        for name, tensor in given.items():
            expected = (len(x), *self.shapes[name])
            actual = tuple(tensor.shape)
            if actual != tuple(a if e is None else e for e, a in itertools.zip_longest(expected, actual, fillvalue=-1)):
                sides = str(expected).replace("None", "any")
                raise InputError(f"The engine takes {name} of shape {sides} here, and got {actual}.")
        for name, null in self.nulls.items():
            given[name] = given[name].to(null.dtype) if name in given else _repeated(null, len(x))
        for name, condition in self.conditions.items():
            value, keys = given[name], list(keys_of(name, condition))
            # not every engine would say so
            if isinstance(condition, Label) and bool(((value < -1) | (value >= len(condition.names))).any()):
                raise InputError(f"A {name} is a number from 0 to {len(condition.names) - 1}, or -1 for none.")
            if isinstance(condition, Tokens | Text) and any(given[key].shape[1] != value.shape[1] for key in keys):
                raise InputError(f"{' and '.join(keys)} must be of as many tokens; give both.")
        given |= {"x": x.float(), "time": time.float()}
        return {name: given[name].detach().cpu().contiguous().numpy() for name in self.inputs}


def _repeated(null: Tensor, count: int) -> Tensor:
    return null.repeat(count, *[1] * (null.ndim - 1))


def require_weights(network: nn.Module) -> None:
    """Check that a network has its weights in torch, not in an engine."""
    if next(network.parameters(), None) is None:
        raise InputError("The network of this model runs in an engine already; take the model that was loaded.")


def _nulls(network: nn.Module, channels: int) -> dict[str, Tensor]:
    """The null values of the tensors of conditions, with sides above 1 where an image may be of any size."""
    nulls = null_conditions(network)
    for name, condition in conditions_of(network).items():
        if isinstance(condition, LowResolution):
            # the exporter takes a side of 1 for a constant
            nulls[name] = nulls[name].expand(1, channels, 2, 2)
    return nulls


def graph_of(model: Model) -> Graph:
    """The network of a model as a graph, without the coefficients of its parameterization."""
    network, shape, device = model.denoiser.network, model.info.shape, model.device
    require_weights(network)
    conditions, nulls = conditions_of(network), _nulls(network, shape[0])
    # neither 0 nor 1, which the exporter would take for constants
    count, length = 3, 2
    inputs = {"x": torch.zeros(count, *shape, device=device), "time": torch.zeros(count, device=device)}
    dims = {name: {0: Dim("batch", min=1)} for name in (*inputs, *nulls)}
    for name, condition in conditions.items():
        for key in keys_of(name, condition):
            null = nulls[key]
            if isinstance(condition, Tokens | Text):
                null = null.repeat_interleave(length, 1)
                most = condition.length if isinstance(condition, Text) and not condition.is_frozen else None
                dims[key][1] = Dim(f"{name}_length", min=1, max=most)
            elif isinstance(condition, LowResolution) and null.ndim == 4:
                null = null.new_zeros(1, null.shape[1], 4, 5)
                dims[key] |= {2: Dim(f"{name}_height", min=2), 3: Dim(f"{name}_width", min=2)}
            inputs[key] = _repeated(null, count).to(device)
    x, time, *rest = dims.values()
    flat, was_training = _Flat(network, tuple(nulls)), network.training
    network.eval()
    with torch.no_grad():
        exported = torch.export.export(
            flat,
            tuple(inputs.values()),
            dynamic_shapes=(x, time, *([tuple(rest)] if rest else [])),
            strict=False,
        )
    network.train(was_training)
    shapes = {
        name: tuple(None if axis in dims[name] else side for axis, side in enumerate(tensor.shape) if axis > 0)
        for name, tensor in inputs.items()
    }
    return Graph(exported, tuple(inputs), shapes, nulls, conditions)


class GraphNetwork(nn.Module):
    """A network without weights in torch: it hands its inputs to an engine on the CPU.

    Args:
        graph: what it computes.
        compiled: returns what runs batches of a size; it is called once for each size.
    """

    def __init__(self, graph: Graph, compiled: Callable[[int], Run]) -> None:
        super().__init__()
        self._graph, self._compiled = graph, compiled
        self._ready: dict[int, Run] = {}

    def forward(
        self, x: Float[Tensor, "batch inputs *space"], time: Float[Tensor, "batch"], **cond: Tensor
    ) -> Float[Tensor, "batch outputs *space"]:
        """The output, in the type of ``x``."""
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError("An engine gives no gradients; take the model without it where they are needed.")
        count = x.shape[0]
        arrays = self._graph.arrays(x, time, cond)
        if count not in self._ready:
            self._ready[count] = self._compiled(count)
        return torch.from_numpy(self._ready[count](arrays)).to(x.device, x.dtype)
